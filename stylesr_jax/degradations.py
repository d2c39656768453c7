"""How a good image becomes the one we are given: y = A(x), then noise.

Every degradation is a frozen pytree. Calling it applies A, the deterministic and differentiable
part that a search inverts; `degrade(key, x)` makes data: A, the random parts, and the true codec.
Noise is apart from A: calling a noise stage changes nothing.

Images are (height, width, channels) float32 in [-1, 1]. Sizes, widths and qualities are static
(they decide shapes and kernels); masks and angles are leaves, so that a compiled search serves
every image of a size without tracing again.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import ArrayLike
from PIL import Image

from stylesr_jax.errors import UserError

Kernel = Literal["bicubic", "bilinear", "lanczos", "area"]
Size = int | tuple[int, int]


# Resizing: one small dense matrix for each axis


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
) -> np.ndarray:
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
        known = ", ".join([*_KERNELS, "area"])
        raise UserError(f"unknown resize kernel {kernel!r}: use one of {known}")
    matrix = weights / weights.sum(axis=1, keepdims=True)
    matrix.setflags(write=False)
    return matrix


def _reflect(index: np.ndarray, n: int, *, repeat_edge: bool) -> np.ndarray:
    """Indices beyond 0..n-1 mirrored back, about the edge pixel or about its outer border."""
    period = 2 * n if repeat_edge else max(2 * n - 2, 1)
    folded = np.mod(index, period)
    mirror = period - 1 - folded if repeat_edge else period - folded
    return np.where(folded < n, folded, mirror)


@lru_cache(maxsize=64)
def taps_matrix(
    n_in: int, taps: tuple[float, ...], *, stride: int, before: int, repeat_edge: bool
) -> np.ndarray:
    """Strided correlation with `taps` after mirror padding, as an (n_in // stride, n_in) matrix.

    The first output's first tap lies `before` pixels ahead of the axis. The mirror stands at the
    outer border (`repeat_edge`) or at the edge pixel's centre. float64, read-only.
    """
    n_out = n_in // stride
    matrix = np.zeros((n_out, n_in))
    rows = np.arange(n_out)[:, None]
    columns = rows * stride - before + np.arange(len(taps))[None, :]
    columns = _reflect(columns, n_in, repeat_edge=repeat_edge)
    np.add.at(matrix, (np.broadcast_to(rows, columns.shape), columns), np.asarray(taps)[None, :])
    matrix.setflags(write=False)
    return matrix


def cubic_taps(factor: int) -> tuple[float, ...]:
    """The 4 * factor weights of antialiased bicubic down-sampling by a whole factor; sum 1."""
    taps = _cubic((np.arange(4 * factor) - 2 * factor + 0.5) / factor)
    return tuple((taps / taps.sum()).tolist())


def _apply_separable(rows: np.ndarray, columns: np.ndarray, x: Array) -> Array:
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
    x: Array, size: tuple[int, int], *, kernel: Kernel = "bicubic", antialias: bool = True
) -> Array:
    """Resize images (..., H, W, C) to (..., h, w, C), up or down, each axis by itself.

    size is (height, width). The default equals Pillow's BICUBIC on float images (mode "F"), so
    images that a user shrank with Pillow agree; "bilinear" and "lanczos" equal Pillow's too.
    See `resize_matrix` for the kernels. Raises UserError for bad sizes and kernels.
    """
    height, width = x.shape[-3], x.shape[-2]
    return _apply_separable(
        resize_matrix(height, size[0], kernel=kernel, antialias=antialias),
        resize_matrix(width, size[1], kernel=kernel, antialias=antialias),
        x,
    )


# The interface


class Degradation(struct.PyTreeNode):
    """y = A(x) for one image (H, W, C) float32 in [-1, 1]."""

    linear: ClassVar[bool] = True

    @property
    def exact(self) -> bool:
        """Whether A is linear and data suffer nothing but A."""
        return self.linear

    def __call__(self, x: Array) -> Array:
        """A(x): (H, W, C) -> (h, w, c), deterministic and differentiable."""
        raise NotImplementedError

    def degrade(self, key: Array, x: Array) -> Array:
        """A(x) with whatever is random drawn from `key`, for making data. Not clipped."""
        return self.realise(key)(x)

    def realise(self, key: Array) -> "Degradation":
        """The degradation that `degrade(key, ...)` applies: its random parameters drawn."""
        return self


class Separable(Degradation):
    """A linear degradation that is one matrix on the rows and one on the columns."""

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        raise NotImplementedError

    def __call__(self, x: Array) -> Array:
        """A(x): (H, W, C) -> (h, w, C)."""
        return _apply_separable(*self.matrices(x.shape[-3], x.shape[-2]), x)


class Noise(Degradation):
    """A stage that only data see: calling it, as a search does, changes nothing."""

    @property
    def exact(self) -> bool:
        """Data suffer noise."""
        return False

    def __call__(self, x: Array) -> Array:
        """x, unchanged."""
        return x

    def sample(self, key: Array, x: Array) -> Array:
        """x (H, W, C) with noise."""
        raise NotImplementedError

    def degrade(self, key: Array, x: Array) -> Array:
        """x with noise drawn from `key`. Not clipped."""
        return self.sample(key, x)


# Down-sampling


def _check_size(size: Size | None, factor: int | None, name: str) -> None:
    if (size is None) == (factor is None):
        raise UserError(f"{name} takes either a size or a factor, for example {name}(32)")
    numbers = [factor] if size is None else [size] if isinstance(size, int) else list(size)
    if len(numbers) > 2 or not all(isinstance(n, int) and n >= 1 for n in numbers):
        raise UserError(f"{name}: a size or factor is made of whole numbers from 1, got {numbers}")


def _output_size(
    height: int, width: int, size: Size | None, factor: int | None, name: str
) -> tuple[int, int]:
    if factor is not None:
        if height % factor or width % factor:
            raise UserError(
                f"{name}: {height}x{width} is not divisible by {factor}; give a size instead"
            )
        return height // factor, width // factor
    if isinstance(size, int):
        short = min(height, width)
        return round(height * size / short), round(width * size / short)
    assert size is not None
    return size


def _size_text(size: Size | None, factor: int | None) -> str:
    if factor is not None:
        return f"x{factor}"
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else str(size)


class Bicubic(Separable):
    """Bicubic down-sampling with a = -0.5; antialiased, it equals Pillow's.

    size is the shorter side (the shape is kept) or (height, width); or give a whole factor that
    divides both sides. Raises UserError for neither, both, or sizes below 1.
    """

    size: Size | None = struct.field(pytree_node=False, default=None)
    factor: int | None = struct.field(pytree_node=False, default=None)
    antialias: bool = struct.field(pytree_node=False, default=True)

    def __post_init__(self) -> None:
        _check_size(self.size, self.factor, "bicubic")

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        h, w = _output_size(height, width, self.size, self.factor, "bicubic")
        return (
            resize_matrix(height, h, kernel="bicubic", antialias=self.antialias),
            resize_matrix(width, w, kernel="bicubic", antialias=self.antialias),
        )

    def __str__(self) -> str:
        return f"bicubic({_size_text(self.size, self.factor)}{'' if self.antialias else ',false'})"


class PulseBicubic(Separable):
    """PULSE's down-sampling: 4 * factor cubic taps (a = -0.5), mirrored border, stride factor.

    It differs from `Bicubic` at the borders only, where that renormalises. size or factor as
    there, but both sides must shrink by one whole factor and be longer than 1.5 of it (UserError).
    Source: Menon et al., "PULSE", CVPR 2020, and its published code.
    """

    size: Size | None = struct.field(pytree_node=False, default=None)
    factor: int | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self) -> None:
        _check_size(self.size, self.factor, "pulse")

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        h, w = _output_size(height, width, self.size, self.factor, "pulse")
        factor = height // h
        if (h * factor, w * factor) != (height, width):
            raise UserError(f"pulse: {height}x{width} is not a whole multiple of {h}x{w}")
        before = (4 * factor - factor) // 2
        if min(height, width) <= 3 * factor - before:
            raise UserError(f"pulse: {height}x{width} is too small to shrink {factor} times")
        weights = cubic_taps(factor)
        return (
            taps_matrix(height, weights, stride=factor, before=before, repeat_edge=False),
            taps_matrix(width, weights, stride=factor, before=before, repeat_edge=False),
        )

    def __str__(self) -> str:
        return f"pulse({_size_text(self.size, self.factor)})"


class Area(Separable):
    """Down-sampling by averaging the exact area that each output pixel covers.

    size or factor as for `Bicubic`. Raises UserError for neither, both, or sizes below 1.
    """

    size: Size | None = struct.field(pytree_node=False, default=None)
    factor: int | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self) -> None:
        _check_size(self.size, self.factor, "area")

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        h, w = _output_size(height, width, self.size, self.factor, "area")
        return resize_matrix(height, h, kernel="area"), resize_matrix(width, w, kernel="area")

    def __str__(self) -> str:
        return f"area({_size_text(self.size, self.factor)})"


# Blur


class GaussianBlur(Separable):
    """Gaussian blur; sigma in pixels of the image it is applied to, more than 0.

    Cut at 4 sigma, borders mirrored with the edge repeated, as scipy.ndimage.gaussian_filter.
    """

    sigma: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < float("inf"):
            raise UserError(f"blur: sigma must be a positive number of pixels, got {self.sigma}")

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (height, height) and (width, width)."""
        radius = int(4.0 * self.sigma + 0.5)
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / self.sigma) ** 2)
        weights = tuple((taps / taps.sum()).tolist())
        return (
            taps_matrix(height, weights, stride=1, before=radius, repeat_edge=True),
            taps_matrix(width, weights, stride=1, before=radius, repeat_edge=True),
        )

    def __str__(self) -> str:
        return f"blur({self.sigma:g})"


def motion_kernel(length: float, angle: ArrayLike) -> Array:
    """The (k, k) kernel of a straight motion of `length` pixels; it sums to 1.

    k is odd and holds the line at any angle, in degrees anticlockwise from the x axis. The line is
    sampled finely and each sample shared between its four pixels, so the angle is differentiable.
    """
    reach = (length - 1.0) / 2.0
    radius = int(np.ceil(reach))
    # Four samples a pixel: evenly shared where the length is whole.
    along = jnp.asarray(np.linspace(-reach, reach, 8 * radius + 1), jnp.float32)
    radians = jnp.deg2rad(jnp.asarray(angle, jnp.float32))
    pixels = jnp.asarray(np.arange(-radius, radius + 1), jnp.float32)[:, None]
    rows = jnp.maximum(1.0 - jnp.abs(pixels + along * jnp.sin(radians)), 0.0)
    columns = jnp.maximum(1.0 - jnp.abs(pixels - along * jnp.cos(radians)), 0.0)
    kernel = jnp.einsum("yt,xt->yx", rows, columns, precision=jax.lax.Precision.HIGHEST)
    return kernel / jnp.sum(kernel)


def _fast_length(n: int) -> int:
    """The least length from n whose only prime factors are 2, 3 and 5, which FFTs like."""
    powers = (2**a * 3**b * 5**c for a in range(16) for b in range(10) for c in range(7))
    return min(m for m in powers if m >= n)


class MotionBlur(Degradation):
    """Blur along a straight line of `length` pixels, at least 1.

    angle, in degrees anticlockwise from the x axis, is a leaf: images with different directions
    share one compiled search. None means a direction drawn for each image by `realise`; such a
    degradation can make data but not be searched with (UserError). Borders are mirrored.
    """

    length: float = struct.field(pytree_node=False)
    angle: ArrayLike | None = None

    def __post_init__(self) -> None:
        if not 1.0 <= self.length < float("inf"):
            raise UserError(f"motion: length must be at least 1 pixel, got {self.length}")

    def __call__(self, x: Array) -> Array:
        """A(x): (H, W, C) -> (H, W, C)."""
        if self.angle is None:
            raise UserError(
                "motion: the direction is random; give an angle or call realise(key) to search"
            )
        height, width = x.shape[0], x.shape[1]
        kernel = motion_kernel(self.length, self.angle)
        radius = kernel.shape[0] // 2
        index = [
            _reflect(np.arange(-radius, n + radius), n, repeat_edge=False) for n in (height, width)
        ]
        padded = x[index[0]][:, index[1]]
        # As long as the padded image, circular convolution leaves the inside exact.
        shape = [_fast_length(n) for n in padded.shape[:2]]
        spectrum = jnp.fft.rfftn(padded, shape, axes=(0, 1))
        response = jnp.fft.rfftn(kernel, shape)
        blurred = jnp.fft.irfftn(spectrum * response[..., None], shape, axes=(0, 1))
        inside = slice(2 * radius, None)
        return blurred[inside, inside][:height, :width]

    def realise(self, key: Array) -> "MotionBlur":
        """With a direction drawn uniformly from 0 to 180 degrees if none is given."""
        if self.angle is not None:
            return self
        return self.replace(angle=jax.random.uniform(key, maxval=180.0))

    def __str__(self) -> str:
        angle = "" if self.angle is None else f",{float(np.asarray(self.angle)):g}"
        return f"motion({self.length:g}{angle})"


# Colour, masks, JPEG

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's "L" and JPEG's Y


class Grey(Degradation):
    """Colour to grey in three equal channels: luma of ITU-R 601 as Pillow's mode "L"."""

    def __call__(self, x: Array) -> Array:
        """A(x): (H, W, 3) -> (H, W, 3). Raises UserError for other channel counts."""
        if x.shape[-1] != 3:
            raise UserError(f"grey: needs 3 channels, got {x.shape[-1]}")
        weights = jnp.asarray(_LUMA, jnp.float32)
        return jnp.broadcast_to(jnp.sum(x * weights, axis=-1, keepdims=True), x.shape)

    def __str__(self) -> str:
        return "grey()"


class Mask(Degradation):
    """Inpainting: pixels where `known` is 1 are kept, where it is 0 they become 0, mid-grey.

    known: (H, W) float32 in [0, 1], a leaf, of the size of the image at this stage (UserError).
    source is the file it came from, for reports.
    """

    known: Array
    source: str = struct.field(pytree_node=False, default="")

    def __call__(self, x: Array) -> Array:
        """A(x): (H, W, C) -> (H, W, C)."""
        if self.known.shape != x.shape[:2]:
            raise UserError(
                f"mask: it is {self.known.shape[0]}x{self.known.shape[1]} but the image at this "
                f"stage is {x.shape[0]}x{x.shape[1]}; give a mask of that size"
            )
        return x * self.known[..., None]

    def __str__(self) -> str:
        return f"mask({self.source})"


# Annex K of the JPEG standard (ITU-T T.81), scaled by quality as libjpeg does.
_LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""


def _quantisation(table: str, quality: int) -> np.ndarray:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = np.array(table.split(), dtype=np.int64).reshape(8, 8)
    return np.clip((base * scale + 50) // 100, 1, 255).astype(np.float32)


def _dct_matrix() -> np.ndarray:
    k, n = np.arange(8)[:, None], np.arange(8)[None, :]
    matrix = 0.5 * np.cos((2 * n + 1) * k * np.pi / 16.0)
    matrix[0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)


def _round(x: Array) -> Array:
    """Rounding whose gradient is that of the identity."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def _jpeg_plane(x: Array, table: np.ndarray) -> Array:
    """One plane (H, W), sides multiples of 8, in [-128, 127]: transform, quantise, and back."""
    height, width = x.shape
    dct, steps = jnp.asarray(_dct_matrix()), jnp.asarray(table)
    highest = jax.lax.Precision.HIGHEST
    blocks = x.reshape(height // 8, 8, width // 8, 8)
    terms = jnp.einsum("ui,aibj,vj->abuv", dct, blocks, dct, precision=highest)
    terms = _round(terms / steps) * steps
    blocks = jnp.einsum("ui,abuv,vj->aibj", dct, terms, dct, precision=highest)
    return blocks.reshape(height, width)


class Jpeg(Degradation):
    """JPEG with 4:2:0 chroma, as Pillow writes; quality from 1 to 95.

    Called, it is a differentiable stand-in: the codec's own steps in float32, with rounding passed
    straight through by the gradient. `degrade` runs Pillow's codec and so cannot be traced.
    Takes 3 channels, or 1 (UserError).
    """

    linear: ClassVar[bool] = False
    quality: int = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.quality, int) and 1 <= self.quality <= 95):
            raise UserError(f"jpeg: quality is a whole number from 1 to 95, got {self.quality}")

    def __call__(self, x: Array) -> Array:
        """A(x): (H, W, C) -> (H, W, C) in [-1, 1]."""
        height, width, channels = x.shape
        if channels not in (1, 3):
            raise UserError(f"jpeg: needs 3 channels, or 1, got {channels}")
        levels = _round(jnp.clip((x + 1.0) * 127.5, 0.0, 255.0))
        pad = ((0, -height % 16), (0, -width % 16), (0, 0))
        levels = jnp.pad(levels, pad, mode="edge")
        luminance = _quantisation(_LUMINANCE, self.quality)
        if channels == 1:
            decoded = _jpeg_plane(levels[..., 0] - 128.0, luminance)[..., None] + 128.0
        else:
            r, g, b = levels[..., 0], levels[..., 1], levels[..., 2]
            y = _LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b
            chroma = jnp.stack([(b - y) / 1.772, (r - y) / 1.402], axis=-1)
            half = (chroma.shape[0] // 2, chroma.shape[1] // 2)
            chroma = resize(_round(chroma), half, kernel="area")
            table = _quantisation(_CHROMINANCE, self.quality)
            planes = [_jpeg_plane(_round(chroma[..., i]), table) for i in range(2)]
            full = (levels.shape[0], levels.shape[1])
            chroma = resize(jnp.stack(planes, axis=-1), full, kernel="bilinear")
            y = _jpeg_plane(_round(y) - 128.0, luminance) + 128.0
            cb, cr = chroma[..., 0], chroma[..., 1]
            r, b = y + 1.402 * cr, y + 1.772 * cb
            g = (y - _LUMA[0] * r - _LUMA[2] * b) / _LUMA[1]
            decoded = jnp.stack([r, g, b], axis=-1)
        decoded = _round(jnp.clip(decoded, 0.0, 255.0))
        return decoded[:height, :width] / 127.5 - 1.0

    def degrade(self, key: Array, x: Array) -> Array:
        """x through Pillow's JPEG codec; (H, W, C) in [-1, 1], clipped to it first."""
        levels = np.rint(np.clip((np.asarray(x) + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)
        file = io.BytesIO()
        grey = levels.shape[-1] == 1
        image = Image.fromarray(levels[..., 0] if grey else levels)
        image.save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        decoded = np.asarray(Image.open(file), np.float32).reshape(levels.shape)
        return jnp.asarray(decoded / 127.5 - 1.0, jnp.float32)

    def __str__(self) -> str:
        return f"jpeg({self.quality})"


# Noise. Levels are fractions of the full range from black to white, twice that on [-1, 1].


def _check_fraction(value: float, name: str, what: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name}: {what} is a fraction of the full range, 0 to 1, got {value}")


class GaussianNoise(Noise):
    """Gaussian noise; sigma as a fraction of the full range (0.05 is 12.75 of 255 levels)."""

    sigma: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        _check_fraction(self.sigma, "noise", "sigma")

    def sample(self, key: Array, x: Array) -> Array:
        """x (H, W, C) + 2 sigma N(0, 1): [-1, 1] is two wide."""
        return x + 2.0 * self.sigma * jax.random.normal(key, x.shape, jnp.float32)

    def __str__(self) -> str:
        return f"noise({self.sigma:g})"


class LaplaceNoise(Noise):
    """Laplace noise; scale b (standard deviation b sqrt 2) as a fraction of the full range."""

    scale: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        _check_fraction(self.scale, "laplace", "scale")

    def sample(self, key: Array, x: Array) -> Array:
        """x (H, W, C) + 2 b Laplace(0, 1): [-1, 1] is two wide."""
        return x + 2.0 * self.scale * jax.random.laplace(key, x.shape, jnp.float32)

    def __str__(self) -> str:
        return f"laplace({self.scale:g})"


class SaltPepper(Noise):
    """Salt-and-pepper noise: this fraction of the pixels turns white or black, in all channels."""

    fraction: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 1.0:
            raise UserError(f"salt_pepper: a fraction of pixels is 0 to 1, got {self.fraction}")

    def sample(self, key: Array, x: Array) -> Array:
        """x (H, W, C) with each pixel at -1 or 1 with probability fraction / 2 each."""
        draw = jax.random.uniform(key, (*x.shape[:2], 1))
        salted = jnp.where(draw < self.fraction / 2.0, 1.0, x)
        return jnp.where(draw > 1.0 - self.fraction / 2.0, -1.0, salted)

    def __str__(self) -> str:
        return f"salt_pepper({self.fraction:g})"


# Composition


class Compose(Degradation):
    """Stages applied from left to right.

    Neighbouring separable stages become one pair of matrices when A is applied, so a blur before
    down-sampling costs nothing. Noise stages do nothing in A.
    """

    stages: tuple[Degradation, ...] = ()

    @property
    def linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every stage of A is linear."""
        return all(stage.linear for stage in self.stages)

    @property
    def exact(self) -> bool:
        """Whether every stage is."""
        return all(stage.exact for stage in self.stages)

    def __call__(self, x: Array) -> Array:
        """A(x): (H, W, C) -> (h, w, c)."""
        pair: tuple[np.ndarray, np.ndarray] | None = None
        for stage in self.stages:
            if isinstance(stage, Noise):
                continue
            if isinstance(stage, Separable):
                if pair is None:
                    pair = stage.matrices(x.shape[0], x.shape[1])
                else:
                    rows, columns = stage.matrices(pair[0].shape[0], pair[1].shape[0])
                    pair = (rows @ pair[0], columns @ pair[1])
                continue
            if pair is not None:
                x, pair = _apply_separable(*pair, x), None
            x = stage(x)
        return x if pair is None else _apply_separable(*pair, x)

    def degrade(self, key: Array, x: Array) -> Array:
        """The stages in order, with noise and the true codec. Not clipped."""
        for i, stage in enumerate(self.stages):
            x = stage.degrade(jax.random.fold_in(key, i), x)
        return x

    def realise(self, key: Array) -> "Compose":
        """Every stage realised, with the same keys as in `degrade`."""
        stages = (s.realise(jax.random.fold_in(key, i)) for i, s in enumerate(self.stages))
        return Compose(tuple(stages))

    def __str__(self) -> str:
        return "|".join(str(stage) for stage in self.stages)


def scaled_size(shape: tuple[int, ...], longer: int) -> tuple[int, int]:
    """The (height, width) nearest to `shape`'s aspect whose longer side has `longer` pixels."""
    height, width = shape[:2]
    scale = longer / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def degradation_identity(degradation: Degradation | None) -> str:
    """What a degradation is, with a hash of what it holds: two masks of one name differ."""
    if degradation is None:
        return "None"
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(degradation):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return f"{degradation} {digest.hexdigest()[:16]}"


def output_shape(degradation: Degradation, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape (h, w, c) of A(x) for x of `shape` (H, W, C), without computing it."""
    return jax.eval_shape(degradation, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


# Text


def _number(text: str) -> float:
    return float(text)


def _whole(text: str) -> int:
    return int(text)


def _flag(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
        text.lower()
    ]


def _size(text: str) -> Size:
    height, cross, width = text.lower().partition("x")
    return (int(height), int(width)) if cross else int(text)


def _mask_file(text: str) -> Mask:
    try:
        with Image.open(text) as image:
            levels = np.asarray(image.convert("L"))
    except (OSError, ValueError) as error:
        raise UserError(f"mask: cannot read {text!r} as an image: {error}") from error
    # White marks the hole, as in most inpainting tools.
    return Mask(jnp.asarray(levels < 128, jnp.float32), source=Path(text).as_posix())


@dataclass(frozen=True)
class _Argument:
    name: str
    convert: Callable[[str], object]
    kind: str  # what to write, for messages
    required: bool = True


@dataclass(frozen=True)
class _Stage:
    make: Callable[..., Degradation]
    arguments: tuple[_Argument, ...]
    example: str
    about: str


def _sizes(*more: _Argument) -> tuple[_Argument, ...]:
    return (
        _Argument("size", _size, "a size (32, or 24x32 for height x width)", required=False),
        _Argument("factor", _whole, "a whole factor (x4 or factor=4)", required=False),
        *more,
    )


_STAGES: dict[str, _Stage] = {
    "bicubic": _Stage(
        Bicubic,
        _sizes(_Argument("antialias", _flag, "true or false", required=False)),
        "bicubic(32)",
        "bicubic down-sampling, as Pillow's",
    ),
    "pulse": _Stage(PulseBicubic, _sizes(), "pulse(x32)", "PULSE's bicubic down-sampling"),
    "area": _Stage(Area, _sizes(), "area(32)", "down-sampling by averaging areas"),
    "blur": _Stage(
        GaussianBlur, (_Argument("sigma", _number, "a number of pixels"),), "blur(2)", "Gaussian"
    ),
    "motion": _Stage(
        MotionBlur,
        (
            _Argument("length", _number, "a number of pixels"),
            _Argument("angle", _number, "degrees", required=False),
        ),
        "motion(100,45)",
        "motion blur; without an angle, a random direction",
    ),
    "grey": _Stage(Grey, (), "grey()", "colour to grey"),
    "mask": _Stage(
        _mask_file,
        (_Argument("text", str, "an image file; white marks the hole"),),
        "mask(hole.png)",
        "inpainting",
    ),
    "jpeg": _Stage(
        Jpeg, (_Argument("quality", _whole, "a whole number 1 to 95"),), "jpeg(30)", "compression"
    ),
    "noise": _Stage(
        GaussianNoise,
        (_Argument("sigma", _number, "a fraction of the full range"),),
        "noise(0.05)",
        "Gaussian noise",
    ),
    "laplace": _Stage(
        LaplaceNoise,
        (_Argument("scale", _number, "a fraction of the full range"),),
        "laplace(0.05)",
        "Laplace noise",
    ),
    "salt_pepper": _Stage(
        SaltPepper,
        (_Argument("fraction", _number, "a fraction of the pixels"),),
        "salt_pepper(0.05)",
        "salt-and-pepper noise",
    ),
}


def available() -> str:
    """The stages that `parse` knows, one a line with an example."""
    return "\n".join(f"  {s.example:<18} {s.about}" for s in _STAGES.values())


def _parse_arguments(name: str, stage: _Stage, texts: Sequence[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    by_name = {a.name: a for a in stage.arguments}
    for position, text in enumerate(texts):
        key, equals, value = (part.strip() for part in text.partition("="))
        if name == "mask":
            key, equals, value = "", "", text.strip()
        factor = not equals and "factor" in by_name and key[:1] in "xX" and key[1:].isdigit()
        if equals:
            if key not in by_name:
                known = ", ".join(by_name) or "none"
                raise UserError(f"{name} has no argument {key!r} (it has: {known})")
            argument = by_name[key]
        elif factor:
            argument, value = by_name["factor"], key[1:]
        else:
            places = [a for a in stage.arguments if a.name != "factor"]
            if position >= len(places):
                raise UserError(f"{name} takes at most {len(places)} arguments: {stage.example}")
            argument, value = places[position], value or key
        if argument.name in values:
            raise UserError(f"{name}: {argument.name} is given twice")
        try:
            values[argument.name] = argument.convert(value)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{name}: {argument.name} must be {argument.kind}, got {value!r}"
            ) from error
    for argument in stage.arguments:
        if argument.required and argument.name not in values:
            raise UserError(f"{name} needs {argument.name} ({argument.kind}): {stage.example}")
    return values


def parse(text: str) -> Compose:
    """Read "blur(2)|bicubic(32)|noise(0.05)": stages applied from left to right.

    Arguments are in order or by name (`motion(length=100, angle=45)`); a down-sampler takes a
    size (shorter side, or heightxwidth) or a factor (`bicubic(x4)`). `str` of the result reads
    back as the same. Raises UserError that says what is wrong and what there is.
    """
    stages = []
    for part in text.split("|"):
        name, bracket, inside = part.strip().partition("(")
        name = name.strip()
        if not name:
            raise UserError(f"empty stage in degradation {text!r}; it can have:\n{available()}")
        if name not in _STAGES:
            raise UserError(f"unknown degradation {name!r}; there are:\n{available()}")
        if bracket and not inside.endswith(")"):
            raise UserError(f"{part.strip()!r} has no closing bracket, as in {text!r}")
        inside = inside.removesuffix(")").strip()
        texts = inside.split(",") if inside else []
        stage = _STAGES[name]
        stages.append(stage.make(**_parse_arguments(name, stage, texts)))
    return Compose(tuple(stages))
