"""Damaged and hostile picture files: a picture or one line, never a traceback, hang or flood."""

import time
import zlib

import numpy as np
import pytest
from PIL import Image

from corpus_pictures import (
    gif_that_claims,
    peak_kilobytes,
    png_that_claims,
    saved,
    smooth,
    sound_files,
    tiff_whose_pages_loop,
    with_damage,
    with_right_checksums,
)
from icc_profiles import grey_profile, rgb_profile
from picture_files import (
    deep_png,
    iccp,
    with_chunk,
)
from stylesr_jax.errors import UserError
from stylesr_jax.images.decoding import decode

MAX_SECONDS = 20.0  # of a file of a few kB, on a busy machine
MAX_GROWTH = 1 << 20  # kB of memory, over all the files of a test


def _read_or_refuse(data, name):
    """A picture of finite values, or None for a refusal in one printable line; in bounded time."""
    begin = time.monotonic()
    try:
        picture = decode(data, name)
    except UserError as error:
        assert str(error).isprintable() and name in str(error)
        picture = None
    assert time.monotonic() - begin < MAX_SECONDS
    if picture is not None:
        assert picture.pixels.dtype == np.float32 and picture.pixels.shape[2] == 3
        assert np.abs(picture.pixels).max() <= 1.0  # NaN would fail too
        assert all(note.isprintable() for note in picture.notes)
    return picture


def _assert_damage_is_survived(folder, seeds):
    peak = peak_kilobytes()
    for name, data in sound_files(folder).items():
        assert _read_or_refuse(data, name) is not None
        for seed in seeds:
            damaged = with_damage(data, np.random.default_rng([seed, len(data)]))
            _read_or_refuse(with_right_checksums(damaged) if seed % 2 else damaged, name)
    assert peak_kilobytes() - peak < MAX_GROWTH


def test_damaged_files_sampled(tmp_path):
    _assert_damage_is_survived(tmp_path, range(6))


@pytest.mark.slow
def test_damaged_files(tmp_path):
    _assert_damage_is_survived(tmp_path, range(6, 120))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (30_000, 1), (1, 30_000), (7, 5)])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
def test_any_size(size, mode):
    grey = np.random.default_rng(0).integers(0, 2, size[::-1], np.uint8) * 255
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    picture = decode(saved(image, "PNG"), "a.png")
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_allclose((picture.pixels + 1.0) * 127.5, expected, atol=1e-3)


@pytest.mark.slow
def test_the_largest_pictures():
    image = Image.new("RGB", (30_000, 3_000), (10, 20, 30))
    image.putpixel((29_999, 2_999), (255, 255, 255))
    picture = decode(saved(image, "PNG"), "a.png")
    assert picture.pixels.shape == (3_000, 30_000, 3) and picture.block == 1
    np.testing.assert_allclose(picture.pixels[-1, -1], 1.0)


def test_claims_are_not_believed(tmp_path):
    peak = peak_kilobytes()
    for data, refused in (
        (png_that_claims(50_000, 50_000), True),
        (png_that_claims(2**31 - 1, 2**31 - 1), True),
        (png_that_claims(0, 5), True),
        (png_that_claims(3_000, 3_000), True),
        (png_that_claims(3_000, 3_000, depth=16), True),
        (gif_that_claims(65_535, 65_535), True),
        (b"P6 99999999 99999999 255\n", True),
        (b"BM" + b"\xff" * 60, True),
        (tiff_whose_pages_loop(tmp_path), False),
    ):
        assert (_read_or_refuse(data, "a") is None) == refused
    assert peak_kilobytes() - peak < MAX_GROWTH


def test_metadata_that_unpacks_to_much_is_not_unpacked():
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(12)) + packer.flush()
    plain = saved(smooth("RGB"), "PNG")
    peak = peak_kilobytes()
    for name, start in (
        (b"zTXt", b"Comment\0\0"),
        (b"zTXt", b"Raw profile type exif\0\0"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
        (b"iCCP", b"profile\0\0"),
    ):
        picture = _read_or_refuse(with_chunk(plain, name, start + packed), "a.png")
        assert picture is not None
        np.testing.assert_array_equal(picture.pixels, decode(plain, "a.png").pixels)
        assert picture.notes == (
            ("the colour profile is broken: ignored",) if name == b"iCCP" else ()
        )
    assert peak_kilobytes() - peak < 1 << 17


def test_damaged_profiles():
    rng = np.random.default_rng(0)
    for profile in (rgb_profile("ProPhoto RGB"), grey_profile(1.0)):
        mode = "L" if b"GRAY" in profile else "RGB"
        deep = np.random.default_rng(1).integers(0, 65536, (8, 8, 1 if mode == "L" else 3))
        for _ in range(60):
            damaged = with_damage(profile, rng)
            data = saved(smooth(mode), "PNG", icc_profile=damaged)
            assert _read_or_refuse(data, "a.png") is not None
            data = deep_png(deep, chunks=[(b"iCCP", iccp(damaged))])
            assert _read_or_refuse(data, "a.png") is not None


def test_wrong_endings_do_not_matter():
    for name, data in (
        ("a.jpg", saved(smooth("RGB"), "PNG")),
        ("a.png", saved(smooth("RGB"), "JPEG")),
        ("a.heic", saved(smooth("RGB"), "JPEG")),
        ("a", saved(smooth("RGB"), "WEBP")),
    ):
        assert _read_or_refuse(data, name) is not None


COMPRESSIONS = ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "group4", "packbits")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_no_library_prints_lines_of_its_own(compression, capfd):
    data = saved(smooth("1" if compression == "group4" else "RGB"), "TIFF", compression=compression)
    for seed in range(24):
        _read_or_refuse(with_damage(data, np.random.default_rng(seed)), "a.tif")
    assert capfd.readouterr() == ("", "")
