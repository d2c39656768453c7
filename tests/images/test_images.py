"""Every kind of image file that people have, and every way in which one is broken."""

import hashlib
import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from icc_profiles import rgb_profile
from picture_files import with_chunk
from stylesr_jax.errors import UserError
from stylesr_jax.images.decoding import decode
from stylesr_jax.images.files import (
    read_image,
    read_picture,
    to_uint8,
    write_image,
    write_png,
)

RAMP = np.stack(
    [
        np.tile(np.arange(0, 240, 20, dtype=np.uint8), (8, 1)),
        np.full((8, 12), 100, np.uint8),
        np.full((8, 12), 200, np.uint8),
    ],
    axis=-1,
)


def _close(image, expected, tolerance=1.0):
    assert image.dtype == np.float32 and image.shape == expected.shape
    levels = (image + 1.0) * 127.5
    assert np.abs(levels - expected.astype(np.float32)).max() <= tolerance


def test_rgb_survives_a_round_trip(tmp_path):
    write_png(tmp_path / "a.png", RAMP)
    image = read_image(tmp_path / "a.png")
    _close(image, RAMP, tolerance=1e-3)
    write_png(tmp_path / "b.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), RAMP)


@pytest.mark.parametrize("ending", ["bmp", "tif", "webp", "ppm", "gif", "tga"])
def test_formats(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(RAMP).save(tmp_path / f"a.{ending}", **options)
    _close(read_image(tmp_path / f"a.{ending}"), RAMP, tolerance=2.0)


def test_grey_and_16_bit(tmp_path):
    grey = RAMP[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.float32) / 255.0).save(tmp_path / "float.tif")
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    for name in ("grey.png", "deep.png", "float.tif"):
        _close(read_image(tmp_path / name), expected)
    _close(read_image(tmp_path / "bits.png"), np.where(expected > 100, 255, 0))


def test_transparency_lies_on_white(tmp_path):
    alpha = np.concatenate([RAMP, np.zeros((8, 12, 1), np.uint8)], axis=-1)
    alpha[:, :6, 3] = 255
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    expected = RAMP.copy()
    expected[:, 6:] = 255
    _close(read_image(tmp_path / "alpha.png"), expected)
    palette = Image.fromarray(RAMP[..., 0] // 20).convert("P")
    palette.putpalette([i for v in range(0, 240, 20) for i in (v, 100, 200)])
    palette.info["transparency"] = 0
    palette.save(tmp_path / "palette.png", transparency=0)
    expected = RAMP.copy()
    expected[:, 0] = 255
    _close(read_image(tmp_path / "palette.png"), expected)


def test_cmyk_and_orientation(tmp_path):
    Image.new("CMYK", (12, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red = np.zeros((8, 12, 3), np.uint8)
    red[..., 0] = 255
    _close(read_image(tmp_path / "cmyk.jpg"), red, tolerance=6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(RAMP).save(tmp_path / "turned.png", exif=exif)
    _close(read_image(tmp_path / "turned.png"), np.rot90(RAMP, -1))


def test_broken_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("<html>not found</html>")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name, says in {
        "none.png": "no such file",
        "empty.png": "empty",
        "text.png": "not an image",
        "cut.png": "damaged or truncated",
        "cut.jpg": "damaged or truncated",
    }.items():
        with pytest.raises(UserError, match=says):
            read_image(tmp_path / name)


def test_decompression_bombs_are_refused(tmp_path):
    Image.new("1", (11_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="million"):
        read_image(tmp_path / "bomb.png")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="pixels"):
        read_image(tmp_path / "bomb.png")


def test_levels_are_clipped_never_rescaled():
    image = np.array([[[-3.0, -1.0, 0.0], [0.5, 1.0, 3.0]]], np.float32)
    assert to_uint8(image).ravel().tolist() == [0, 0, 128, 191, 255, 255]


def test_an_unwritable_folder_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_png(tmp_path / "file" / "a.png", RAMP)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_orientation(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a.png", "a.tif", "a.webp"):
            options = {"lossless": True} if name == "a.webp" else {}
            Image.fromarray(RAMP).save(tmp_path / name, exif=exif, **options)
            with Image.open(tmp_path / name) as image:
                expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            _close(read_image(tmp_path / name), expected, tolerance=1e-3)
            assert read_picture(tmp_path / name).saved_size == expected.shape[1::-1]


def _saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))


def test_bytes_are_decoded_as_the_file_is_and_hashed(tmp_path):
    data = _saved(NOISE, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    picture, from_file = decode(data, "a.png"), read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, from_file.pixels)
    assert picture.sha256 == from_file.sha256 == hashlib.sha256(data).hexdigest()
    assert picture.notes == () and picture.block == 1 and picture.saved_size == (64, 48)


def test_tables_of_jpegs():
    for subsampling, factors in ((0, (1, 1)), (1, (2, 1)), (2, (2, 2))):
        data = _saved(NOISE, "JPEG", quality=50, subsampling=subsampling)
        picture = decode(data, "a.jpg")
        tables = picture.jpeg_tables
        assert picture.lossy and tables is not None and tables.chrominance is not None
        # ITU-T T.81, tables K.1 and K.2, are those of quality 50.
        assert tables.luminance[0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]
        assert tables.luminance[:, 0].tolist() == [16, 12, 14, 14, 18, 24, 49, 72]
        assert tables.chrominance[0].tolist() == [17, 18, 24, 47, 99, 99, 99, 99]
        assert tables.subsampling == factors and tables.orientation == 1
    grey = decode(_saved(NOISE.convert("L"), "JPEG", quality=50), "a.jpg").jpeg_tables
    assert grey is not None and grey.chrominance is None and grey.luminance[0, 1] == 11
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(_saved(NOISE, "JPEG", exif=exif), "a.jpg").jpeg_tables
    assert turned is not None and turned.orientation == 6


def test_which_files_are_lossy():
    for format, options, lossy in (
        ("PNG", {}, False),
        ("BMP", {}, False),
        ("TIFF", {}, False),
        ("TIFF", {"compression": "tiff_lzw"}, False),
        ("TIFF", {"compression": "jpeg"}, True),
        ("WEBP", {"lossless": True}, False),
        ("WEBP", {"quality": 80}, True),
        ("WEBP", {"quality": 80, "icc_profile": rgb_profile("sRGB")}, True),
        ("JPEG", {}, True),
    ):
        picture = decode(_saved(NOISE, format, **options), "a")
        assert picture.lossy == lossy, (format, options)
        assert (picture.jpeg_tables is not None) == (format == "JPEG")


def test_of_animations_and_pages_the_first_is_read():
    frames = [NOISE.convert("P"), NOISE.rotate(180).convert("P")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = _saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        picture = decode(data, "a")
        assert picture.notes == ("several frames or pages: the first is read",)
        _close(picture.pixels, np.asarray(frames[0].convert("RGB")), tolerance=1e-3)


LONG_TEXT = b"long metadata " * 300_000


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"tEXt", b"Comment\0" + LONG_TEXT),
        (b"zTXt", b"Comment\0\0" + zlib.compress(LONG_TEXT)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG_TEXT)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LONG_TEXT),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LONG_TEXT)),
    ],
)
def test_long_texts_do_not_matter(name, body):
    data = with_chunk(_saved(NOISE, "PNG"), name, body)
    _close(decode(data, "a.png").pixels, np.asarray(NOISE), tolerance=1e-3)


def test_many_long_texts_do_not_matter():
    data = _saved(NOISE, "PNG")
    chunk = b"Comment\0\0" + zlib.compress(bytes(900_000))
    for _ in range(80):  # more in all than Pillow takes
        data = with_chunk(data, b"zTXt", chunk)
    _close(decode(data, "a.png").pixels, np.asarray(NOISE), tolerance=1e-3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_large_profiles_are_used(format):
    profile = rgb_profile("Display P3")
    profile += np.random.default_rng(0).bytes(3_000_000)
    profile = len(profile).to_bytes(4) + profile[4:]
    picture = decode(_saved(NOISE, format, icc_profile=profile), "a")
    assert picture.notes == ("colours converted from Display P3 to sRGB",)


def test_orientation_in_short_texts_counts():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = with_chunk(_saved(NOISE, "PNG"), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    _close(decode(data, "a.png").pixels, np.rot90(np.asarray(NOISE), -1), tolerance=1e-3)


def test_broken_exif_is_said_or_harmless():
    plain = decode(_saved(NOISE, "JPEG"), "a.jpg")
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0MM",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0rubbish" * 9,
    ):
        picture = decode(_saved(NOISE, "JPEG", exif=exif), "a.jpg")
        np.testing.assert_array_equal(picture.pixels, plain.pixels)
        assert set(picture.notes) <= {"the EXIF data is broken: ignored"}


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["colour", "grey", "floats"])
def test_written_files_are_in_srgb_and_carry_nothing_else(tmp_path, format, mode):
    pixels = np.asarray(NOISE.crop((0, 0, 4, 3)).resize((32, 24), Image.Resampling.BICUBIC))
    image = {"colour": pixels, "grey": pixels[..., 0], "floats": pixels / 127.5 - 1.0}[mode]
    path = tmp_path / f"a.{format}"
    write_image(path, image, format=format)
    with Image.open(path) as written:
        names = written.info.keys() - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        if format == "png":
            assert names == {"srgb"} and written.info["srgb"] == 0
        else:
            assert names - {"loop", "background", "timestamp", "duration"} == {"icc_profile"}
            profile = ImageCms.ImageCmsProfile(io.BytesIO(written.info["icc_profile"]))
            assert "sRGB" in ImageCms.getProfileDescription(profile)
        assert not written.getexif()
    picture = read_picture(path)
    shown = np.repeat(pixels[..., :1], 3, axis=2) if mode == "grey" else pixels
    _close(picture.pixels, shown, tolerance=12.0 if format == "jpg" else 1e-3)
    assert picture.notes == () and not picture.converted
    first = path.read_bytes()
    write_image(path, image, format=format)
    assert path.read_bytes() == first


def test_images_too_large_for_a_format_are_refused(tmp_path):
    line = np.zeros((1, 20_000, 3), np.uint8)
    with pytest.raises(UserError, match="too large for webp; choose png"):
        write_image(tmp_path / "a.webp", line, format="webp")
    write_image(tmp_path / "a.png", line, format="png")
    assert os.listdir(tmp_path) == ["a.png"]


ODD_NAMES = [
    b"a" * 251 + b".png",
    b"a." + b"p" * 253,
    "ä".encode() * 125 + b".png",
    b"caf\xe9 \xff.png",
    b"two\nlines.png",
    b"...png",
    b"-o.png",
    b"%s {x}.png",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_written_and_read(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        open(path, "wb").close()
    except OSError:
        pytest.skip("the file system takes no such name")
    os.unlink(path)
    write_png(os.fsdecode(path), RAMP)
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    _close(read_image(os.fsdecode(path)), RAMP, tolerance=1e-3)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_errors_name_odd_files_in_one_printable_line(tmp_path, name):
    with pytest.raises(UserError) as caught:
        read_image(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    assert str(caught.value).isprintable() and "no such file" in str(caught.value)


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.symlink("loop.png", tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    for path, says in (
        (tmp_path / "folder.png", "a folder"),
        (tmp_path / "loop.png", "cannot be read"),
        (tmp_path / "pipe.png", "a device or pipe"),
        ("/dev/zero", "a device or pipe"),
        (tmp_path / ("a" * 300), "cannot be read"),
        ("nul\0.png", "not a name"),
    ):
        with pytest.raises(UserError, match=says):
            read_image(path)


def test_huge_files_are_refused_unread(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="save a smaller image"):
        read_image(tmp_path / "a.png")
