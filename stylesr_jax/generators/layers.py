"""The generators' maths as pure functions on float32 NHWC arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SLOPE = 0.2  # of every leaky ReLU in StyleGAN2 and its descendants
SQRT2 = float(np.sqrt(2.0))


def leaky_relu(x: Array, slope: float = SLOPE) -> Array:
    """max(x, slope * x): leaky ReLU for slopes in (0, 1) or, with the maximum of both, above 1."""
    return jnp.where(x >= 0, x, slope * x)


def normalise_second_moment(x: Array, *, eps: float = 1e-8) -> Array:
    """x divided by its root mean square over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


# --- depthwise convolution ------------------------------------------------------------------


def _shifted_sum(x: Array, weight: Array) -> Array:
    """Sum of the nine shifts of x (N, H, W, C), each times its weight (3, 3, C)."""
    height, width = x.shape[1], x.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(  # type: ignore[return-value]
        padded[:, i : i + height, j : j + width, :] * weight[i, j]
        for i in range(3)
        for j in range(3)
    )


@jax.custom_vjp
def depthwise_conv3x3(x: Array, weight: Array) -> Array:
    """Depthwise 3x3 cross-correlation with zero padding, as nine shifted multiplies.

    One fused element-wise pass: XLA's grouped convolution is over ten times slower on CPUs,
    and so is the automatic transpose of the shifts, hence the rule for the gradient (the same
    pass with the kernel turned by 180 degrees).

    Args:
        x: (N, H, W, C).
        weight: (3, 3, C).

    Returns:
        (N, H, W, C).
    """
    return _shifted_sum(x, weight)


def _depthwise_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_sum(x, weight), (x, weight)


def _depthwise_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = saved
    height, width = x.shape[1], x.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Removed by the compiler wherever the weights are constants, that is nearly always.
    grad_weight = jnp.stack(
        [
            jnp.stack(
                [
                    jnp.sum(padded[:, i : i + height, j : j + width, :] * grad, axis=(0, 1, 2))
                    for j in range(3)
                ]
            )
            for i in range(3)
        ]
    )
    return _shifted_sum(grad, weight[::-1, ::-1]), grad_weight


depthwise_conv3x3.defvjp(_depthwise_forward, _depthwise_backward)


# --- Haar wavelets --------------------------------------------------------------------------


def haar_synthesis(bands: Array) -> Array:
    """Inverse 2-D Haar transform as additions and one reshape.

    Args:
        bands: (N, H, W, 4C), the channels ordered as four groups of C: low-low, low-high
            (changes sign between rows), high-low (between columns), high-high.

    Returns:
        (N, 2H, 2W, C).
    """
    n, height, width, channels = bands.shape
    low, rows, columns, both = jnp.split(0.5 * bands, 4, axis=-1)
    top, top_diff = low + rows, columns + both
    bottom, bottom_diff = low - rows, columns - both
    upper = jnp.stack([top + top_diff, top - top_diff], axis=3)  # (N, H, W, 2, C)
    lower = jnp.stack([bottom + bottom_diff, bottom - bottom_diff], axis=3)
    pixels = jnp.stack([upper, lower], axis=2)  # (N, H, 2, W, 2, C)
    return pixels.reshape(n, 2 * height, 2 * width, channels // 4)
