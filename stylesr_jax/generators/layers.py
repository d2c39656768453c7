"""The generators' maths as pure functions on float32 NHWC arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

SLOPE = 0.2  # of every leaky ReLU in StyleGAN2 and its descendants
SQRT2 = float(np.sqrt(2.0))


def leaky_relu(x: Float[Array, "*shape"], slope: float = SLOPE) -> Float[Array, "*shape"]:
    """max(x, slope * x): leaky ReLU for slopes in (0, 1) or, with the maximum of both, above 1."""
    return jnp.where(x >= 0, x, slope * x)


def normalise_second_moment(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x divided by its root mean square over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


# --- StyleGAN2's modulated convolutions -----------------------------------------------------

_NHWC = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], tuple[int, int]]


def _convolve(x: Array, weight: Array, padding: str | Padding) -> Array:
    return jax.lax.conv_general_dilated(x, weight, (1, 1), padding, dimension_numbers=_NHWC)


def _turned(weight: Array) -> Array:
    """The kernel of the transposed convolution: turned by 180 degrees, inputs as outputs.

    The barrier keeps XLA from folding the transposition into the convolution's layout, for
    which its CPU backend has only a routine that is six times slower.
    """
    return jax.lax.optimization_barrier(weight[::-1, ::-1].swapaxes(2, 3))


@jax.custom_vjp
def conv3x3(x: Float[Array, "N H W I"], weight: Float[Array, "3 3 I O"]) -> Float[Array, "N H W O"]:
    """3x3 cross-correlation with zero padding: x (N, H, W, I), weight (3, 3, I, O)."""
    return _convolve(x, weight, "SAME")


def _conv3x3_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv3x3(x, weight), (x, weight)


def _conv3x3_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = saved
    # The compiler removes the weight's gradient wherever nothing asks for it.
    (grad_weight,) = jax.vjp(lambda w: _convolve(x, w, "SAME"), weight)[1](grad)
    return _convolve(grad, _turned(weight), "SAME"), grad_weight


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def sum_of_squares(weight: Float[Array, "K L I O"]) -> Float[Array, "I O"]:
    """Squares of a (K, L, I, O) kernel summed over its positions: (I, O).

    Added up one position after the other, a single element-wise pass on every backend.
    """
    rows, columns = weight.shape[:2]
    terms = [jnp.square(weight[i, j]) for i in range(rows) for j in range(columns)]
    return sum(terms[1:], terms[0])


def demodulation(style: Float[Array, "N I"], squares: Float[Array, "I O"]) -> Float[Array, "N O"]:
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def up_conv3x3(
    x: Float[Array, "N H W I"], weight: Float[Array, "3 3 I O"], taps: tuple[float, ...]
) -> Float[Array, "N 2*H 2*W O"]:
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
    return _filter_parts(_scatter(x, weight), taps)


Parts = tuple[tuple[Array, Array], tuple[Array, Array]]  # by parity of the row, of the column
_PADS = ((1, 1), (0, 0))  # parity 0 has one row more than x, parity 1 as many


def _scatter(x: Array, weight: Array) -> Parts:
    """The transposed convolution, (2H + 1, 2W + 1) pixels, as its four parts."""
    turned = weight[::-1, ::-1]
    kernels = (
        (turned[::2, ::2], turned[::2, 1:2]),
        (turned[1:2, ::2], turned[1:2, 1:2]),
    )
    return tuple(  # type: ignore[return-value]
        tuple(_convolve(x, kernels[i][j], (_PADS[i], _PADS[j])) for j in range(2)) for i in range(2)
    )


def _filter_parts(parts: Parts, taps: tuple[float, ...]) -> Array:
    """z[2a + p] = sum over k of taps[k] t[2a + p + k - 1], along both axes of t."""
    _, height, width, _ = parts[1][1].shape
    padded = [
        [jnp.pad(parts[i][j], ((0, 0), (i, i), (j, j), (0, 0))) for j in range(2)] for i in range(2)
    ]

    def filtered(p: int, q: int) -> Array:
        terms = []
        for k, row_tap in enumerate(taps):
            row, i = divmod(p + k - 1, 2)
            for m, col_tap in enumerate(taps):
                col, j = divmod(q + m - 1, 2)
                r, c = row + i, col + j  # parity 1 carries one row of padding in front
                patch = padded[i][j][:, r : r + height, c : c + width]
                terms.append(row_tap * col_tap * patch)
        return sum(terms[1:], terms[0])

    return _interleave(((filtered(0, 0), filtered(0, 1)), (filtered(1, 0), filtered(1, 1))))


def _filter_parts_transposed(grad: Array, taps: tuple[float, ...]) -> Parts:
    """The transpose of `_filter_parts`: t[m] = sum over k of taps[k] z[m + 1 - k]."""
    _, height, width, _ = grad.shape
    padded = jnp.pad(grad, ((0, 0), (2, 2), (2, 2), (0, 0)))

    def part(i: int, j: int) -> Array:
        rows, cols = height // 2 + 1 - i, width // 2 + 1 - j
        terms = []
        for k, row_tap in enumerate(taps):
            for m, col_tap in enumerate(taps):
                r, c = i + 3 - k, j + 3 - m
                patch = padded[:, r : r + 2 * rows - 1 : 2, c : c + 2 * cols - 1 : 2]
                terms.append(row_tap * col_tap * patch)
        return sum(terms[1:], terms[0])

    return ((part(0, 0), part(0, 1)), (part(1, 0), part(1, 1)))


def _up_conv3x3_forward(
    x: Array, weight: Array, taps: tuple[float, ...]
) -> tuple[Array, tuple[Array, Array]]:
    return up_conv3x3(x, weight, taps), (x, weight)


def _up_conv3x3_backward(
    taps: tuple[float, ...], saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, weight = saved
    parts = _filter_parts_transposed(grad, taps)
    # The compiler removes the weight's gradient wherever nothing asks for it.
    (grad_weight,) = jax.vjp(lambda w: _scatter(x, w), weight)[1](parts)
    kernel = jax.lax.optimization_barrier(weight.swapaxes(2, 3))  # see `_turned`
    terms = [
        _convolve(parts[i][j], kernel[i::2, j::2], "VALID") for i in range(2) for j in range(2)
    ]
    return sum(terms[1:], terms[0]), grad_weight


up_conv3x3.defvjp(_up_conv3x3_forward, _up_conv3x3_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def upsample2x(x: Float[Array, "N H W C"], taps: tuple[float, ...]) -> Float[Array, "N 2*H 2*W C"]:
    """Twice the size with a separable four-tap filter, one axis after the other.

    Args:
        x: (N, H, W, C), zero outside.
        taps: the filter along one axis, times 2 (the gain that makes up for the zeros put in).

    Returns:
        (N, 2H, 2W, C): even pixels taps[0] x[a - 1] + taps[2] x[a], odd ones
        taps[1] x[a] + taps[3] x[a + 1].
    """
    for axis in (1, 2):
        before, after = _neighbours(x, axis)
        phases = [taps[0] * before + taps[2] * x, taps[1] * x + taps[3] * after]
        shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def _neighbours(x: Array, axis: int) -> tuple[Array, Array]:
    """x[a - 1] and x[a + 1] along `axis`, zero outside."""
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(x, padding)
    before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    return before, jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)


def _upsample2x_forward(x: Array, taps: tuple[float, ...]) -> tuple[Array, None]:
    return upsample2x(x, taps), None


def _upsample2x_backward(taps: tuple[float, ...], _: None, grad: Array) -> tuple[Array]:
    for axis in (2, 1):
        even = jax.lax.slice_in_dim(grad, 0, None, stride=2, axis=axis)
        odd = jax.lax.slice_in_dim(grad, 1, None, stride=2, axis=axis)
        even_after = _neighbours(even, axis)[1]
        odd_before = _neighbours(odd, axis)[0]
        grad = taps[0] * even_after + taps[2] * even + taps[1] * odd + taps[3] * odd_before
    return (grad,)


upsample2x.defvjp(_upsample2x_forward, _upsample2x_backward)
