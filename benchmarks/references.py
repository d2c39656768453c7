"""Generators of two PyTorch projects, from checkouts that the user supplies.

Nothing of them is part of this project: the checkout is put on Python's path, its network is
built, and weights are carried over. PyTorch is imported only here, and only when asked for.
"""

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from convert import ada_pytorch
from convert.build import build, to_network
from convert.mobilestylegan import bands_first
from stylesr_jax.errors import UserError, pip_install
from stylesr_jax.generators.base import Generator

ADA, MOBILE = "stylegan2-ada-pytorch", "MobileStyleGAN.pytorch"
EPSILON = 1e-8  # in the square root of both references' demodulation


class Reference(NamedTuple):
    """A reference's network and ours with the same weights.

    Attributes:
        kind: `ADA` or `MOBILE`.
        generator: ours.
        forms: name -> (torch styles (N, num_ws, w_dim)) -> torch images (N, 3, H, W), the ways
            in which the reference can compute them.
        torch: the module.
        device: of the network, for torch.
    """

    kind: str
    generator: Generator
    forms: dict[str, Callable[[Any], Any]]
    torch: Any
    device: str


def detect(path: Path) -> str:
    """Which project a checkout is of.

    Raises:
        UserError: neither of the two that are known.
    """
    if (path / "training" / "networks.py").is_file() and (path / "dnnlib").is_dir():
        return ADA
    if (path / "core" / "models" / "mobile_synthesis_network.py").is_file():
        return MOBILE
    raise UserError(f"{path} is no checkout of {ADA} or {MOBILE}")


def _import(path: Path, name: str) -> Any:
    """A module of the checkout.

    Raises:
        UserError: PyTorch or something else that the checkout needs is not installed.
    """
    try:
        importlib.import_module("pkg_resources")
    except ImportError:  # gone from setuptools; pytorch_wavelets still imports a name from it
        stand_in = types.ModuleType("pkg_resources")
        stand_in.resource_stream = None  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stand_in
    sys.path.insert(0, str(path.resolve()))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{path} cannot be imported ({error}); install what it needs") from error


def load_reference(path: Path, *, resolution: int, channel_base: int) -> Reference:
    """The checkout's generator, and ours with its weights.

    Args:
        path: the checkout.
        resolution, channel_base: of the random network; MobileStyleGAN has the embedded weights
            instead.

    Raises:
        UserError: the checkout is unknown, or something that it needs is not installed.
    """
    kind = detect(path)
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UserError(f"it is measured against PyTorch: {pip_install('torch')}") from error
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    if kind == ADA:
        networks = _import(path, "training.networks")
        network, generator = _random_ada(torch, networks, resolution, channel_base)
        synthesis = network.synthesis.to(device)
        forms = {
            f"fused_modconv={fused}": lambda ws, fused=fused: synthesis(
                ws, noise_mode="const", fused_modconv=fused
            )
            for fused in (True, False)
        }
    else:
        from stylesr_jax import load_generator

        generator = load_generator()
        channels = generator.config.channels  # type: ignore[attr-defined]
        module = _import(path, "core.models.mobile_synthesis_network")
        network = module.MobileSynthesisNetwork(generator.w_dim, [*channels])
        state = mobile_state(generator.params, channels)
        known = network.state_dict()
        unknown = [name for name, value in state.items() if name not in known]
        if unknown:
            raise UserError(f"this checkout's network has no {unknown[0]}; take another commit")
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        network.load_state_dict(tensors, strict=False)  # image heads that are not used are missing
        network = network.to(device)
        noise = [torch.from_numpy(m).to(device) for m in mobile_noise(generator.params["noise"])]
        forms = {"as published": lambda ws: network(ws, noise=noise)["img"]}
    network.eval().requires_grad_(False)
    return Reference(kind, generator, forms, torch, device)


# --- stylegan2-ada-pytorch ------------------------------------------------------------------


def _random_ada(
    torch: Any, networks: Any, resolution: int, channel_base: int
) -> tuple[Any, Generator]:
    """A random network, and ours from its state dict."""
    torch.manual_seed(0)
    network = networks.Generator(
        512, 0, 512, resolution, 3, synthesis_kwargs={"channel_base": channel_base}
    )
    with torch.no_grad():  # an untrained network's are all zero
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength") or name.endswith(("conv0.bias", "conv1.bias")):
                parameter.normal_(0.0, 0.1)
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    source = ada_pytorch.convert(arrays, "random")
    return network, build(to_network(source, name=f"{ADA}, {resolution} px"), draws=1000)


# --- MobileStyleGAN.pytorch -----------------------------------------------------------------


def style_inverse(weight: np.ndarray, scale: float) -> np.ndarray:
    """The buffer "style_inv" (I,) under which weights (O, I, k, k) need no demodulation.

    The reference divides the weights by their norm with `style_inv`; ours come with that division
    made. So every output's norm must be 1, which is linear in the squares of the buffer. They are
    found by least squares, without those that come out negative.
    """
    norms = np.square(scale * weight.astype(np.float64)).sum(axis=(2, 3))  # (O, I)
    kept = np.arange(norms.shape[1])
    while True:
        found, *_ = np.linalg.lstsq(norms[:, kept], np.full(len(norms), 1 - EPSILON), rcond=1e-7)
        if np.all(found >= 0.0):
            break
        kept = kept[found > 0.0]
    squares = np.zeros(norms.shape[1])
    squares[kept] = found
    return np.sqrt(squares).astype(np.float32)


def mobile_state(params: Mapping[str, Any], channels: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Our parameters under the reference's names and in its layouts.

    Image heads of blocks other than the last are missing: they are never used.
    """
    params = jax.tree.map(np.asarray, params["synthesis"])
    state: dict[str, np.ndarray] = {}

    def natural(count: int) -> np.ndarray:
        """Where each of the reference's channels is among ours, which have bands together."""
        return np.argsort(bands_first(count))

    def modulation(name: str, dense: Any, gain: float) -> None:
        state[f"{name}.modulation.weight"] = dense["weight"].T / np.float32(gain)
        state[f"{name}.modulation.bias"] = dense["bias"] / np.float32(gain)

    def output(name: str, layer: Any, order: np.ndarray) -> None:
        state[f"{name}.noise.weight"] = layer["noise_strength"].reshape(1)
        state[f"{name}.bias"] = layer["bias"][order].reshape(1, -1, 1, 1)

    first = params["input"]
    order = natural(channels[0])
    scale = float(1.0 / np.sqrt(9 * channels[0]))
    dense = first["weight"][..., order].transpose(3, 2, 0, 1)
    state["input.input"] = first["constant"].transpose(2, 0, 1)[None]
    state["conv1.conv.weight"] = dense
    state["conv1.conv.style_inv"] = style_inverse(dense, scale).reshape(1, 1, -1, 1, 1)
    modulation("conv1.conv", first["modulation"], scale)
    output("conv1", first["output"], order)
    for i, width in enumerate(channels[1:]):
        block = params[f"block{i}"]
        up = block["up_modulation"]
        state[f"layers.{i}.up.modulation.weight"] = up["weight"].T[order]
        state[f"layers.{i}.up.modulation.bias"] = up["bias"][order]
        for name in ("conv1", "conv2"):
            layer, target = block[name], f"layers.{i}.{name}"
            last = name == "conv2" and i < len(channels) - 2
            order = natural(width) if last else np.arange(width)
            depthwise = layer["depthwise"].transpose(2, 0, 1)[:, None]
            pointwise = layer["pointwise"][:, order].T[..., None, None]
            scale = float(1.0 / np.sqrt(9 * len(depthwise)))
            inverse = style_inverse(depthwise[:, 0] * pointwise, scale)
            state[f"{target}.conv.weight_dw"] = depthwise
            state[f"{target}.conv.weight_permute"] = pointwise
            state[f"{target}.conv.style_inv"] = inverse.reshape(1, 1, -1, 1, 1)
            modulation(f"{target}.conv", layer["modulation"], scale)
            output(target, layer["output"], order)
    image = params["to_image"]
    target, order = f"layers.{len(channels) - 2}.to_img", natural(12)
    modulation(f"{target}.conv", image["modulation"], float(1.0 / np.sqrt(channels[-1])))
    state[f"{target}.conv.weight"] = image["weight"][:, order].T[..., None, None]
    state[f"{target}.bias"] = image["bias"][order].reshape(1, -1, 1, 1)
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


def mobile_noise(maps: Mapping[str, Any]) -> list[np.ndarray]:
    """Noise maps as the reference takes them: (1, 1, 4, 4), then (2, 1, s, s) for each block."""
    found = [np.array(maps[name])[None] for name in sorted(maps)]
    pairs = [np.stack(found[i : i + 2]) for i in range(1, len(found), 2)]
    return [found[0][None], *pairs]
