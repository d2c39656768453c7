"""Which files of a folder are pictures, and what is said of the others."""

import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from picture_files import write_tiff
from stylesr_jax.errors import UserError
from stylesr_jax.images.files import find_images, find_pictures, read_image, write_png

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
SKIPPED = {
    "IMG_1.HEIC": "pip install pillow-heif",
    "b.heif": "pip install pillow-heif",
    "c.CR2": "raw camera data",
    "d.nef": "raw camera data",
    "e.dng": "raw camera data",
    "f.MOV": "ffmpeg",
    "g.mp4": "ffmpeg",
    "h.svg": "export it as PNG",
    "i.xcf": "save it as PNG",
    "j.jxl": "save it as PNG",
}


def _names(paths):
    return [path.name for path in paths]


def _fill(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        write_png(folder / name, PIXELS)


def test_folders_globs_and_duplicates(tmp_path):
    _fill(tmp_path, "b.png", "a.jpg", "C.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    found = find_images([str(tmp_path), str(tmp_path / "*.png")])
    assert _names(found) == ["C.PNG", "a.jpg", "b.png"]
    assert find_images([str(tmp_path / "b.png")]) == [tmp_path / "b.png"]
    assert find_pictures([str(tmp_path)]).skipped == []
    with pytest.raises(UserError, match=r"no images in this folder$"):
        find_images([str(tmp_path / "empty")])
    with pytest.raises(UserError, match=r"no file matches this pattern$"):
        find_images([str(tmp_path / "*.bmp")])


def test_a_file_whose_name_is_a_pattern(tmp_path):
    _fill(tmp_path, "a[1].png", "a1.png")
    assert _names(find_images([str(tmp_path / "a[1].png")])) == ["a[1].png"]


def test_hidden_files_do_not_count(tmp_path):
    _fill(tmp_path, "a.png", ".hidden.png", "...png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7 of macOS")
    assert _names(find_images([str(tmp_path)])) == ["a.png"]
    assert _names(find_images([str(tmp_path / "*")])) == ["a.png"]
    assert find_pictures([str(tmp_path)]).skipped == []


@pytest.fixture
def no_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.mark.usefixtures("no_heif")
@pytest.mark.parametrize("pattern", ["", "*"])
def test_picture_like_files_are_skipped_by_name(tmp_path, pattern):
    _fill(tmp_path, "a.png")
    for name in SKIPPED:
        (tmp_path / name).write_bytes(b"something")
    found = find_pictures([str(tmp_path / pattern)])
    assert _names(found.paths) == ["a.png"]
    for name, advice in SKIPPED.items():
        (line,) = [line for line in found.skipped if name in line]
        assert advice in line and line.isprintable()
    assert len(found.skipped) == 5  # one for each kind


@pytest.mark.usefixtures("no_heif")
def test_a_folder_of_only_such_files_says_so(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    for text in (str(tmp_path), str(tmp_path / "*.HEIC")):
        with pytest.raises(UserError, match=r"no image.*IMG_1\.HEIC.*-m pip install pillow-h") as e:
            find_images([text])
        assert str(e.value).isprintable()


def test_many_skipped_files_are_counted(tmp_path):
    _fill(tmp_path, "a.png")
    for i in range(25):
        (tmp_path / f"{i:02}.nef").write_bytes(b"raw")
    (line,) = find_pictures([str(tmp_path)]).skipped
    assert "00.nef, 01.nef" in line and "09.nef and 15 more" in line and "10.nef" not in line


def test_folders_in_folders(tmp_path):
    _fill(tmp_path, "b.png")
    _fill(tmp_path / "a", "c.png")
    _fill(tmp_path / "a" / "deeper", "d.png")
    _fill(tmp_path / ".hidden", "e.png")
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    os.symlink("self.png", tmp_path / "self.png")
    (tmp_path / "a" / "f.mov").write_bytes(b"video")
    assert _names(find_pictures([str(tmp_path)]).paths) == ["b.png"]
    found = find_pictures([str(tmp_path)], recursive=True)
    assert _names(found.paths) == ["b.png", "c.png", "d.png"]
    assert "f.mov" in found.skipped[0]


def test_a_name_that_cannot_be_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        find_images([str(tmp_path / ("a" * 300))])


@pytest.mark.usefixtures("no_heif")
def test_files_that_cannot_be_read_say_what_to_do(tmp_path):
    whole = {
        "a.heic": (HEIC, "pip install pillow-heif"),
        "misnamed.jpg": (HEIC, "pip install pillow-heif"),
        "general.heif": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40), "pillow-heif"),
        "a.mov": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(40), "ffmpeg"),
        "a.avi": (b"RIFF\xff\0\0\0AVI LIST", "ffmpeg"),
        "a.cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw camera data"),
        "a.png": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "raw camera data"),
        "a.pdf": (b"%PDF-1.7\n", "export it as PNG"),
        "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "export it as PNG"),
        "a.jxl": (b"\xff\x0a" + bytes(40), "save it as PNG"),
    }
    for name, (data, advice) in whole.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=advice):
            read_image(tmp_path / name)


def test_the_preview_of_a_raw_file_is_not_taken_for_the_picture(tmp_path):
    write_tiff(tmp_path / "a.nef", PIXELS)
    write_tiff(tmp_path / "b.tif", PIXELS, tags={50706: ("B", (1, 4, 0, 0))})
    for name in ("a.nef", "b.tif"):
        with pytest.raises(UserError, match="raw camera data"):
            read_image(tmp_path / name)


def test_heic_is_read_when_pillow_heif_is_installed(tmp_path, monkeypatch):
    """A module in its place registers a reader, as pillow-heif does."""

    class Heif(Image.Image):
        pass

    def opened(file, name):
        image = Heif()
        image.__dict__.update(Image.fromarray(PIXELS).__dict__)
        return image

    def register():
        Image.register_open("HEIF", opened, lambda start: start[4:12] == b"ftypheic")

    monkeypatch.setitem(
        sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register)
    )
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    assert find_pictures([str(tmp_path)]) == ([tmp_path / "IMG_1.HEIC"], [])
    levels = (read_image(tmp_path / "IMG_1.HEIC") + 1.0) * 127.5
    np.testing.assert_allclose(levels, PIXELS, atol=1e-3)


def test_heic_files(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    smooth = Image.fromarray(PIXELS[:3, :4]).resize((64, 48), Image.Resampling.BICUBIC)
    pillow_heif.from_pillow(smooth).save(tmp_path / "a.heic", quality=95)
    levels = (read_image(tmp_path / "a.heic") + 1.0) * 127.5
    assert np.abs(levels - np.asarray(smooth)).mean() < 4.0
