"""Addresses as paths: their names, and files in the memory of this process and in a bucket."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.images.files import find_pictures, read_bytes
from stylesr_jax.runs.places import make_ready, safe_stem
from stylesr_jax.runs.records import write_json
from stylesr_jax.runtime import storage
from stylesr_jax.runtime.files import atomic_path
from stylesr_jax.runtime.storage import Url, path_of


def test_addresses_are_told_from_paths():
    for text in ("a.png", "/a/b.png", "c:/a.png", "a//b.png", "odd:name.png"):
        assert type(path_of(text)) is type(Path())
    assert path_of("file:///a/b.png") == Path("/a/b.png")
    assert type(path_of("s3://bucket/a.png")) is Url


def test_an_address_has_the_names_of_a_path():
    url = path_of("s3://bucket/faces/a.b.png")
    assert str(url) == f"{url}" == "s3://bucket/faces/a.b.png"
    assert (url.name, safe_stem(url), url.suffix) == ("a.b.png", "a.b", ".png")
    assert str(url.parent / "x.json") == "s3://bucket/faces/x.json" and type(url.parent) is Url
    assert url == pickle.loads(pickle.dumps(url)) and str(pickle.loads(pickle.dumps(url))) == str(
        url
    )
    assert url != path_of("s3://bucket/faces/b.png") and len({url, path_of(str(url))}) == 1
    assert sorted([url, path_of("s3://bucket/faces/a.a.png")])[0].name == "a.a.png"


@pytest.fixture
def folder():
    """An empty folder in this process's memory."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    url = path_of("memory://faces")
    yield url
    if memory.exists("/faces"):
        memory.rm("/faces", recursive=True)


def test_files_are_written_read_and_removed(folder):
    url = folder / "out" / "report.json"
    assert not url.is_file()
    with pytest.raises(FileNotFoundError):
        url.read_bytes()
    write_json(url, {"a": 1})
    assert url.is_file() and not url.is_dir() and folder.is_dir()
    assert url.read_text() == '{\n  "a": 1\n}\n' and url.size() == 13
    assert [str(found) for found in (folder / "out").glob("*.*")] == [str(url)]
    assert list((folder / "out").glob("*.png")) == list((folder / "none").glob("*")) == []
    url.unlink()
    url.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        url.unlink()


def test_what_fails_half_way_is_not_sent(folder):
    with pytest.raises(RuntimeError), atomic_path(folder / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert not (folder / "a.txt").is_file()


def test_pictures_are_found_as_in_folders(folder, tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    for name in ("b.png", "a.png", ".hidden.png", "inner/c.png", ".inner/d.png", "notes.txt"):
        (folder / name).upload(tmp_path / "a.png")

    def names(text, **options):
        return [
            str(path).removeprefix(f"{folder}/") for path in find_pictures([text], **options).paths
        ]

    assert names(str(folder)) == ["a.png", "b.png"]
    assert names(str(folder), recursive=True) == ["a.png", "b.png", "inner/c.png"]
    assert names(f"{folder}/[b-z]*.png") == ["b.png"]
    assert names(f"{folder}/a.png") == ["a.png"]
    assert read_bytes(folder / "a.png") == (tmp_path / "a.png").read_bytes()
    (folder / "texts" / "a.txt").upload(tmp_path / "a.png")
    with pytest.raises(UserError, match="no images in this folder"):
        find_pictures([f"{folder}/texts"])


def test_files_that_there_are_not_are_said(folder):
    with pytest.raises(UserError, match=r"memory://faces/none\.png: no such file"):
        read_bytes(folder / "none.png")
    with pytest.raises(UserError, match=r"magic://a/b\.png"):
        read_bytes(path_of("magic://a/b.png"))


def test_errors_of_other_libraries_are_an_oserror(folder, monkeypatch):
    class Broken:
        def cat_file(self, name):
            raise KeyError("no credentials")

    monkeypatch.setattr(storage, "_open", lambda address: (Broken(), address))
    with pytest.raises(OSError, match="no credentials"):
        folder.read_bytes()


def test_a_folder_that_can_be_written_is_left_as_it_was(folder):
    make_ready(folder / "out", depth=1)
    assert list((folder / "out").glob("*")) == []
