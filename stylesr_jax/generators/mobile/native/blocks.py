"""Calls of MobileStyleGAN's blocks in native code on CPUs, over twice as fast as XLA's.

`library` has the code, which is called inside jitted programs through `jax.ffi`. XLA cannot look
into the calls: second derivatives, and arrays that `jit` itself spreads over devices, want
`config.portable()`. The engine's `shard_map` keeps every call on one device.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.mobile.native import library
from stylesr_jax.generators.mobile.separable import BlockArguments, Blocks, haar_synthesis

LANES = 16  # channels come in multiples of this: the longest vectors' floats
HALF = 8  # the kernels' kHalf: six numbers of two pixels, and two zeros

Params = Mapping[str, Any]


def fits(bands: int, features: int) -> bool:
    """Whether the kernels can compute a block of 4C input bands and F features."""
    return bands % (4 * LANES) == 0 and features % LANES == 0


class Residuals(NamedTuple):
    """What a block keeps for its gradient.

    Attributes:
        x: (N, H / 2, W / 2, 4C), the features that entered; after another block raw.
        out: (N, H, W, F), or where another block activates, or with an image, (N, H, W, 0).
        layer1: (N, H, W, F), its output, bfloat16 in uint16.
        layer2: with an image the same; else (N, H, W, 0).
    """

    x: Array
    out: Array
    layer1: Array
    layer2: Array


def _style(styles: Params) -> Array:
    """The up-sampling's style times the first layer's, which scales every band: (N, 4C)."""
    return styles["up"] * jnp.tile(styles["conv1"], 4)


def _pixels(bands: Array) -> Array:
    """Haar bands (K, 12) as two rows of two RGB pixels, each row with two zeros: (K, 16)."""
    rows = haar_synthesis(bands[:, None]).reshape(-1, 2, 6)
    return jnp.pad(rows, ((0, 0), (0, 0), (0, HALF - 6))).reshape(-1, 2 * HALF)


def _head(weights: Params) -> tuple[Array, Array]:
    """From features to pixels (F, 16) and what is added (1, 16); without an image (0, 16)."""
    if "image" not in weights:
        return jnp.zeros((0, 2 * HALF), jnp.float32), jnp.zeros((1, 2 * HALF), jnp.float32)
    return _pixels(weights["image"]["weight"]), _pixels(weights["image"]["bias"][None])


def _image_style(styles: Params) -> Array:
    """The image's style (N, F), or without an image (N, 0)."""
    return styles.get("image", jnp.zeros((len(styles["up"]), 0), jnp.float32))


def _check(x: Array, block: BlockArguments) -> None:
    """Raise ValueError for shapes that the kernels, which trust them, would read beyond."""
    styles, weights, *noises = block
    count, half_height, half_width, bands = x.shape
    features = weights["conv1"].pointwise.shape[1]
    widths = {"up": bands, "conv1": bands // 4, "conv2": features, "image": features}
    for name, style in styles.items():
        if style.shape != (count, widths[name]):
            raise ValueError(f"style {name!r} has shape {style.shape}, not {count, widths[name]}")
    if not fits(bands, features):
        raise ValueError(f"{bands} bands and {features} features are not multiples of {LANES}")
    for noise in noises:
        size = (2 * half_height, 2 * half_width)
        if noise.shape not in ((1, *size), (count, *size)):
            raise ValueError(f"a noise map has shape {noise.shape[1:]}, not {size}")


def forward(
    x: Float[Array, "N h w bands"], blocks: Blocks, *, for_gradient: bool = False
) -> tuple[Float[Array, "N H W F"], list[Residuals]]:
    """One block after the other: the last one's output, or the image.

    Between two blocks features lack their activation, which the second one makes up for: that
    saves a pass over memory.

    Args:
        x: (N, H / 2, W / 2, 4C), features before the first block's up-sampling.
        blocks: their arguments; only the last may have an image.
        for_gradient: keep what `backward` needs.

    Returns:
        (N, H, W, F) or (N, 2H, 2W, 3), and what `backward` needs, if it was asked for.

    Raises:
        ValueError: the shapes do not fit one another, the features are not float32, or a block
            before the last has an image.
        RuntimeError: there is no library (see `library.ready`).
    """
    if not library.ready():
        raise RuntimeError("native blocks cannot be had: ask library.ready() first")
    if x.dtype != jnp.float32:  # the kernels trust this too
        raise ValueError(f"native blocks want float32, not {x.dtype}")
    if any("image" in block.styles for block in blocks[:-1]):
        raise ValueError("only the last of several blocks may have an image")
    residuals = []
    for i, block in enumerate(blocks):
        x, kept = _forward(x, block, i > 0, i < len(blocks) - 1, for_gradient=for_gradient)
        residuals.append(kept)
    return x, residuals


def _forward(
    x: Array, block: BlockArguments, raw_in: bool, raw_out: bool, *, for_gradient: bool
) -> tuple[Array, Residuals]:
    """One block; raw features lack their activation."""
    _check(x, block)
    styles, weights, noise1, noise2 = block
    count, half_height, half_width, _ = x.shape
    height, width = 2 * half_height, 2 * half_width
    first, second = weights["conv1"], weights["conv2"]
    features = first.pointwise.shape[1]
    headed = "image" in styles
    head, head_bias = _head(weights)

    def kept_if(wanted: bool) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, height, width, features * wanted), jnp.uint16)

    image = (count, 2 * height, 2 * width, 3) if headed else (count, height, width, features)
    out, layer1, layer2 = jax.ffi.ffi_call(
        library.FORWARD,
        (
            jax.ShapeDtypeStruct(image, jnp.float32),
            kept_if(for_gradient),
            kept_if(for_gradient and headed),
        ),
        vmap_method="expand_dims",
    )(  # weights that all examples share have a leading dimension of 1
        x,
        _style(styles),
        first.depthwise[None],
        first.pointwise[None],
        first.bias[None],
        first.noise_strength * noise1,
        styles["conv2"][:, None, None] * second.depthwise,
        second.pointwise[None],
        second.bias[None],
        second.noise_strength * noise2,
        _image_style(styles)[..., None] * head,
        head_bias,
        raw_in=raw_in,
        raw_out=raw_out,
    )
    kept_out = jnp.zeros((count, height, width, 0), jnp.float32) if headed or raw_out else out
    return out, Residuals(x, kept_out, layer1, layer2)


def backward(
    blocks: Blocks, residuals: list[Residuals], grad: Float[Array, "N H W F"]
) -> tuple[Float[Array, "N h w bands"], Blocks]:
    """The gradient of `forward` with respect to x, the styles and each example's noise.

    Args:
        blocks: as for `forward`; without the noise maps whose gradients are not wanted.
        residuals: what `forward` kept.
        grad: of its output.

    Returns:
        The gradients of x and of the blocks, None for their weights and what is not wanted.
    """
    gradients = []
    for i, (block, kept) in reversed(list(enumerate(zip(blocks, residuals, strict=True)))):
        grad, grads = _backward(block, kept, grad, i > 0, i < len(blocks) - 1)
        gradients.append(grads)
    return grad, tuple(reversed(gradients))


def _backward(
    block: BlockArguments, kept: Residuals, grad: Array, raw_in: bool, raw_out: bool
) -> tuple[Array, BlockArguments]:
    """One block; raw features lack their activation."""
    styles, weights, *noises = block
    count, height, width, _ = kept.layer1.shape
    first, second = weights["conv1"], weights["conv2"]
    image = _image_style(styles)
    widths = [styles["up"].shape[1], styles["conv2"].shape[1]]
    grad_x, grad_styles, *grad_noises = jax.ffi.ffi_call(
        library.BACKWARD,
        (
            jax.ShapeDtypeStruct(kept.x.shape, kept.x.dtype),
            jax.ShapeDtypeStruct((count, sum(widths) + image.shape[1]), jnp.float32),
            *(
                jax.ShapeDtypeStruct((count, height, width * (noise is not None)), jnp.float32)
                for noise in noises
            ),
        ),
        vmap_method="expand_dims",
    )(
        kept.x,
        _style(styles),
        first.depthwise[None, ::-1, ::-1],
        first.pointwise[None],
        styles["conv2"],
        second.depthwise[None, ::-1, ::-1],
        second.pointwise[None],
        image,
        _head(weights)[0][None],
        kept.out,
        kept.layer1,
        kept.layer2,
        grad,
        raw_in=raw_in,
        raw_out=raw_out,
    )
    grad_style, grad_style2, grad_image = jnp.split(grad_styles, [widths[0], sum(widths)], axis=1)
    grad_conv1 = (grad_style * styles["up"]).reshape(count, 4, widths[0] // 4).sum(axis=1)
    named = {
        "up": grad_style * jnp.tile(styles["conv1"], 4),
        "conv1": grad_conv1,
        "conv2": grad_style2,
        "image": grad_image,
    }

    def of_noise(noise: Array | None, strength: Array, grad: Array) -> Array | None:
        if noise is None:
            return None
        return strength * (grad.sum(0, keepdims=True) if len(noise) == 1 else grad)

    strengths = (first.noise_strength, second.noise_strength)
    return grad_x, BlockArguments(
        {name: named[name] for name in styles},
        None,  # type: ignore[arg-type]
        *map(of_noise, noises, strengths, grad_noises),  # type: ignore[arg-type]
    )
