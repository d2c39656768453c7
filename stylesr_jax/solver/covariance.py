"""How far an observation may be off: Sigma, the covariance of its noise, read from its pixels.

A lossless file without visible noise is exact. A JPEG's quantisation tables say how coarsely each
coefficient of its blocks was rounded. Noise is estimated from differences of colour channels,
which hold little of a scene's finest detail, by the median of a second difference (Immerkaer,
"Fast Noise Variance Estimation", CVIU 1996; Donoho & Johnstone 1994 for the median). Pixels of
salt and pepper are unknown.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from scipy.ndimage import convolve, median_filter

from stylesr_jax.degradations import Compose, Degradation
from stylesr_jax.degradations.base import Noise, stages_in
from stylesr_jax.degradations.jpeg import Jpeg, dct_matrix, quantisation_tables
from stylesr_jax.degradations.mask import LUMA
from stylesr_jax.images.decoding import JpegTables, Picture
from stylesr_jax.runtime.pytrees import PyTreeNode

UNKNOWN = 100.0  # variance of what was not observed: far above that of images in [-1, 1]
VISIBLE = 0.028  # standard deviation of noise; what is estimated of clean photographs is below
VISIBLE_GREY = 0.09  # the same of grey images, whose finest detail counts as noise
SMALLEST = 16  # px of a side of images whose noise is estimated
LOSSY = 0.03  # standard deviation of what a codec other than JPEG changes, as WebP's at 75
LUMINANCE, CHROMINANCE = 0.5, 0.012  # power of faces at one wave in a block, in [-1, 1]
OUTLIER = 0.5  # an extreme value that differs so much from its neighbours' median
OUTLIERS = 0.004  # share of them above which they are noise

_LAPLACIAN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)[..., None] / 6.0
_TO_YCC = np.array(
    [
        LUMA,
        [-LUMA[0] / 1.772, -LUMA[1] / 1.772, (1.0 - LUMA[2]) / 1.772],
        [(1.0 - LUMA[0]) / 1.402, -LUMA[1] / 1.402, -LUMA[2] / 1.402],
    ],
    np.float32,
)
_TO_RGB = np.linalg.inv(_TO_YCC).astype(np.float32)


class Covariance(PyTreeNode):
    """Sigma of an observation (h, w, C) in [-1, 1].

    Attributes:
        variance: of each value, a scalar or (h, w, 1).
        blocks: of a JPEG, the variances of the cosine coefficients of Y and of Cb and Cr, each
            (rows, columns) of a block in pixels; (Y,) for a grey file, () for no JPEG.
    """

    variance: Any = 0.0
    blocks: tuple[Any, ...] = ()

    def __call__(self, values: Float[Array, "h w C"]) -> Float[Array, "h w C"]:
        """Sigma times values."""
        whole = self.variance * values
        if not self.blocks:
            return whole
        if values.shape[-1] == 1:
            return whole + scaled_blocks(values, self.blocks[0])
        apart = values @ _TO_RGB  # the adjoint of the way from Y, Cb, Cr to colours
        luminance = scaled_blocks(apart[..., :1], self.blocks[0])
        chrominance = jnp.zeros_like(apart[..., 1:])
        if len(self.blocks) > 1:
            chrominance = scaled_blocks(apart[..., 1:], self.blocks[1])
        return whole + jnp.concatenate([luminance, chrominance], axis=-1) @ _TO_RGB.T

    @property
    def std(self) -> float:
        """The standard deviation of a value, on average over the observed ones."""
        variance = np.asarray(self.variance)
        observed = variance[variance < UNKNOWN / 2]
        white = float(observed.mean()) if observed.size else 0.0
        parts = [float(np.mean(block)) for block in self.blocks]
        if len(parts) > 1:
            parts[1] *= float(np.mean(np.sum(np.square(_TO_RGB[:, 1:]), axis=1)))
        return float(np.sqrt(white + sum(parts)))

    def mean(self) -> "Covariance":
        """The same without blocks, for an image that was resampled."""
        return Covariance(variance=self.std**2) if self.blocks else self

    def unknown_where(self, known: np.ndarray) -> "Covariance":
        """With `UNKNOWN` variance where `known` (h, w, 1) in [0, 1] is 0."""
        return self.replace(variance=self.variance + UNKNOWN * (1.0 - known))


def scaled_blocks(
    planes: Float[Array, "h w C"], factors: Float[Array | np.ndarray, "rows columns"]
) -> Float[Array, "h w C"]:
    """Planes with the cosine coefficients of every block of `factors`' size multiplied."""
    height, width, channels = planes.shape
    rows, columns = factors.shape
    padded = jnp.pad(planes, ((0, -height % rows), (0, -width % columns), (0, 0)))
    blocks = padded.reshape(padded.shape[0] // rows, rows, -1, columns, channels)
    down, across = dct_matrix(rows), dct_matrix(columns)
    terms = jnp.einsum("ui,aibjc,vj->aubvc", down, blocks, across)
    terms = terms * factors[:, None, :, None]
    blocks = jnp.einsum("ui,aubvc,vj->aibjc", down, terms, across)
    return blocks.reshape(padded.shape)[:height, :width]


def _rounding(steps: np.ndarray, across: int, down: int, strength: float) -> np.ndarray:
    """Variances of a block's coefficients in [-1, 1], of steps (8, 8) on 256 levels.

    A block of what was subsampled is larger in pixels, and its high frequencies were dropped. No
    error is larger than what natural images have: strength / f^2 at frequency f, Field 1987.
    """
    rows, columns = 8 * down, 8 * across
    uniform = np.full((rows, columns), np.inf)
    uniform[:8, :8] = np.square(steps * 2.0 / 255.0) / 12.0 * across * down
    frequency = np.hypot(np.arange(rows)[:, None] / down, np.arange(columns)[None, :] / across)
    natural = strength * across * down / np.maximum(frequency, 0.5) ** 2
    return (1.0 / (1.0 / natural + 1.0 / uniform)).astype(np.float32)


def of_jpeg(tables: JpegTables) -> Covariance:
    """Sigma of a JPEG that is as it was saved."""
    blocks = [_rounding(tables.luminance, 1, 1, LUMINANCE)]
    if tables.chrominance is not None:
        blocks.append(_rounding(tables.chrominance, *tables.subsampling, CHROMINANCE))
    return Covariance(blocks=tuple(blocks))


def noise_std(pixels: Float[np.ndarray, "h w 3"]) -> float:
    """The standard deviation of visible noise in [-1, 1], 0 where none is seen.

    Images of less than `SMALLEST` px have too little that is smooth to tell noise from detail.
    """
    if min(pixels.shape[:2]) < SMALLEST:
        return 0.0

    def spread(planes: np.ndarray) -> float:
        return float(np.median(np.abs(convolve(planes, _LAPLACIAN, mode="reflect")))) / 0.6745

    red, green, blue = np.moveaxis(pixels, -1, 0)
    apart = np.stack([red - green, blue - green], axis=-1)
    if not np.any(apart):
        grey = spread(green[..., None])
        return grey if grey > VISIBLE_GREY else 0.0
    colour = spread(apart) / np.sqrt(2.0)
    return colour if colour > VISIBLE else 0.0


def outliers(pixels: Float[np.ndarray, "h w 3"]) -> np.ndarray:
    """Which pixels are of salt and pepper: (h, w, 1)."""
    extreme = np.all(pixels >= 1.0, axis=-1) | np.all(pixels <= -1.0, axis=-1)
    differs = np.abs(pixels - median_filter(pixels, (3, 3, 1), mode="reflect")).max(axis=-1)
    outlying = (extreme & (differs > OUTLIER))[..., None]
    return outlying if outlying.mean() > OUTLIERS else np.zeros_like(outlying)


def of_pixels(pixels: Float[np.ndarray, "h w 3"], tables: JpegTables | None = None) -> Covariance:
    """Sigma of an observation in [-1, 1]; `tables` if a JPEG holds these pixels as they are."""
    outlying = outliers(pixels)
    kept = np.where(outlying, median_filter(pixels, (3, 3, 1), mode="reflect"), pixels)
    noise = Covariance() if tables is None else of_jpeg(tables)
    noise = noise.replace(variance=noise_std(kept) ** 2)
    return noise.unknown_where(1.0 - outlying.astype(np.float32)) if outlying.any() else noise


def of_picture(picture: Picture, pixels: np.ndarray) -> Covariance:
    """Sigma of a file's pixels, or of an image made from them by resampling."""
    tables, noise = picture.jpeg_tables, Covariance()
    as_saved = pixels is picture.pixels and picture.block == 1
    if tables is not None:
        if as_saved and tables.orientation == 1:
            return of_pixels(pixels, tables)
        noise = of_jpeg(tables).mean()
        noise = noise.replace(variance=noise.variance / picture.block**2)
    elif picture.lossy:
        noise = Covariance(variance=(LOSSY / picture.block) ** 2)
    seen = of_pixels(pixels)
    return seen.replace(variance=seen.variance + noise.variance)


def of_degraded(degradation: Degradation, pixels: np.ndarray, *, told: bool) -> Covariance:
    """Sigma of what a degradation made: its last stage may be a JPEG, whose tables are known.

    Args:
        told: whether the variance of noise at its end is known too.
    """
    last = stages_in(degradation)[-1]
    if isinstance(last, Jpeg):
        return of_pixels(pixels, JpegTables(*quantisation_tables(last.quality), (2, 2), 1))
    if told and isinstance(last, Noise) and last.variance is not None:
        return Covariance(variance=last.variance)
    return of_pixels(pixels)


def linear_part(degradation: Degradation) -> Degradation | None:
    """A without JPEG, whose rounding Sigma describes; None where what is left is not linear."""
    stages = tuple(stage for stage in stages_in(degradation) if not isinstance(stage, Jpeg))
    part = degradation if stages == stages_in(degradation) else Compose(stages)
    return part if part.linear else None
