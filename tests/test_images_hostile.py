"""Damaged and hostile picture files: a picture or one line, never a traceback, hang or flood."""

import io
import resource
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from icc_profiles import cmyk_profile, grey_profile, rgb_profile
from picture_files import (
    PNG_SIGNATURE,
    deep_png,
    iccp,
    png_chunk,
    with_chunk,
    write_deep_png,
    write_tiff,
)
from PIL import Image, features

from stylesr_jax.errors import UserError
from stylesr_jax.images.decoding import decode

MAX_SECONDS = 20.0  # of a file of a few kB, on a busy machine
MAX_GROWTH = 1 << 20  # kB of memory, over all the files of a test


def _saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _smooth(mode):
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC).convert(mode)


def _sound_files(folder):
    """Name -> bytes of small sound files of many kinds."""
    rgb, exif = _smooth("RGB"), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    p3, grey = rgb_profile("Display P3"), grey_profile(1.8)
    inks = cmyk_profile(np.linspace(0, 90, 48).reshape(2, 2, 2, 2, 3))
    deep = np.random.default_rng(1).integers(0, 65536, (20, 24, 3), np.uint16)
    write_deep_png(folder / "deep.png", deep, chunks=[(b"iCCP", iccp(p3))])
    write_tiff(folder / "deep.tif", deep, tags={34675: ("B", p3)})
    write_tiff(folder / "float.tif", (deep[..., :1] / 65535.0).astype(np.float32))
    frames = [_smooth("P"), _smooth("P").rotate(90)]
    files = {
        "a.png": _saved(rgb, "PNG", icc_profile=p3, exif=exif),
        "grey.png": _saved(_smooth("L"), "PNG", icc_profile=grey),
        "alpha.png": _saved(_smooth("RGBA"), "PNG"),
        "palette.png": _saved(_smooth("P"), "PNG", transparency=3),
        "a.jpg": _saved(rgb, "JPEG", exif=exif, icc_profile=p3),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True, quality=60),
        "cmyk.jpg": _saved(_smooth("CMYK"), "JPEG", icc_profile=inks),
        "a.tif": _saved(rgb, "TIFF", icc_profile=p3),
        "lzw.tif": _saved(rgb, "TIFF", compression="tiff_lzw", exif=exif),
        "jpeg.tif": _saved(rgb, "TIFF", compression="jpeg"),
        "a.webp": _saved(rgb, "WEBP", icc_profile=p3, exif=exif),
        "lossless.webp": _saved(_smooth("RGBA"), "WEBP", lossless=True),
        "a.gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.png": _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        "a.bmp": _saved(rgb, "BMP"),
        "a.ppm": _saved(rgb, "PPM"),
        "a.tga": _saved(rgb, "TGA", compression="tga_rle"),
        "a.ico": _saved(rgb, "ICO"),
        "a.pcx": _saved(rgb, "PCX"),
        "a.sgi": _saved(rgb, "SGI"),
        "a.dds": _saved(rgb, "DDS"),
        "a.jp2": _saved(rgb, "JPEG2000"),
    }
    if "avif" in features.modules and features.check("avif"):
        files["a.avif"] = _saved(rgb, "AVIF")
    return files | {path.name: path.read_bytes() for path in folder.iterdir()}


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


def _peak_kilobytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def _damaged(data, rng):
    """A cut, changed bits, a changed run, or a doubled or missing piece, anywhere."""
    kind = rng.integers(5)
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    if kind == 0:
        return data[:b]
    if kind == 1:
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 9)):
            changed[place] ^= 1 << rng.integers(8)
        return bytes(changed)
    if kind == 2:
        b = min(b, a + 16)
        return data[:a] + rng.bytes(b - a) + data[b:]
    return data[:b] + data[a:] if kind == 3 else data[:a] + data[b:]


def _with_right_checksums(data):
    """A PNG file whose damage its checksums do not show; any other file as it is."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    parts, begin = [PNG_SIGNATURE], 8
    while begin + 12 <= len(data):
        end = begin + 12 + int.from_bytes(data[begin : begin + 4])
        parts.append(
            png_chunk(data[begin + 4 : begin + 8], data[begin + 8 : min(end, len(data)) - 4])
        )
        begin = end
    return b"".join(parts)


def _assert_damage_is_survived(folder, seeds):
    peak = _peak_kilobytes()
    for name, data in _sound_files(folder).items():
        assert _read_or_refuse(data, name) is not None
        for seed in seeds:
            damaged = _damaged(data, np.random.default_rng([seed, len(data)]))
            _read_or_refuse(_with_right_checksums(damaged) if seed % 2 else damaged, name)
    assert _peak_kilobytes() - peak < MAX_GROWTH


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
    picture = decode(_saved(image, "PNG"), "a.png")
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_allclose((picture.pixels + 1.0) * 127.5, expected, atol=1e-3)


@pytest.mark.slow
def test_the_largest_pictures():
    image = Image.new("RGB", (30_000, 3_000), (10, 20, 30))
    image.putpixel((29_999, 2_999), (255, 255, 255))
    picture = decode(_saved(image, "PNG"), "a.png")
    assert picture.pixels.shape == (3_000, 30_000, 3) and picture.block == 1
    np.testing.assert_allclose(picture.pixels[-1, -1], 1.0)


def _png_that_claims(width, height, *, depth=8, kind=2):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(bytes(100)))]
    return PNG_SIGNATURE + b"".join(parts) + png_chunk(b"IEND", b"")


def _gif_that_claims(width, height):
    data = bytearray(_saved(Image.new("P", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def _tiff_whose_pages_loop(folder):
    write_tiff(folder / "a.tif", np.zeros((4, 4, 1), np.uint8))
    data = bytearray((folder / "a.tif").read_bytes())
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * count, directory)
    return bytes(data)


def test_claims_are_not_believed(tmp_path):
    peak = _peak_kilobytes()
    for data, refused in (
        (_png_that_claims(50_000, 50_000), True),
        (_png_that_claims(2**31 - 1, 2**31 - 1), True),
        (_png_that_claims(0, 5), True),
        (_png_that_claims(3_000, 3_000), True),
        (_png_that_claims(3_000, 3_000, depth=16), True),
        (_gif_that_claims(65_535, 65_535), True),
        (b"P6 99999999 99999999 255\n", True),
        (b"BM" + b"\xff" * 60, True),
        (_tiff_whose_pages_loop(tmp_path), False),
    ):
        assert (_read_or_refuse(data, "a") is None) == refused
    assert _peak_kilobytes() - peak < MAX_GROWTH


def test_metadata_that_unpacks_to_much_is_not_unpacked():
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(12)) + packer.flush()
    plain = _saved(_smooth("RGB"), "PNG")
    peak = _peak_kilobytes()
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
    assert _peak_kilobytes() - peak < 1 << 17


def test_damaged_profiles():
    rng = np.random.default_rng(0)
    for profile in (rgb_profile("ProPhoto RGB"), grey_profile(1.0)):
        mode = "L" if b"GRAY" in profile else "RGB"
        deep = np.random.default_rng(1).integers(0, 65536, (8, 8, 1 if mode == "L" else 3))
        for _ in range(60):
            damaged = _damaged(profile, rng)
            data = _saved(_smooth(mode), "PNG", icc_profile=damaged)
            assert _read_or_refuse(data, "a.png") is not None
            data = deep_png(deep, chunks=[(b"iCCP", iccp(damaged))])
            assert _read_or_refuse(data, "a.png") is not None


def test_wrong_endings_do_not_matter():
    for name, data in (
        ("a.jpg", _saved(_smooth("RGB"), "PNG")),
        ("a.png", _saved(_smooth("RGB"), "JPEG")),
        ("a.heic", _saved(_smooth("RGB"), "JPEG")),
        ("a", _saved(_smooth("RGB"), "WEBP")),
    ):
        assert _read_or_refuse(data, name) is not None
