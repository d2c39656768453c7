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


# --- StyleGAN2's modulated convolutions -----------------------------------------------------

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv3x3(x: Array, weight: Array) -> Array:
    """3x3 cross-correlation with zero padding: x (N, H, W, I), weight (3, 3, I, O)."""
    return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=_NHWC)


def demodulation(style: Array, squares: Array) -> Array:
    """1 / norm of each output channel's modulated weights.

    Args:
        style: (N, I).
        squares: (I, O), the weights' squares summed over the kernel's positions.

    Returns:
        (N, O). Source: Karras et al. 2020, equation 3.
    """
    total = jnp.dot(jnp.square(style), squares, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.rsqrt(total + 1e-8)


def _interleave(rows: tuple[tuple[Array, Array], tuple[Array, Array]]) -> Array:
    """The four phases rows[p][q] (N, H, W, C) of an image -> (N, 2H, 2W, C)."""
    n, height, width, channels = rows[0][0].shape
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)
    return pixels.reshape(n, 2 * height, 2 * width, channels)


def up_conv3x3(x: Array, weight: Array, taps: tuple[float, ...]) -> Array:
    """Transposed 3x3 convolution with stride 2, then a separable four-tap low-pass filter.

    The transposed convolution is four small convolutions, one for each parity of the output's
    row and column, which together use each of the nine weights once. (The other way to fuse
    the two, one 3x3 convolution to 4 * O channels, costs four times the arithmetic.) The filter
    reads the four parts as they are, so the image with their pixels in place is made once.

    Args:
        x: (N, H, W, I).
        weight: (3, 3, I, O), as a transposed convolution scatters it: y[2a + i] += w[i] x[a].
        taps: the filter along one axis, times 2 (the gain that makes up for the stride).

    Returns:
        (N, 2H, 2W, O).
    """
    n, height, width, _ = x.shape

    def part(rows: Array, row_pad: int, col_pad: int) -> Array:
        padding = ((row_pad, row_pad), (col_pad, col_pad))
        return jax.lax.conv_general_dilated(x, rows, (1, 1), padding, dimension_numbers=_NHWC)

    # Parity 0 has H + 1 rows (from -1 on, taps 2 and 0), parity 1 has H (tap 1).
    turned = weight[::-1, ::-1]
    parts = (
        (part(turned[::2, ::2], 1, 1), part(turned[::2, 1:2], 1, 0)),
        (part(turned[1:2, ::2], 0, 1), part(turned[1:2, 1:2], 0, 0)),
    )
    # z[2a + p] = sum over k of taps[k] t[2a + p + k - 1], t being the transposed convolution.
    widened = [
        [jnp.pad(parts[i][j], ((0, 0), (i, i), (j, j), (0, 0))) for j in range(2)] for i in range(2)
    ]

    def filtered(p: int, q: int) -> Array:
        terms = []
        for k, row_tap in enumerate(taps):
            row, i = divmod(p + k - 1, 2)
            for m, col_tap in enumerate(taps):
                col, j = divmod(q + m - 1, 2)
                r, c = row + i, col + j  # parity 1 carries one row of padding in front
                patch = widened[i][j][:, r : r + height, c : c + width]
                terms.append(row_tap * col_tap * patch)
        return sum(terms[1:], terms[0])

    return _interleave(((filtered(0, 0), filtered(0, 1)), (filtered(1, 0), filtered(1, 1))))


def upsample2x(x: Array, taps: tuple[float, ...]) -> Array:
    """Twice the size with a separable four-tap filter, one axis after the other.

    Args:
        x: (N, H, W, C), zero outside.
        taps: the filter along one axis, times 2 (the gain that makes up for the zeros put in).

    Returns:
        (N, 2H, 2W, C): even pixels taps[0] x[a - 1] + taps[2] x[a], odd ones
        taps[1] x[a] + taps[3] x[a + 1].
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padding = [(0, 0)] * x.ndim
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding)
        before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
        after = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
        phases = [taps[0] * before + taps[2] * x, taps[1] * x + taps[3] * after]
        shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x
