"""Resizing: one small dense matrix for each axis."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from stylesr_jax.errors import UserError

Kernel = Literal["bicubic", "bilinear", "lanczos", "area"]
Size = int | tuple[int, int]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, as in Pillow and PULSE."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


_KERNELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bicubic": _cubic,
    "bilinear": _triangle,
    "lanczos": _lanczos,
}


@lru_cache(maxsize=64)
def resize_matrix(
    n_in: int, n_out: int, *, kernel: Kernel = "bicubic", antialias: bool = True
) -> Float[np.ndarray, "n_out n_in"]:
    """The (n_out, n_in) float64 matrix that resizes one axis; its rows sum to 1.

    With `antialias` the kernel widens by n_in / n_out when shrinking, as Pillow's does; without
    it the kernel interpolates, whatever the factor. "area" averages the exact overlap of cells.
    Samples lie at cell centres; weights that fall outside are dropped and the rest renormalised.
    Raises UserError for sizes below 1 or an unknown kernel.
    """
    if n_in < 1 or n_out < 1:
        raise UserError(f"cannot resize {n_in} pixels to {n_out}: sizes start at 1")
    scale = n_in / n_out
    if kernel == "area":
        edges = np.arange(n_out)[:, None] * scale
        cells = np.arange(n_in)[None, :]
        overlap = np.minimum(edges + scale, cells + 1) - np.maximum(edges, cells)
        weights = np.maximum(overlap, 0.0)
    elif kernel in _KERNELS:
        width = max(scale, 1.0) if antialias else 1.0
        centres = (np.arange(n_out)[:, None] + 0.5) * scale
        weights = _KERNELS[kernel]((np.arange(n_in)[None, :] + 0.5 - centres) / width)
    else:
        choices = ", ".join([*_KERNELS, "area"])
        raise UserError(f"unknown resize kernel {kernel!r}: use one of {choices}")
    matrix = weights / weights.sum(axis=1, keepdims=True)
    matrix.setflags(write=False)
    return matrix


def reflect(
    index: Int[np.ndarray, "*shape"], n: int, *, repeat_edge: bool
) -> Int[np.ndarray, "*shape"]:
    """Indices beyond 0..n-1 mirrored back, about the edge pixel or about its outer border."""
    period = 2 * n if repeat_edge else max(2 * n - 2, 1)
    folded = np.mod(index, period)
    mirror = period - 1 - folded if repeat_edge else period - folded
    return np.where(folded < n, folded, mirror)


@lru_cache(maxsize=64)
def taps_matrix(
    n_in: int, taps: tuple[float, ...], *, stride: int, before: int, repeat_edge: bool
) -> Float[np.ndarray, "n_out n_in"]:
    """Strided correlation with `taps` after mirror padding, as an (n_in // stride, n_in) matrix.

    The first output's first tap lies `before` pixels ahead of the axis. The mirror stands at the
    outer border (`repeat_edge`) or at the edge pixel's centre. float64, read-only.
    """
    n_out = n_in // stride
    matrix = np.zeros((n_out, n_in))
    rows = np.arange(n_out)[:, None]
    columns = rows * stride - before + np.arange(len(taps))[None, :]
    columns = reflect(columns, n_in, repeat_edge=repeat_edge)
    np.add.at(matrix, (np.broadcast_to(rows, columns.shape), columns), np.asarray(taps)[None, :])
    matrix.setflags(write=False)
    return matrix


def cubic_taps(factor: int) -> tuple[float, ...]:
    """The 4 * factor weights of antialiased bicubic down-sampling by a whole factor; sum 1."""
    taps = _cubic((np.arange(4 * factor) - 2 * factor + 0.5) / factor)
    return tuple((taps / taps.sum()).tolist())


def apply_separable(
    rows: Float[np.ndarray, "h H"],
    columns: Float[np.ndarray, "w W"],
    x: Float[Array, "*batch H W C"],
) -> Float[Array, "*batch h w C"]:
    """(h, H) and (w, W) matrices on an image (..., H, W, C) -> (..., h, w, C)."""
    (h, height), (w, width) = rows.shape, columns.shape
    r, c = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
    highest = jax.lax.Precision.HIGHEST

    def along_rows(x: Array) -> Array:
        return jnp.einsum("hH,...HWC->...hWC", r, x, precision=highest)

    def along_columns(x: Array) -> Array:
        return jnp.einsum("wW,...hWC->...hwC", c, x, precision=highest)

    # The cheaper order: multiplications of rows first against columns first.
    if h * width * (height + w) <= height * w * (width + h):
        return along_columns(along_rows(x))
    return along_rows(along_columns(x))


def resize(
    x: Float[Array, "*batch H W C"],
    size: tuple[int, int],
    *,
    kernel: Kernel = "bicubic",
    antialias: bool = True,
) -> Float[Array, "*batch h w C"]:
    """Resize images (..., H, W, C) to (..., h, w, C), up or down, each axis by itself.

    size is (height, width). The default equals Pillow's BICUBIC on float images (mode "F"), so
    images that a user shrank with Pillow agree; "bilinear" and "lanczos" equal Pillow's too.
    See `resize_matrix` for the kernels. Raises UserError for bad sizes and kernels.
    """
    height, width = x.shape[-3], x.shape[-2]
    return apply_separable(
        resize_matrix(height, size[0], kernel=kernel, antialias=antialias),
        resize_matrix(width, size[1], kernel=kernel, antialias=antialias),
        x,
    )


def scaled_size(shape: tuple[int, ...], longer: int) -> tuple[int, int]:
    """The (height, width) nearest to `shape`'s aspect whose longer side has `longer` pixels."""
    height, width = shape[:2]
    scale = longer / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)
