"""Frozen feature networks and LPIPS, as pure functions that a compiled search can call.

VGG16 and AlexNet up to their last convolution, with the ImageNet weights that LPIPS was fitted
on, and the LPIPS heads of version 0.1. Images are (height, width, 3) float32 in [-1, 1].
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import weights

Net = Literal["vgg16", "alexnet"]
Params = dict[str, Any]


@dataclass(frozen=True)
class _Conv:
    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    tap: bool = False  # whether LPIPS compares what comes out


@dataclass(frozen=True)
class _Pool:
    window: int
    stride: int = 2


# Simonyan & Zisserman 2015, configuration D; Krizhevsky 2014 ("one weird trick"), as torchvision.
_LAYERS: dict[str, tuple[_Conv | _Pool, ...]] = {
    "vgg16": (
        _Conv(64),
        _Conv(64, tap=True),
        _Pool(2),
        _Conv(128),
        _Conv(128, tap=True),
        _Pool(2),
        _Conv(256),
        _Conv(256),
        _Conv(256, tap=True),
        _Pool(2),
        _Conv(512),
        _Conv(512),
        _Conv(512, tap=True),
        _Pool(2),
        _Conv(512),
        _Conv(512),
        _Conv(512, tap=True),
    ),
    "alexnet": (
        _Conv(64, kernel=11, stride=4, padding=2, tap=True),
        _Pool(3),
        _Conv(192, kernel=5, padding=2, tap=True),
        _Pool(3),
        _Conv(384, tap=True),
        _Conv(256, tap=True),
        _Conv(256, tap=True),
    ),
}
SMALLEST = {"vgg16": 16, "alexnet": 31}  # pixels of a side that leave something to compare
_FILES = {"vgg16": "lpips-vgg16.safetensors", "alexnet": "lpips-alexnet.safetensors"}

# Below this many pixels a convolution is a matrix product of gathered columns: XLA's own is up to
# 50 times slower on a CPU where hundreds of channels meet a few pixels, as in a search at 32x32.
_SMALL_AREA = 16 * 16

# ImageNet's mean and deviation for images in [-1, 1], as LPIPS rounds them.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def _check_net(net: str) -> None:
    if net not in _LAYERS:
        raise UserError(f"unknown feature network {net!r}: use one of {', '.join(_LAYERS)}")


def tap_widths(net: Net) -> tuple[int, ...]:
    """The channels of each activation that `activations` returns."""
    _check_net(net)
    return tuple(layer.features for layer in _LAYERS[net] if isinstance(layer, _Conv) and layer.tap)


def param_shapes(net: Net) -> dict[str, Any]:
    """The shapes of the parameters, in the structure of `load_features`."""
    _check_net(net)
    shapes: dict[str, Any] = {}
    width = 3
    convolutions = [layer for layer in _LAYERS[net] if isinstance(layer, _Conv)]
    for i, layer in enumerate(convolutions):
        kernel = (layer.kernel, layer.kernel, width, layer.features)
        shapes[f"conv{i}"] = {"kernel": kernel, "bias": (layer.features,)}
        width = layer.features
    return shapes | {f"head{i}": (width,) for i, width in enumerate(tap_widths(net))}


@lru_cache(maxsize=4)
def _read(path: Path, net: Net) -> Params:
    tree, header = weights.load(path)
    if header.get("kind") != "features" or header.get("net") != net:
        raise UserError(f"{path} does not hold the feature network {net}")
    if jax.tree.map(np.shape, tree) != param_shapes(net):
        raise UserError(f"{path} does not hold the parameters of {net}; convert it again")
    return tree


def load_features(net: Net, path: str | Path | None = None) -> Params:
    """The parameters of a feature network with its LPIPS heads, as float32 arrays.

    {"conv0": {"kernel": (h, w, in, out), "bias": (out,)}, ..., "head0": (channels,), ...}; by
    default from the file that comes with the package. Pass them to compiled functions as an
    argument. Raises UserError for an unknown network and for missing or unfitting files.
    """
    _check_net(net)
    file = weights.find_weights(_FILES[net]) if path is None else Path(path)
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), _read(file, net))


def _convolve(x: Array, params: Params, layer: _Conv) -> Array:
    kernel = params["kernel"]
    height, width, channels = x.shape
    if layer.stride == 1 and height * width <= _SMALL_AREA:
        reach = layer.kernel // 2
        padded = jnp.pad(x, ((reach, reach), (reach, reach), (0, 0)))
        shifts = [(i, j) for i in range(layer.kernel) for j in range(layer.kernel)]
        columns = [padded[i : i + height, j : j + width] for i, j in shifts]
        flat = jnp.concatenate(columns, axis=-1).reshape(height * width, len(shifts) * channels)
        y = (flat @ kernel.reshape(flat.shape[1], -1)).reshape(height, width, -1)
    else:
        pad = (layer.padding, layer.padding)
        strides = (layer.stride, layer.stride)
        order = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x[None], kernel, strides, (pad, pad), dimension_numbers=order
        )[0]
    return jax.nn.relu(y + params["bias"])


def _max_pool(x: Array, layer: _Pool) -> Array:
    height, width, channels = x.shape
    if layer.window == layer.stride == 2:
        # A reshape: its gradient is far cheaper on a CPU than that of a sliding window.
        cells = x[: height // 2 * 2, : width // 2 * 2]
        return cells.reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))
    window, stride = (layer.window, layer.window, 1), (layer.stride, layer.stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, stride, "VALID")


def activations(
    x: Float[Array, "..."], *, net: Net, params: Params
) -> tuple[Float[Array, "..."], ...]:
    """Rectified features of one image (H, W, 3) in [-1, 1] at the five depths LPIPS compares.

    Each is (h, w, channels), finest first. Sides must be at least 16 (vgg16) or 31 (alexnet)
    pixels; raises UserError for smaller or other images.
    """
    _check_net(net)
    if x.ndim != 3 or x.shape[-1] != 3 or min(x.shape[:2]) < SMALLEST[net]:
        raise UserError(
            f"{net} takes images (height, width, 3) of at least {SMALLEST[net]} pixels a side, "
            f"got {tuple(x.shape)}; enlarge smaller ones"
        )
    x = (x - jnp.asarray(_SHIFT, jnp.float32)) / jnp.asarray(_SCALE, jnp.float32)
    taps: list[Array] = []
    index = 0
    for layer in _LAYERS[net]:
        if isinstance(layer, _Pool):
            x = _max_pool(x, layer)
            continue
        x = _convolve(x, params[f"conv{index}"], layer)
        index += 1
        if layer.tap:
            taps.append(x)
    return tuple(taps)


def lpips_embedding(
    x: Float[Array, "..."], *, net: Net, params: Params
) -> tuple[Float[Array, "..."], ...]:
    """What LPIPS sees of one image (H, W, 3) in [-1, 1]: unit features times sqrt(head weight).

    `embedding_distance` of two of them is their LPIPS, so an image that is compared many times
    is embedded once. Raises UserError as `activations`.
    """

    def weighted(features: Array, head: Array) -> Array:
        # 1e-20 keeps the gradient finite where all features are 0; 1e-10 is LPIPS's own.
        norm = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-20)
        return features / (norm + 1e-10) * jnp.sqrt(head)

    taps = activations(x, net=net, params=params)
    return tuple(weighted(tap, params[f"head{i}"]) for i, tap in enumerate(taps))


def embedding_distance(a: tuple[Array, ...], b: tuple[Array, ...]) -> Float[Array, ""]:
    """LPIPS of two images from their `lpips_embedding`; a scalar, 0 for equal images."""
    terms = [jnp.mean(jnp.sum((x - y) ** 2, axis=-1)) for x, y in zip(a, b, strict=True)]
    return sum(terms[1:], start=terms[0])


def lpips(
    a: Float[Array, "..."], b: Float[Array, "..."], *, net: Net, params: Params
) -> Float[Array, ""]:
    """LPIPS 0.1 of two images (H, W, 3) in [-1, 1]: a scalar, 0 for equal images, lower is nearer.

    Equal to the package `lpips` 0.1.4 (`LPIPS(net="vgg")` or `"alex"`). Beware of its option
    `normalize=True`, which takes images in [0, 1]; ours are in [-1, 1] always.
    Raises UserError for images of different shapes and as `activations`.
    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features", CVPR 2018.
    """
    if a.shape != b.shape:
        raise UserError(f"lpips compares images of one shape, got {a.shape} and {b.shape}")
    return embedding_distance(
        lpips_embedding(a, net=net, params=params), lpips_embedding(b, net=net, params=params)
    )


def pooled_features(x: Float[Array, "H W C"], *, params: Params) -> Float[Array, " features"]:
    """VGG16's last rectified features averaged over the image: (H, W, 3) in [-1, 1] -> (512,).

    The features of the Fréchet distance `frechet_vgg16`, which is not FID. Raises UserError as
    `activations`.
    """
    return jnp.mean(activations(x, net="vgg16", params=params)[-1], axis=(0, 1))
