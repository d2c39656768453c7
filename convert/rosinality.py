"""Checkpoints of rosinality/stylegan2-pytorch: `torch.save` of dictionaries of tensors.

Its modulated convolutions multiply their weights by 1 / sqrt(in k^2) before demodulation, ours
does not; up-sampling kernels are laid out as in stylegan2-ada-pytorch.
"""

import re
from typing import Any

import numpy as np

from convert.arrays import Storages, is_tensor, tensor
from convert.safe_pickle import require_allowed
from convert.state_dict import Source, check_size, from_arrays, refuse_other_networks
from stylesr_jax.errors import UserError

FORMAT = "rosinality .pt"
MAX_TENSORS = 4096
_KERNEL = re.compile(r"(convs|to_rgbs)\.(\d{1,2})\.(conv\.blur|upsample)\.kernel")
_LAYER_PARTS = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "noise.weight": "noise_strength",
    "activate.bias": "bias",
    "bias": "bias",
}


def _target(name: str) -> str | None:
    """stylegan2-ada-pytorch's name for one of rosinality's; None where there is none."""
    if match := re.fullmatch(r"style\.(\d{1,3})\.(weight|bias)", name):
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}"
    if name == "input.input":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"noises\.noise_(\d{1,2})", name):
        index = int(match[1])
        resolution = 4 << (index + 1) // 2
        layer = "conv0" if index % 2 else "conv1"
        return f"synthesis.b{resolution}.{layer}.noise_const"
    if match := re.fullmatch(r"(conv1|to_rgb1|convs\.(\d{1,2})|to_rgbs\.(\d{1,2}))\.(.+)", name):
        _, conv, head, part = match.groups()
        if part not in _LAYER_PARTS:
            return None
        if conv is not None:
            layer = f"b{8 << int(conv) // 2}.conv{int(conv) % 2}"
        elif head is not None:
            layer = f"b{8 << int(head)}.torgb"
        else:
            layer = "b4.conv1" if name.startswith("conv1") else "b4.torgb"
        return f"synthesis.{layer}.{_LAYER_PARTS[part]}"
    return None


def _array(target: str, array: np.ndarray) -> np.ndarray:
    """The array in stylegan2-ada-pytorch's shape; a misfit is left to the later check."""
    if target.endswith((".const", "torgb.weight")) and array.ndim in (4, 5):
        return array[0] if array.shape[0] == 1 else array
    if target.endswith(("conv0.weight", "conv1.weight")) and array.ndim == 5:
        gain = np.float32(1 / np.sqrt(max(np.prod(array.shape[2:]), 1)))
        return array[0].astype(np.float32) * gain if array.shape[0] == 1 else array
    if target.endswith("noise_const") and array.ndim == 4 and array.shape[:2] == (1, 1):
        return array[0, 0]
    if target.endswith(("noise_strength", "torgb.bias")):
        flat = array.reshape(-1)
        return flat.reshape(()) if target.endswith("strength") and flat.size == 1 else flat
    return array


def _filter(array: np.ndarray) -> np.ndarray:
    """An up-sampling kernel (its sum is 4) as a filter of sum 1."""
    total = float(array.sum(dtype=np.float64))
    if array.ndim != 2 or array.size > 64 or not 1e-6 < total < 1e6:
        raise UserError("the generator's resampling filter is malformed; the file is damaged")
    return array.astype(np.float32) / np.float32(total)


def _generator(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    state = {}
    for name, array in arrays.items():
        if match := _KERNEL.fullmatch(name):
            index = int(match[2])
            layer = f"b{8 << index // 2}.conv0" if match[1] == "convs" else f"b{8 << index}"
            state[f"synthesis.{layer}.resample_filter"] = _filter(array)
            continue
        target = _target(name)
        if target is None:
            raise UserError(
                f"the generator has {name!r:.80}, which StyleGAN2 does not; "
                "it is of a modified kind that is not read"
            )
        state[target] = _array(target, array)
    return state


def _tensors(values: dict[Any, Any], storages: Storages) -> dict[str, np.ndarray]:
    records = {
        name.removeprefix("module."): value
        for name, value in values.items()
        if isinstance(name, str) and is_tensor(value)
    }
    if len(records) > MAX_TENSORS:
        raise UserError("the torch file has implausibly many tensors; it is damaged")
    return {name: tensor(value, storages) for name, value in records.items()}


def convert(value: Any, storages: Storages, file_size: int) -> Source:
    """A generator from the inert content of a `torch.save` file.

    Accepts a checkpoint with "g_ema", and the state dict of a generator alone, with rosinality's
    names or with stylegan2-ada-pytorch's.

    Raises:
        UserError: there is no StyleGAN2 generator in it.
    """
    if not isinstance(value, dict):
        require_allowed(value, "this torch file")
        raise UserError("this torch file holds no state dict; a StyleGAN2 generator is needed")
    states = value.get("g_ema", value)
    if not isinstance(states, dict):
        require_allowed(states, "the generator in this torch file")
        raise UserError("'g_ema' in this torch file is no state dict; the file is damaged")
    require_allowed(states, "the generator in this torch file")
    names = [name for name in states if isinstance(name, str)]
    refuse_other_networks(names)
    if "input.input" not in states and "module.input.input" not in states:
        if any(name.endswith("synthesis.b4.const") for name in names):
            return from_arrays(_tensors(states, storages), "torch", file_size)
        listed = ", ".join(f"{name!r:.60}" for name in names[:3]) or "nothing named"
        raise UserError(f"this torch file holds no StyleGAN2 generator, but {listed}, ...")
    arrays = _tensors(states, storages)
    check_size(arrays, file_size)
    state = _generator(arrays)
    average = value.get("latent_avg")
    if is_tensor(average):
        require_allowed(average, "'latent_avg' in this torch file")
        state["mapping.w_avg"] = tensor(average, storages).reshape(-1)
    return Source(state, FORMAT, architecture="skip")
