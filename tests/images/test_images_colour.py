"""Colours of files with profiles are those of sRGB."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from icc_profiles import (
    D50,
    cmyk_profile,
    encoded,
    grey_profile,
    in_srgb,
    matrix_of,
    power_curve,
    rgb_profile,
    srgb_curve,
    table_curve,
)
from picture_files import iccp, with_chunk, write_deep_png, write_tiff
from stylesr_jax.images.colour import parse_matrix_profile
from stylesr_jax.images.files import read_picture, write_image

OTHERS = ("Display P3", "Adobe RGB (1998)", "ProPhoto RGB")
LEVELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
SMOOTH = np.stack(np.meshgrid(np.arange(64) * 3 + 30, np.arange(64) * 3 + 40), axis=-1)
SMOOTH = np.concatenate([SMOOTH, np.full((64, 64, 1), 90)], axis=2).astype(np.uint8)
ICC_TAG = 34675  # of TIFF


def _levels(picture):
    return (picture.pixels + 1.0) * 127.5


def _assert_levels(picture, expected, tolerance):
    np.testing.assert_allclose(_levels(picture), expected, atol=tolerance)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_profiles_of_lossless_files(tmp_path, name, ending):
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(LEVELS).save(path, icc_profile=rgb_profile(name), **options)
    picture = read_picture(path)
    _assert_levels(picture, in_srgb(LEVELS / 255.0, name) * 255.0, 1.0)
    assert picture.notes == (f"colours converted from {name} to sRGB",) and picture.converted


@pytest.mark.parametrize("name", OTHERS)
def test_profiles_of_jpegs(tmp_path, name):
    Image.fromarray(SMOOTH).save(
        tmp_path / "a.jpg", quality=100, subsampling=0, icc_profile=rgb_profile(name)
    )
    difference = _levels(read_picture(tmp_path / "a.jpg")) - in_srgb(SMOOTH / 255.0, name) * 255.0
    assert np.abs(difference).mean() < 1.0
    assert np.abs(in_srgb(SMOOTH / 255.0, name) * 255.0 - SMOOTH).mean() > 3.0


@pytest.mark.parametrize("name", OTHERS)
def test_profiles_of_16_bit_files(tmp_path, name):
    deep = np.random.default_rng(1).integers(0, 65536, (24, 40, 3), np.uint16)
    profile = rgb_profile(name)
    write_deep_png(tmp_path / "a.png", deep, chunks=[(b"iCCP", iccp(profile))])
    write_tiff(tmp_path / "a.tif", deep, tags={ICC_TAG: ("B", profile)})
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        picture = read_picture(path)
        # Finer than 8 bits could be but in the darkest, where profiles' own rounding shows.
        difference = np.abs(_levels(picture) - in_srgb(deep / 65535.0, name) * 255.0)
        assert difference.max() < 0.5 and difference.mean() < 0.02
        assert picture.notes == (f"colours converted from {name} to sRGB",)


def test_the_16_bit_curves_are_those_of_the_profile():
    x = np.linspace(0.0, 1.0, 65536)
    table = np.linspace(0.0, 1.0, 1024) ** 1.8
    srgb = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    curves = {
        power_curve(1.8): x ** (461 / 256),
        table_curve(table): x**1.8,
        srgb_curve(): srgb,
    }
    for curve, expected in curves.items():
        parsed = parse_matrix_profile(rgb_profile("sRGB", curve=curve))
        assert parsed is not None and parsed.matrix is not None
        np.testing.assert_allclose(parsed.curves, np.stack([expected] * 3), atol=1e-4)
        np.testing.assert_allclose(parsed.matrix.sum(axis=1), (0.9642, 1.0, 0.8249), atol=1e-3)


def test_a_profile_of_srgb_changes_no_level(tmp_path):
    for i, profile in enumerate(
        (rgb_profile("sRGB"), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    ):
        Image.fromarray(LEVELS).save(tmp_path / f"{i}.png", icc_profile=profile)
        picture = read_picture(tmp_path / f"{i}.png")
        _assert_levels(picture, LEVELS, 1e-3)
        assert picture.notes == () and not picture.converted


def test_transparency_and_palettes_have_profiles_too(tmp_path):
    profile = rgb_profile("Display P3")
    alpha = np.concatenate([LEVELS, np.full((24, 40, 1), 255, np.uint8)], axis=2)
    alpha[:, 20:, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "alpha.png", icc_profile=profile)
    expected = in_srgb(LEVELS / 255.0, "Display P3") * 255.0
    expected[:, 20:] = 255.0
    _assert_levels(read_picture(tmp_path / "alpha.png"), expected, 1.0)
    palette = Image.fromarray(LEVELS).quantize(64)
    palette.save(tmp_path / "palette.png", icc_profile=profile)
    plain = np.asarray(palette.convert("RGB")) / 255.0
    _assert_levels(
        read_picture(tmp_path / "palette.png"), in_srgb(plain, "Display P3") * 255.0, 1.0
    )


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
def test_grey_profiles(tmp_path, gamma):
    grey = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    profile = grey_profile(gamma)
    exact = round(gamma * 256) / 256
    expected = np.repeat(encoded((grey / 255.0) ** exact)[..., None] * 255.0, 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile)
    _assert_levels(read_picture(tmp_path / "a.png"), expected, 1.0)
    half = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (256, 8), 102)])
    half.save(tmp_path / "clear.png", icc_profile=profile)
    on_white = 0.4 * expected + 0.6 * 255.0
    _assert_levels(read_picture(tmp_path / "clear.png"), on_white, 1.5)
    write_tiff(
        tmp_path / "a.tif",
        grey[..., None].astype(np.uint16) * 257,
        tags={ICC_TAG: ("B", profile)},
    )
    _assert_levels(read_picture(tmp_path / "a.tif"), expected, 0.2)


def test_cmyk_profiles(tmp_path):
    lab = np.random.default_rng(2).uniform((40, -20, -20), (80, 20, 20), (2, 2, 2, 2, 3)).round()
    lab[0, 0, 0, 0], lab[1, 1, 1, 1] = (100, 0, 0), (0, 0, 0)
    corners = np.stack(np.meshgrid(*[[0, 255]] * 4, indexing="ij"), axis=-1).astype(np.uint8)
    inks = corners.reshape(1, 16, 4).repeat(16, axis=1).repeat(16, axis=0)
    image = Image.frombytes("CMYK", (256, 16), inks.tobytes())
    image.save(tmp_path / "a.tif", icc_profile=cmyk_profile(lab))
    image.save(tmp_path / "a.jpg", quality=100, subsampling=0, icc_profile=cmyk_profile(lab))
    expected = _srgb_of_lab(lab.reshape(1, 16, 3)) * 255.0
    for name in ("a.tif", "a.jpg"):
        picture = read_picture(tmp_path / name, mosaics=False)
        np.testing.assert_allclose(_levels(picture)[8:9, 8::16], expected, atol=2.0)
        assert picture.notes == ("colours converted from test inks to sRGB",)


def _srgb_of_lab(lab):
    """CIE 15: L*, a*, b* under D50 to sRGB values in [0, 1]."""
    fy = (lab[..., 0] + 16.0) / 116.0
    f = np.stack([fy + lab[..., 1] / 500.0, fy, fy - lab[..., 2] / 200.0], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * np.array(D50)
    return encoded(xyz @ np.linalg.inv(matrix_of("sRGB")).T)


def test_lab_files(tmp_path):
    lab = np.array([[(50, 20, -10), (80, -30, 40), (30, 0, 0), (95, 5, 5)]] * 4)
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1] % 256, lab[..., 2] % 256], axis=-1)
    Image.frombytes("LAB", (4, 4), np.rint(stored).astype(np.uint8).tobytes()).save(
        tmp_path / "a.tif"
    )
    _assert_levels(read_picture(tmp_path / "a.tif"), _srgb_of_lab(lab) * 255.0, 2.0)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_a_broken_profile_is_said_and_ignored(tmp_path, ending):
    whole = rgb_profile("Display P3")
    for i, profile in enumerate((b"not a profile", whole[:100], bytes(len(whole)))):
        path = tmp_path / f"{i}.{ending}"
        Image.fromarray(SMOOTH).save(path, icc_profile=profile)
        plain = tmp_path / f"plain.{ending}"
        Image.fromarray(SMOOTH).save(plain)
        picture = read_picture(path)
        assert picture.notes == ("the colour profile is broken: ignored",)
        np.testing.assert_array_equal(picture.pixels, read_picture(plain).pixels)


def test_a_profile_of_png_that_cannot_be_unpacked_is_said_and_ignored(tmp_path):
    write_image(tmp_path / "a.png", LEVELS)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(with_chunk(data, b"iCCP", b"name\0\0no zlib data"))
    picture = read_picture(tmp_path / "b.png")
    assert picture.notes == ("the colour profile is broken: ignored",)
    _assert_levels(picture, LEVELS, 1e-3)


def test_a_profile_of_other_channels_is_said_and_ignored(tmp_path):
    Image.fromarray(LEVELS).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    deep = LEVELS.astype(np.uint16) * 257
    write_deep_png(tmp_path / "b.png", deep, chunks=[(b"iCCP", iccp(grey_profile(1.0)))])
    for name in ("a.png", "b.png"):
        picture = read_picture(tmp_path / name)
        assert picture.notes == ("the colour profile is for GRAY, the image is not: ignored",)
        _assert_levels(picture, LEVELS, 1e-2)


def test_a_profile_of_colours_fits_grey(tmp_path):
    grey = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    expected = in_srgb(np.repeat(grey[..., None], 3, axis=2) / 255.0, "ProPhoto RGB") * 255.0
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=rgb_profile("ProPhoto RGB"))
    write_deep_png(
        tmp_path / "b.png",
        grey[..., None].astype(np.uint16) * 257,
        chunks=[(b"iCCP", iccp(rgb_profile("ProPhoto RGB")))],
    )
    for name in ("a.png", "b.png"):
        _assert_levels(read_picture(tmp_path / name), expected, 1.0)
