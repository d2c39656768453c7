"""Every kind of image file that people have, and every way in which one is broken."""

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.images.files import find_images, read_image, to_uint8, write_png

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


def test_folders_globs_and_duplicates(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(RAMP).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    found = find_images([str(tmp_path), str(tmp_path / "*.png")])
    assert [path.name for path in found] == ["a.jpg", "b.png"]
    with pytest.raises(UserError, match="no images in this folder"):
        find_images([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="no file matches"):
        find_images([str(tmp_path / "*.bmp")])


def test_an_unwritable_folder_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_png(tmp_path / "file" / "a.png", RAMP)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
