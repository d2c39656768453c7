"""State dicts of rosinality/stylegan2-pytorch, which pSp, e4e and ReStyle use, and of BasicSR.

The modulated convolutions multiply their weights by 1 / sqrt(in k^2) before demodulation, ours
do not; up-sampling kernels are laid out as in stylegan2-ada-pytorch. BasicSR's is the same
network under other names.
"""

import re

import numpy as np

from convert.parameters import Source
from stylesr_jax.errors import UserError

_BASICSR = (
    (r"style_mlp\.", "style."),
    (r"constant_input\.weight", "input.input"),
    (r"noises\.noise(\d)", r"noises.noise_\1"),
    (r"style_conv(1|s\.\d{1,2})\.modulated_conv\.", r"conv\1.conv."),
    (r"style_conv(1|s\.\d{1,2})\.weight", r"conv\1.noise.weight"),
    (r"style_conv(1|s\.\d{1,2})\.activate\.", r"conv\1.activate."),
    (r"(to_rgb(?:1|s\.\d{1,2}))\.modulated_conv\.", r"\1.conv."),
)
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


def convert(arrays: dict[str, np.ndarray], kind: str) -> Source:
    """A generator from a state dict with rosinality's names; `kind` is the file's.

    Raises:
        UserError: it has arrays that such a generator has not.
    """
    return Source(_generator(arrays), f"rosinality {kind}", architecture="skip")


def _rosinality_name(name: str) -> str:
    """Rosinality's name for one of BasicSR's; others stay as they are."""
    for pattern, replacement in _BASICSR:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def convert_basicsr(arrays: dict[str, np.ndarray], kind: str) -> Source:
    """A generator from a state dict with BasicSR's names; `kind` is the file's.

    Raises:
        UserError: it has arrays that such a generator has not.
    """
    renamed = {_rosinality_name(name): array for name, array in arrays.items()}
    return Source(_generator(renamed), f"BasicSR {kind}", architecture="skip")
