"""How far inputs may be off, as their files and pixels say."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stylesr_jax.degradations import parse
from stylesr_jax.images.decoding import decode
from stylesr_jax.images.files import read_image
from stylesr_jax.solver.consistency import corrected, correction
from stylesr_jax.solver.covariance import (
    UNKNOWN,
    Covariance,
    linear_part,
    of_degraded,
    of_picture,
    of_pixels,
)
from where import PORTRAIT

KEY = jax.random.key(0)


def _small(size=32):
    """The portrait, (size, size, 3), clean and of 8 bits."""
    small = parse(f"bicubic({size})")(jnp.asarray(read_image(PORTRAIT)))
    return np.asarray(jnp.round((jnp.clip(small, -1, 1) + 1) * 127.5) / 127.5 - 1.0)


def _file(pixels, format, **options):
    levels = np.rint((pixels + 1.0) * 127.5).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format, **options)
    return buffer.getvalue()


def _of_file(pixels, format, **options):
    picture = decode(_file(pixels, format, **options), "picture")
    return picture.pixels, of_picture(picture, picture.pixels)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_a_clean_lossless_file_is_exact(size):
    _, noise = _of_file(_small(size), "PNG")
    assert noise.std == 0.0 and not noise.blocks


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.1])
def test_visible_noise_is_estimated(size, sigma):
    noisy = np.asarray(parse(f"noise({sigma})").degrade(KEY, jnp.asarray(_small(size))))
    assert of_pixels(np.clip(noisy, -1, 1)).std == pytest.approx(2 * sigma, rel=0.2)


def test_grey_images_have_no_colour_to_estimate_from():
    grey = np.repeat(_small()[..., 1:2], 3, axis=2)
    assert of_pixels(grey).std == 0.0
    noise = 0.3 * np.asarray(jax.random.normal(KEY, (32, 32, 1)))
    assert of_pixels(np.clip(grey + noise, -1, 1)).std == pytest.approx(0.3, rel=0.3)


@pytest.mark.parametrize("quality", [30, 50, 75, 90])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_tables_of_a_jpeg_say_how_far_it_is_off(quality, subsampling):
    clean = _small(64)
    found, noise = _of_file(clean, "JPEG", quality=quality, subsampling=subsampling)
    error = found - clean
    assert noise.std == pytest.approx(np.std(error), rel=1.0)
    # What Sigma says of a direction is as large as the errors there are: x^T Sigma^-1 x / n is 1.
    white, _ = jax.scipy.sparse.linalg.cg(
        lambda c: noise(c) + 1e-5 * c, jnp.asarray(error), maxiter=500
    )
    assert 0.1 < float(jnp.vdot(error, white)) / error.size < 4.0


def test_other_lossy_files_are_not_exact():
    _, noise = _of_file(_small(), "WEBP", quality=75)
    assert noise.std == pytest.approx(0.03)


def test_a_resampled_jpeg_has_no_blocks_but_as_much_noise():
    picture = decode(_file(_small(64), "JPEG", quality=50), "picture")
    whole = of_picture(picture, picture.pixels)
    part = of_picture(picture, picture.pixels[3:40, 5:50].copy())
    assert whole.blocks and not part.blocks and part.std == pytest.approx(whole.std)


def test_salt_and_pepper_are_unknown():
    clean = _small()
    noisy = np.asarray(parse("salt_pepper(0.1)").degrade(KEY, jnp.asarray(clean)))
    unknown = np.broadcast_to(of_pixels(noisy).variance, (32, 32, 1))[..., 0] >= UNKNOWN
    changed = np.any(noisy != clean, axis=-1)
    assert changed.mean() > 0.05
    assert (unknown == changed).mean() > 0.98
    assert np.ndim(of_pixels(clean).variance) == 0


@pytest.mark.parametrize("noise", ["exact", "white", "jpeg"])
def test_sigma_is_symmetric_and_no_variance_is_negative(noise):
    sigma = {
        "exact": Covariance(),
        "white": Covariance(variance=0.01),
        "jpeg": of_degraded(parse("jpeg(50)"), _small(20), told=False),
    }[noise]
    a, b = jax.random.normal(KEY, (2, 20, 20, 3))
    np.testing.assert_allclose(jnp.vdot(a, sigma(b)), jnp.vdot(sigma(a), b), rtol=1e-4, atol=1e-5)
    assert float(jnp.vdot(a, sigma(a))) >= 0.0


@pytest.mark.parametrize("damage", ["jpeg(75)", "jpeg(50)", "noise(0.05)", "salt_pepper(0.05)"])
def test_a_damaged_input_is_corrected_less_than_an_exact_one_and_better(damage):
    """The corrected image is nearer to the clean one than with the damage taken for the truth."""
    original = jax.image.resize(jnp.asarray(read_image(PORTRAIT)), (256, 256, 3), "linear")
    degradation = parse("bicubic(32)")
    clean = degradation(original)
    damaged = jnp.clip(parse(damage).degrade(KEY, clean), -1, 1)
    miss = 0.25 * jax.random.normal(jax.random.key(1), (8, 8, 3))
    guess = jnp.clip(original + jax.image.resize(miss, original.shape, "cubic"), -1, 1)

    def error(noise):
        z = correction(guess, damaged, degradation, noise)
        return float(jnp.mean(jnp.square(degradation(corrected(guess, z)) - clean)))

    sigma = of_degraded(parse(damage), np.asarray(damaged), told=False)
    assert error(sigma) < 0.97 * error(Covariance())
    assert error(sigma) < float(jnp.mean(jnp.square(degradation(guess) - clean)))


def test_noise_that_is_told_is_not_estimated():
    degradation = parse("bicubic(32)|noise(0.01)")
    assert of_degraded(degradation, _small(), told=True).std == pytest.approx(0.02)
    assert of_degraded(degradation, _small(), told=False).std == 0.0


def test_the_linear_part_leaves_out_jpeg():
    assert str(linear_part(parse("bicubic(32)|jpeg(50)"))) == "bicubic(32)"
    blurred = parse("blur(2)|bicubic(32)")
    assert linear_part(blurred) is blurred
