"""Small pictures saved large, in blocks of one colour."""

import io

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.images.decoding import decode
from stylesr_jax.images.files import read_image, read_mask, read_picture, write_png

SMALL = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def _enlarged(picture, block):
    return picture.repeat(block, axis=0).repeat(block, axis=1)


def _levels(pixels):
    return (pixels + 1.0) * 127.5


def _smooth(size, seed=0):
    """A picture without edges, like a portrait out of focus."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("block", [2, 3, 8, 32])
def test_an_enlargement_by_a_whole_factor_is_read_as_what_it_shows(tmp_path, block):
    write_png(tmp_path / "a.png", _enlarged(SMALL, block))
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_allclose(_levels(picture.pixels), SMALL, atol=1e-3)
    assert picture.block == block and picture.saved_size == (16 * block, 12 * block)
    assert picture.notes == (
        f"a mosaic of {block}x{block} px blocks: read as the 16x12 picture that it is",
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture.pixels)


def test_smooth_small_pictures_and_stripes_count(tmp_path):
    for i, small in enumerate((_smooth(24), SMALL[:1].repeat(12, axis=0))):
        write_png(tmp_path / f"{i}.png", _enlarged(small, 5))
        np.testing.assert_allclose(_levels(read_image(tmp_path / f"{i}.png")), small, atol=1e-3)


def test_the_last_blocks_may_be_cut(tmp_path):
    write_png(tmp_path / "a.png", _enlarged(SMALL, 16)[:-5, :-9])
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_allclose(_levels(picture.pixels), SMALL, atol=1e-3)
    assert picture.saved_size == (247, 187)


def _half_black():
    picture = np.full((64, 64, 3), 200, np.uint8)
    picture[:, :32] = 0
    return picture


def _with_bar():
    picture = _smooth(64).copy()
    picture[24:32, 16:48] = 0
    return picture


def _drawing():
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[16:48, 8:24] = (200, 30, 30)
    return picture


ORDINARY = {
    "noise": SMALL,
    "smooth": _smooth(96),
    "one colour": np.full((64, 64, 3), 90, np.uint8),
    "one colour of 1 px": np.full((1, 1, 3), 90, np.uint8),
    "halves": _half_black(),
    "bar": _with_bar(),
    "drawing": _drawing(),
    "one pixel apart": np.pad(_enlarged(SMALL, 8), ((1, 0), (0, 0), (0, 0)), mode="edge"),
    "one pixel changed": np.where(np.arange(128)[:, None, None] == 77, 0, _enlarged(SMALL, 8)[:1]),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_pictures_stay(tmp_path, name):
    pixels = ORDINARY[name].astype(np.uint8)
    write_png(tmp_path / "a.png", pixels)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_allclose(_levels(picture.pixels), pixels, atol=1e-3)
    assert picture.block == 1 and picture.notes == ()


def _jpeg(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.mark.parametrize("block", [8, 12, 16, 20])
@pytest.mark.parametrize("quality", [90, 95])
def test_mosaics_saved_as_jpeg(block, quality):
    small = _smooth(24, seed=block)
    picture = decode(_jpeg(_enlarged(small, block), quality), "a.jpg")
    assert picture.block == block
    assert np.abs(_levels(picture.pixels) - small).mean() < 2.0


@pytest.mark.parametrize("quality", [1, 3, 30, 65, 75, 95])
@pytest.mark.parametrize("bars", [False, True])
def test_ordinary_jpegs_stay(quality, bars):
    for seed in range(4):
        pixels = _smooth(256, seed).copy()
        if bars:
            pixels[:16] = pixels[-16:] = 0
        assert decode(_jpeg(pixels, quality), "a.jpg").block == 1
    flat = np.full((128, 128, 3), 90, np.uint8)
    assert decode(_jpeg(flat, quality), "a.jpg").block == 1


def test_masks_keep_their_size(tmp_path):
    mask = _enlarged(np.random.default_rng(1).integers(0, 2, (8, 8), np.uint8) * 255, 4)
    write_png(tmp_path / "mask.png", mask)
    np.testing.assert_allclose(read_mask(tmp_path / "mask.png"), mask / 255.0, atol=1e-6)
