"""MobileStyleGAN's maths on one image's rows: separable convolutions and Haar wavelets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.layers import SLOPE, leaky_relu


class SeparableWeights(NamedTuple):
    """depthwise (3, 3, C), pointwise (C, features), noise_strength (), bias (features,)."""

    depthwise: Array
    pointwise: Array
    noise_strength: Array
    bias: Array


class BlockArguments(NamedTuple):
    """What a block takes besides features.

    Attributes:
        styles: "up" (N, 4C), "conv1" (N, C), "conv2" (N, F), perhaps "image" (N, F).
        weights: "conv1" and "conv2" (`SeparableWeights`), perhaps "image" (`ToWavelets`).
        noise1, noise2: (1 or N, H, W).
    """

    styles: Mapping[str, Any]
    weights: Mapping[str, Any]
    noise1: Array
    noise2: Array


Blocks = tuple[BlockArguments, ...]


def _stored(x: Array) -> Array:
    """x, stored: XLA's CPU backend would compute it again for each of its nine readers."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _shifted_sum(x: Array, weight: Array) -> Array:
    """Correlate x (R + 2, W, C) with weight (3, 3, C): rows as they are, columns zero-padded.

    Nine shifted multiplies in one fused pass: XLA's grouped convolution is over ten times slower
    on CPUs.
    """
    rows, width = x.shape[0] - 2, x.shape[1]
    padded = _stored(jnp.pad(x, ((0, 0), (1, 1), (0, 0))))
    return sum(  # type: ignore[return-value]
        padded[i : i + rows, j : j + width] * weight[i, j] for i in range(3) for j in range(3)
    )


def _pointwise(x: Array, weight: Array) -> Array:
    """x (R, W, C) times weight (C, features), as one matrix product: faster than a convolution."""
    return jnp.dot(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:2], -1)


@jax.custom_vjp
def separable_rows(
    x: Float[Array, "rows W C"],
    valid: Float[Array, " rows"],
    noise: Float[Array, "R W"],
    style: Float[Array, " C"],
    weights: SeparableWeights,
    saved_out: Float[Array, "R W F"] | None = None,
) -> Float[Array, "R W F"]:
    """Rows of a modulated depthwise 3x3 and pointwise layer, with noise, bias and leaky ReLU.

    For the gradient it keeps its input and output alone: the sign of the output tells the
    activation's slope.

    Args:
        x: (R + 2, W, C), one image's rows; columns are padded with a zero on either side.
        valid: (R + 2,), 0 for rows outside the image, where x counts as zero, else 1.
        noise: (R, W).
        style: (C,), the modulation of x.
        weights: the demodulation, constant in the trained network, is in the pointwise weights.
        saved_out: (R, W, features), the output if an earlier pass has saved it: then it is
            returned, and only gradients are computed. Half precision will do: the sign is exact.

    Returns:
        (R, W, features).
    """
    if saved_out is not None:
        return saved_out.astype(x.dtype)
    x = _shifted_sum(x * valid[:, None, None], style * weights.depthwise)
    x = _pointwise(x, weights.pointwise)
    return leaky_relu(x + (weights.noise_strength * noise)[..., None] + weights.bias)


def _separable_forward(
    x: Array,
    valid: Array,
    noise: Array,
    style: Array,
    weights: SeparableWeights,
    saved_out: Array | None,
) -> tuple[Array, tuple]:
    out = separable_rows(x, valid, noise, style, weights, saved_out)
    signs = out if saved_out is None else saved_out
    return out, (x, valid, noise, style, weights, signs, saved_out)


def _separable_backward(saved: tuple, grad: Array) -> tuple:
    x, valid, noise, style, weights, signs, saved_out = saved
    rows, width = grad.shape[:2]
    grad = grad * jnp.where(signs >= 0, 1.0, SLOPE)
    wide = _pointwise(grad, weights.pointwise.T)
    wide = jnp.pad(wide, ((2, 2), (0, 0), (0, 0)))
    # The transpose of the shifts that JAX would derive is several times slower.
    inner = _stored(_shifted_sum(wide, weights.depthwise[::-1, ::-1])) * valid[:, None, None]
    # What follows is removed by the compiler where nobody asks for it, that is nearly always.
    valid_x = x * valid[:, None, None]
    padded = jnp.pad(valid_x, ((0, 0), (1, 1), (0, 0)))
    grad_depthwise = jnp.stack(
        [
            jnp.stack(
                [
                    jnp.sum(padded[i : i + rows, j : j + width] * wide[2:-2], (0, 1))
                    for j in range(3)
                ]
            )
            for i in range(3)
        ]
    )
    depthwise_out = _shifted_sum(valid_x, style * weights.depthwise)
    grad_weights = SeparableWeights(
        depthwise=grad_depthwise * style,
        pointwise=jnp.einsum("rwc,rwf->cf", depthwise_out, grad),
        noise_strength=jnp.sum(grad.sum(-1) * noise),
        bias=grad.sum((0, 1)),
    )
    return (
        inner * style,
        jnp.zeros_like(valid),
        grad.sum(-1) * weights.noise_strength,
        jnp.sum(x * inner, (0, 1)),
        grad_weights,
        None if saved_out is None else jnp.zeros_like(saved_out),
    )


separable_rows.defvjp(_separable_forward, _separable_backward)


@jax.custom_vjp
def modulated_pointwise(
    x: Float[Array, "R W C"], style: Float[Array, " C"], weight: Float[Array, "C F"]
) -> Float[Array, "R W F"]:
    """x * style times weight, with few features."""
    # The style scales the weights: they are smaller than any feature map.
    return _pointwise(x, style[:, None] * weight)


def _modulated_backward(
    saved: tuple[Array, Array, Array], grad: Array
) -> tuple[Array, Array, Array]:
    x, style, weight = saved
    inner = _pointwise(grad, weight.T)
    grad_weight = style[:, None] * jnp.einsum("rwc,rwf->cf", x, grad)
    return inner * style, jnp.sum(x * inner, (0, 1)), grad_weight


modulated_pointwise.defvjp(
    lambda x, style, weight: (modulated_pointwise(x, style, weight), (x, style, weight)),
    _modulated_backward,
)


# --- Haar wavelets --------------------------------------------------------------------------


@jax.custom_vjp
def haar_synthesis(bands: Float[Array, "H W bands"]) -> Float[Array, "2*H 2*W bands//4"]:
    """Inverse 2-D Haar transform as additions and one reshape; it is orthonormal.

    Args:
        bands: (H, W, 4C), the channels ordered as four groups of C: low-low, low-high
            (changes sign between rows), high-low (between columns), high-high.

    Returns:
        (2H, 2W, C).
    """
    height, width, channels = bands.shape
    low, rows, columns, both = jnp.split(0.5 * bands, 4, axis=-1)
    top, top_diff = low + rows, columns + both
    bottom, bottom_diff = low - rows, columns - both
    upper = jnp.stack([top + top_diff, top - top_diff], axis=2)  # (H, W, 2, C)
    lower = jnp.stack([bottom + bottom_diff, bottom - bottom_diff], axis=2)
    pixels = jnp.stack([upper, lower], axis=1)  # (H, 2, W, 2, C)
    return pixels.reshape(2 * height, 2 * width, channels // 4)


def haar_analysis(pixels: Float[Array, "H W C"]) -> Float[Array, "H//2 W//2 4*C"]:
    """(2H, 2W, C) -> (H, W, 4C): the inverse, and the transpose, of `haar_synthesis`."""
    height, width, channels = pixels.shape
    quads = (0.5 * pixels).reshape(height // 2, 2, width // 2, 2, channels)
    a, b = quads[:, 0, :, 0], quads[:, 0, :, 1]
    c, d = quads[:, 1, :, 0], quads[:, 1, :, 1]
    upper, upper_diff, lower, lower_diff = a + b, a - b, c + d, c - d
    return jnp.concatenate(
        [upper + lower, upper - lower, upper_diff + lower_diff, upper_diff - lower_diff], axis=-1
    )


haar_synthesis.defvjp(
    lambda bands: (haar_synthesis(bands), None), lambda _, grad: (haar_analysis(grad),)
)
