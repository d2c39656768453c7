"""Metrics against scikit-image, BasicSR and closed forms, and what they refuse."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from convert.embedded import niqe as convert_niqe
from stylesr_jax.errors import UserError
from stylesr_jax.metrics import image as metrics
from stylesr_jax.metrics import lpips
from stylesr_jax.runtime import files
from where import WEIGHTS


def _unit(levels: np.ndarray) -> jax.Array:
    return jnp.asarray(levels / 127.5 - 1.0, jnp.float32)


def _pair(height: int = 60, width: int = 47) -> tuple[np.ndarray, np.ndarray]:
    a = photographs.astronaut()[40 : 40 + height, 180 : 180 + width]
    noise = np.random.default_rng(0).integers(-25, 26, a.shape)
    return a, np.clip(a + noise, 0, 255).astype(np.uint8)


RANGES = {2.0: lambda x: x / 127.5 - 1.0, 1.0: lambda x: x / 255.0, 255.0: lambda x: x * 1.0}


@pytest.mark.parametrize("data_range", RANGES)
def test_psnr_equals_scikit_image(data_range):
    a, b = (RANGES[data_range](x) for x in _pair())
    expected = peak_signal_noise_ratio(a, b, data_range=data_range)
    actual = metrics.psnr(jnp.float32(a), jnp.float32(b), data_range=data_range)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_psnr_of_equal_images_is_infinite():
    a = _unit(_pair()[0])
    assert metrics.psnr(a, a, data_range=2.0) == jnp.inf


@pytest.mark.parametrize("data_range", RANGES)
@pytest.mark.parametrize("shape", [(60, 47), (11, 12)])
def test_ssim_equals_scikit_image(data_range, shape):
    a, b = (RANGES[data_range](x) for x in _pair(*shape))
    expected = structural_similarity(
        a,
        b,
        data_range=data_range,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=metrics.SSIM_SIGMA,
        use_sample_covariance=False,
    )
    score = jax.jit(metrics.ssim, static_argnames="data_range")
    actual = score(jnp.float32(a), jnp.float32(b), data_range=data_range)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_ssim_of_equal_images_is_one():
    a = _unit(_pair()[0])
    np.testing.assert_allclose(metrics.ssim(a, a, data_range=2.0), 1.0, atol=1e-6)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_pairs_that_cannot_be_compared_are_refused(metric):
    a = _unit(_pair()[0])
    with pytest.raises(UserError, match="one shape"):
        metric(a, a[:-1], data_range=2.0)
    with pytest.raises(UserError, match="data_range must be positive"):
        metric(a, a, data_range=0.0)
    with pytest.raises(UserError, match="NaN or infinite"):
        metric(a, a.at[3, 3, 0].set(jnp.nan), data_range=2.0)
    with pytest.raises(TypeError, match="data_range"):
        metric(a, a)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(UserError, match="at least 11 pixels"):
        metrics.ssim(jnp.zeros((10, 20, 3)), jnp.zeros((10, 20, 3)), data_range=2.0)


def test_diversity_is_the_mean_over_pairs(golden):
    pairs = golden("lpips_pairs.npz")
    params = lpips.load_features("alexnet")
    images = [_unit(pairs["a"][0]), _unit(pairs["b"][0]), _unit(pairs["a"][1])]
    result = metrics.diversity(images, net="alexnet", params=params)
    indices = [(0, 1), (0, 2), (1, 2)]
    scores = [lpips.lpips(images[i], images[j], net="alexnet", params=params) for i, j in indices]
    pixels = [jnp.mean(jnp.abs(images[i] - images[j])) for i, j in indices]
    np.testing.assert_allclose(result.lpips, np.mean(scores), rtol=1e-4)
    np.testing.assert_allclose(result.pixels, np.mean(pixels), rtol=1e-5)
    same = metrics.diversity(images[:1] * 3, net="alexnet", params=params)
    assert same == (0.0, 0.0)


def test_diversity_refuses_what_it_cannot_compare():
    params = lpips.load_features("alexnet")
    x = jnp.zeros((40, 40, 3))
    with pytest.raises(UserError, match="at least two"):
        metrics.diversity([x], net="alexnet", params=params)
    with pytest.raises(UserError, match="one shape"):
        metrics.diversity([x, x[:35]], net="alexnet", params=params)
    with pytest.raises(UserError, match="NaN or infinite"):
        metrics.diversity([x, x + jnp.inf], net="alexnet", params=params)


def _box(image: np.ndarray, size: int) -> np.ndarray:
    shifts = [(i, j) for i in range(size) for j in range(size)]
    total = sum(np.roll(image.astype(np.int64), shift, (0, 1)) for shift in shifts)
    return total // len(shifts)


def _niqe_image(name: str) -> np.ndarray:
    image = photographs.astronaut()
    if name == "chelsea":
        return photographs.chelsea()
    if name == "coffee":
        return photographs.coffee()
    if name == "noisy":
        return np.clip(image + np.random.default_rng(7).integers(-40, 41, image.shape), 0, 255)
    if name == "blurred":
        return _box(image, 5)
    if name == "partly flat":
        image = image.copy()
        image[:200, :200] = 255
    return image


# calculate_niqe of BasicSR 1.4.2 (crop_border=0, convert_to="y") on these 8-bit images.
BASICSR_NIQE = {
    "astronaut": 3.0649476661849033,
    "chelsea": 2.625524381291432,
    "coffee": 4.115241615372864,
    "noisy": 10.48825577400941,
    "blurred": 6.505771095111348,
    "partly flat": 4.458368794231402,
}


@pytest.mark.parametrize("name", BASICSR_NIQE)
def test_niqe_equals_basicsr(name):
    np.testing.assert_allclose(
        metrics.niqe(_unit(_niqe_image(name))), BASICSR_NIQE[name], rtol=0.01
    )


def test_niqe_refuses_what_it_cannot_judge():
    with pytest.raises(UserError, match="two blocks of 96x96"):
        metrics.niqe(jnp.zeros((191, 100, 3)))
    with pytest.raises(UserError, match=r"\(height, width, 3\)"):
        metrics.niqe(jnp.zeros((200, 200)))
    with pytest.raises(UserError, match="NaN or infinite"):
        metrics.niqe(jnp.full((200, 200, 3), jnp.nan))
    with pytest.raises(UserError, match="too little texture"):
        metrics.niqe(jnp.zeros((200, 200, 3)))


def test_niqe_model_is_the_one_its_page_names():
    page = (WEIGHTS / "FEATURES.md").read_text()
    assert files.sha256(WEIGHTS / "niqe.safetensors") in page
    assert convert_niqe.ARCHIVE_SHA256 in page


def test_niqe_parameters_are_converted(tmp_path):
    line = np.exp(-0.5 * (np.arange(-3, 4) / 1.2) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    arrays = {"mu_pris_param": np.ones((1, 36)), "cov_pris_param": np.eye(36)}
    file = io.BytesIO()
    np.savez(file, **arrays, gaussian_window=window)
    parameters = convert_niqe.read_parameters(file.getvalue())
    np.testing.assert_allclose(parameters["window"], line / line.sum(), rtol=1e-12)
    assert parameters["mean"].shape == (36,)
    file = io.BytesIO()
    np.savez(file, **arrays, gaussian_window=np.eye(7))
    with pytest.raises(UserError, match="product of two lines"):
        convert_niqe.read_parameters(file.getvalue())
    (tmp_path / "other.tar.gz").write_bytes(b"other")
    with pytest.raises(UserError, match=r"not that of basicsr-1\.4\.2"):
        convert_niqe.make(tmp_path / "other.tar.gz", tmp_path / "niqe.safetensors")


@pytest.mark.parametrize("counts", [(200, 300), (9, 300), (9, 7)])
def test_frechet_distance_equals_its_definition(counts):
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(20, 20))
    a = rng.normal(size=(counts[0], 20)) @ mixing
    b = rng.normal(size=(counts[1], 20)) * 1.5 + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The symmetric form: a square root of the product itself is unstable for singular matrices.
    values, vectors = scipy.linalg.eigh(cov_a)
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    gap = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = gap + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
    np.testing.assert_allclose(metrics.frechet_distance(a, b), expected, rtol=1e-5)


def test_frechet_distance_of_known_gaussians():
    # Scaling every deviation from 1 to 2 and shifting by 3 along one axis: 5 * (2 - 1)^2 + 9.
    x = np.random.default_rng(2).normal(size=(400, 5))
    x = x - x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    np.testing.assert_allclose(metrics.frechet_distance(x, 2.0 * x + np.eye(5)[0] * 3.0), 14.0)
    np.testing.assert_allclose(metrics.frechet_distance(x, x[::-1]), 0.0, atol=1e-9)


def test_frechet_distance_refuses_other_features():
    x = np.ones((4, 3))
    with pytest.raises(UserError, match="two or more"):
        metrics.frechet_distance(x, x[:1])
    with pytest.raises(UserError, match="two or more"):
        metrics.frechet_distance(x, x[:, :2])
    with pytest.raises(UserError, match="NaN or infinite"):
        metrics.frechet_distance(x, x * np.nan)
