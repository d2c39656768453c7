"""Hostile command lines, made from seeds: pictures, weight files, npz, names, masks and options."""

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image
from safetensors import safe_open

import weight_files as wf
from convert.state_dict import random_state
from corpus_pictures import (
    gif_that_claims,
    png_that_claims,
    saved,
    smooth,
    sound_files,
    tiff_whose_pages_loop,
    with_damage,
    with_right_checksums,
)
from icc_profiles import rgb_profile
from picture_files import iccp, png_chunk, with_chunk
from stylesr_jax.runtime.weights import HEADER_KEY

BICUBIC = ("--method", "bicubic", "--solutions", "1")
BOMB = 5 << 28  # bytes of an archive's member
SEEDS = range(6)  # of the damage of each sound file


@dataclass(frozen=True)
class Files:
    """Sound files that cases are made of.

    Attributes:
        generator, prior: of the tiny generator.
        solutions: a solutions.npz of a search on it.
        evaluation: a folder in which `evaluate` has run, results in "out".
        folder: where a case puts its own files; --out is "out" in there.
    """

    generator: Path
    prior: Path
    solutions: Path
    evaluation: Path
    folder: Path

    @property
    def photo(self) -> Path:
        """A small sound picture, made at the first use."""
        path = self.folder / "photo.png"
        if not path.exists():
            path.write_bytes(saved(smooth("RGB").resize((8, 8)), "PNG"))
        return path

    @property
    def original(self) -> Path:
        """A sound picture to degrade, made at the first use."""
        path = self.folder / "original.png"
        if not path.exists():
            path.write_bytes(saved(smooth("RGB").resize((24, 24)), "PNG"))
        return path


Arguments = list[str | os.PathLike[str]]


@dataclass(frozen=True)
class Case:
    """A command line that `arguments` makes, its files included.

    Attributes:
        command: "upsample", "evaluate" or "convert".
        ends: the exit codes that are right.
    """

    name: str
    command: str
    arguments: Callable[[Files], Arguments]
    ends: tuple[int, ...] = (0, 2)


def _upsample(
    files: Files, *arguments: Any, generator: Path | None = None, prior: Path | None = None
) -> Arguments:
    own = ("--generator", generator or files.generator, "--prior", prior or files.prior)
    return [*arguments, *own, "--out", files.folder / "out", "--quiet"]


# --- Pictures ---------------------------------------------------------------------------------


@cache
def sound_pictures() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        return sound_files(Path(folder))


def file_in(files: Files, name: str, data: bytes) -> Path:
    """A case's own file."""
    path = files.folder / name
    path.write_bytes(data)
    return path


def _picture(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    return _upsample(files, file_in(files, name, data()), *BICUBIC)


def damaged_picture(name: str, seed: int) -> bytes:
    data = sound_pictures()[name]
    damaged = with_damage(data, np.random.default_rng([seed, len(data)]))
    return with_right_checksums(damaged) if seed % 2 else damaged


def _exif(orientation: int) -> bytes:
    """A JPEG file whose EXIF says an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(smooth("RGB"), "JPEG", exif=exif)


def _of_side(width: int, height: int) -> bytes:
    return saved(Image.new("RGB", (width, height), (90, 120, 60)), "PNG")


def _frames(format: str) -> bytes:
    frames = [smooth("RGB").rotate(angle) for angle in (0, 90, 180)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:])


def _looping_tiff() -> bytes:
    with TemporaryDirectory() as folder:
        return tiff_whose_pages_loop(Path(folder))


def _jpeg_with(segment: bytes) -> bytes:
    data = saved(smooth("RGB"), "JPEG")
    return data[:2] + segment + data[2:]


def _app(number: int, body: bytes) -> bytes:
    return bytes((0xFF, 0xE0 + number)) + struct.pack(">H", len(body) + 2) + body


def odd_pictures() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Name -> a file's name and its bytes."""
    noise = np.random.default_rng(5)
    text = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0up\0\0" + bytes(4)
    ifd = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    loop = b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0"
    png = partial(saved, smooth("RGB"), "PNG")
    jpeg = partial(saved, smooth("RGB"), "JPEG")
    return {
        "empty": ("a.png", bytes),
        "one byte": ("a.jpg", lambda: b"\xff"),
        "noise": ("a.png", lambda: noise.bytes(5000)),
        "zeros": ("a.tif", lambda: bytes(5000)),
        "signature alone": ("a.png", lambda: b"\x89PNG\r\n\x1a\n"),
        "png called jpg": ("a.jpg", png),
        "jpeg called png": ("a.png", jpeg),
        "jpeg called heic": ("a.heic", jpeg),
        "png called npz": ("a.npz", png),
        "png without an ending": ("a", png),
        "text called png": ("a.png", lambda: b"hello\nworld\n"),
        "html called jpg": ("a.jpg", lambda: b"<!DOCTYPE html><html>404</html>"),
        "svg called png": ("a.png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "postscript": ("a.png", lambda: b"%!PS\n(/etc/passwd) run\n"),
        "1x1": ("a.png", partial(_of_side, 1, 1)),
        "1x300": ("a.png", partial(_of_side, 1, 300)),
        "3x256": ("a.png", partial(_of_side, 3, 256)),
        "4x256": ("a.png", partial(_of_side, 4, 256)),
        "257x5": ("a.png", partial(_of_side, 257, 5)),
        "30000x1": ("a.png", partial(_of_side, 30_000, 1)),
        "1x30000": ("a.png", partial(_of_side, 1, 30_000)),
        "30000x40": ("a.png", partial(_of_side, 30_000, 40)),
        "animated gif": ("a.gif", partial(_frames, "GIF")),
        "animated png": ("a.png", partial(_frames, "PNG")),
        "animated webp": ("a.webp", partial(_frames, "WEBP")),
        "pages of tiff": ("a.tif", partial(_frames, "TIFF")),
        "pages that loop": ("a.tif", _looping_tiff),
        "claims 50000x50000": ("a.png", partial(png_that_claims, 50_000, 50_000)),
        "claims 2^31 x 2^31": ("a.png", partial(png_that_claims, 2**31 - 1, 2**31 - 1)),
        "claims 0x5": ("a.png", partial(png_that_claims, 0, 5)),
        "claims 9000x9000": ("a.png", partial(png_that_claims, 9_000, 9_000, depth=16)),
        "gif claims 65535x65535": ("a.gif", partial(gif_that_claims, 65_535, 65_535)),
        "ppm claims much": ("a.ppm", lambda: b"P6 99999999 99999999 255\n"),
        "bmp of ones": ("a.bmp", lambda: b"BM" + b"\xff" * 60),
        "orientation 0": ("a.jpg", partial(_exif, 0)),
        "orientation 65535": ("a.jpg", partial(_exif, 65535)),
        "orientation of text": ("a.jpg", lambda: _jpeg_with(_app(1, text))),
        "exif cut off": ("a.jpg", lambda: _jpeg_with(_app(1, ifd))),
        "exif that loops": ("a.jpg", lambda: _jpeg_with(_app(1, loop))),
        "exif of noise": ("a.jpg", lambda: _jpeg_with(_app(1, b"Exif\0\0" + noise.bytes(900)))),
        "xmp of noise": ("a.jpg", lambda: _jpeg_with(_app(1, noise.bytes(900)))),
        "icc of noise": ("a.jpg", lambda: saved(smooth("RGB"), "JPEG", icc_profile=bytes(300))),
        "icc cut off": ("a.png", lambda: with_chunk(png(), b"iCCP", b"x\0\0\x78")),
        "icc of cmyk on rgb": (
            "a.png",
            lambda: with_chunk(png(), b"iCCP", iccp(rgb_profile("sRGB").replace(b"RGB ", b"CMYK"))),
        ),
        "a chunk of 4 GB": ("a.png", lambda: png()[:33] + b"\xff\xff\xff\xffIDAT" + bytes(90)),
        "text before the picture": ("a.png", lambda: b"\xef\xbb\xbf" + png()),
        "two headers": ("a.png", lambda: with_chunk(png(), b"IHDR", png()[16:29])),
        "end in the middle": ("a.png", lambda: with_chunk(png(), b"IEND", b"")),
        "chunk after the end": ("a.png", lambda: png() + png_chunk(b"IDAT", b"x")),
    }


def _picture_cases() -> Iterator[Case]:
    for name, (file, data) in odd_pictures().items():
        yield Case(f"picture: {name}", "upsample", partial(_picture, file, data))
    for name in sound_pictures():
        for seed in SEEDS:
            make = partial(_picture, name, partial(damaged_picture, name, seed))
            yield Case(f"picture: {name}, damage {seed}", "upsample", make)


# --- Weight files -----------------------------------------------------------------------------


@cache
def _state() -> dict[str, np.ndarray]:
    sizes: dict[str, Any] = {"channel_max": 4, "z_dim": 8, "w_dim": 8, "mapping_layers": 2}
    return random_state(seed=0, resolution=8, channel_base=64, **sizes)


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@cache
def _weights() -> dict[str, bytes]:
    state = _state()
    rosinality = wf.rosinality_state(state)
    return {
        "ada.pkl": wf.ada_pickle(wf.ada_network(state)),
        "tf.pkl": wf.dumps((None, None, wf.tf_generator(state))),
        "rosinality.pt": wf.torch_save_zip({"g_ema": rosinality}),
        "legacy.pt": wf.torch_save_legacy({"g_ema": rosinality}),
        "state.npz": _npz(state),
        "state.safetensors": safetensors.numpy.save(state),
    }


def _converted(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    source = file_in(files, name, data())
    return [source, "--out", files.folder / "out" / "converted.safetensors"]


def _as_generator(name: str, data: Callable[[Files], bytes], files: Files) -> Arguments:
    own = file_in(files, name, data(files))
    search = ("--method", "csgm", "--steps", "2", "--solutions", "1")
    return _upsample(files, files.photo, *search, generator=own)


def _damaged_weights(name: str, seed: int) -> bytes:
    data = _weights()[name]
    return with_damage(data, np.random.default_rng([seed, len(data)]))


def _damaged_file(kind: str, seed: int, files: Files) -> bytes:
    """Our own file, damaged in the header's first kilobytes or anywhere."""
    data = getattr(files, kind).read_bytes()
    begin = len(data) if seed % 2 else 4000
    return with_damage(data[:begin], np.random.default_rng(seed)) + data[begin:]


def _rewritten(
    path: Path,
    change: Callable[[dict[str, Any], dict[str, np.ndarray]], Any],
) -> bytes:
    """Our own file with a changed header, or changed arrays; a text replaces the header."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads((file.metadata() or {})[HEADER_KEY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = change(header, arrays)
    metadata = {HEADER_KEY: text if isinstance(text, str) else json.dumps(header)}
    return safetensors.numpy.save(arrays, metadata)


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]


def _setting(name: str, value: Any) -> Change:
    return lambda header, _: header["config"].update({name: value})


def _array(change: Callable[[np.ndarray], np.ndarray], index: int = 0) -> Change:
    def apply(_: Any, arrays: dict[str, np.ndarray]) -> None:
        name = sorted(arrays)[index % len(arrays)]
        arrays[name] = np.ascontiguousarray(change(arrays[name]))

    return apply


def _first_gone(_: Any, arrays: dict[str, np.ndarray]) -> None:
    del arrays[min(arrays)]


def _one_more(_: Any, arrays: dict[str, np.ndarray]) -> None:
    arrays[f"{min(arrays)}/deeper"] = np.zeros(3, np.float32)


TAMPERED: dict[str, Change] = {
    "header is no JSON": lambda *_: "{",
    "header is a list": lambda *_: "[1]",
    "header is NaN": lambda *_: "NaN",
    "header is nested deeply": lambda *_: "[" * 100_000,
    "header is empty": lambda *_: "{}",
    "no config": lambda header, _: header.pop("config"),
    "config is a number": lambda header, _: header.update(config=3),
    "config is a list": lambda header, _: header.update(config=[1]),
    "another kind": lambda header, _: header.update(kind="prior"),
    "kind is a list": lambda header, _: header.update(kind=[1]),
    "architecture is a list": _setting("architecture", [1]),
    "architecture is an object": _setting("architecture", {"a": 1}),
    "architecture is unknown": _setting("architecture", "stylegan9\nx"),
    "resolution is text": _setting("resolution", "large"),
    "resolution is huge": _setting("resolution", 2**40),
    "resolution is negative": _setting("resolution", -32),
    "resolution is zero": _setting("resolution", 0),
    "resolution is half": _setting("resolution", 16),
    "resolution is null": _setting("resolution", None),
    "resolution is NaN": _setting("resolution", float("nan")),
    "num_ws is huge": _setting("num_ws", 10**9),
    "num_ws is text": _setting("num_ws", "8"),
    "w_dim is another": _setting("w_dim", 7),
    "z_dim is negative": _setting("z_dim", -16),
    "name is a number": _setting("name", 3),
    "name has two lines": _setting("name", "a\nb"),
    "a setting more": _setting("nonsense", 1),
    "label_dim is huge": _setting("label_dim", 10**9),
    "an array is gone": _first_gone,
    "an array more": _one_more,
    "an array is NaN": _array(lambda a: np.full_like(a, np.nan)),
    "an array is infinite": _array(lambda a: np.full_like(a, np.inf), -1),
    "an array is transposed": _array(lambda a: a.reshape(1, *a.shape)),
    "an array is empty": _array(lambda a: a[..., :0], 3),
    "an array is of text": _array(lambda a: a.astype(np.int8), 5),
    "an array is of bits": _array(lambda a: a.astype(bool), 7),
}


def _as_prior(data: Callable[[Files], bytes], files: Files) -> Arguments:
    search = ("--method", "rls", "--steps", "1", "--solutions", "1")
    return _upsample(
        files, files.photo, *search, prior=file_in(files, "p.safetensors", data(files))
    )


def _weight_cases() -> Iterator[Case]:
    for name in _weights():
        for seed in SEEDS:
            make = partial(_converted, name, partial(_damaged_weights, name, seed))
            yield Case(f"weights: {name}, damage {seed}", "convert", make)
    for name, data in {
        "empty": bytes,
        "a picture": partial(saved, smooth("RGB"), "PNG"),
        "a zip of nothing": lambda: _zip({}),
        "a zip bomb": partial(_with_zeros, {}),
        "a pickle of nothing": lambda: b"N.",
        "html": lambda: b"<html>",
        "a safetensors header of 2^60 bytes": lambda: struct.pack("<Q", 1 << 60) + b"{}",
        "a safetensors header of nothing": lambda: struct.pack("<Q", 0),
        "an array": lambda: _npy(np.zeros(3)),
    }.items():
        for ending in ("pkl", "safetensors"):
            make = partial(_converted, f"a.{ending}", data)
            yield Case(f"weights: {name} called {ending}", "convert", make, (2,))
    for seed in range(8):
        make = partial(_as_generator, "g.safetensors", partial(_damaged_file, "generator", seed))
        yield Case(f"generator: damage {seed}", "upsample", make)
        make = partial(_as_prior, partial(_damaged_file, "prior", seed))
        yield Case(f"prior: damage {seed}", "upsample", make)
    for name, change in TAMPERED.items():
        data = partial(lambda change, files: _rewritten(files.generator, change), change)
        make = partial(_as_generator, "g.safetensors", data)
        yield Case(f"generator: {name}", "upsample", make)
        data = partial(lambda change, files: _rewritten(files.prior, change), change)
        yield Case(f"prior: {name}", "upsample", partial(_as_prior, data))


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _with_zeros(members: dict[str, bytes]) -> bytes:
    """An archive with one more member, of much nothing."""
    file = io.BytesIO(_zip(members))
    with (
        zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("more.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(BOMB >> 24):
            member.write(bytes(1 << 24))
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# --- Saved solutions --------------------------------------------------------------------------


def _solutions(change: Callable[[dict[str, Any]], Any], files: Files) -> bytes:
    with np.load(files.solutions) as file:
        arrays = dict(file)
    change(arrays)
    return _npz(arrays)


def _config(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(arrays: dict[str, Any]) -> None:
        config = json.loads(str(arrays["config"]))
        gone = {name for name, value in values.items() if value is ...}
        kept = {name: value for name, value in {**config, **values}.items() if name not in gone}
        arrays["config"] = np.asarray(json.dumps(kept))

    return change


def _with(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda arrays: arrays.update({name: np.asarray(change(arrays[name]))})


def _huge(shape: str) -> bytes:
    """An array of zeros that claims a shape, packed small."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(1 << 20)


SOLUTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"without {name}": partial(lambda name, arrays: arrays.pop(name, None), name)
        for name in ("ws", "target", "mask", "config", "noise_000", "noise_003")
    },
    "config is no JSON": lambda arrays: arrays.update(config=np.asarray("{")),
    "config is a list": lambda arrays: arrays.update(config=np.asarray("[1, 2]")),
    "config is null": lambda arrays: arrays.update(config=np.asarray("null")),
    "config is numbers": lambda arrays: arrays.update(config=np.zeros(3)),
    "config is nested deeply": lambda arrays: arrays.update(config=np.asarray("[" * 100_000)),
    "no box": _config(box=...),
    "box is a number": _config(box=3),
    "box is text": _config(box="abcd"),
    "box is of two": _config(box=[0, 0]),
    "box is of texts": _config(box=["a", "b", "c", "d"]),
    "box is huge": _config(box=[0, 0, 10**9, 10**9]),
    "box is negative": _config(box=[-5, -5, -3, -3]),
    "box is empty": _config(box=[0, 0, 0, 0]),
    "no hash": _config(weights_sha256=...),
    "hash is a number": _config(weights_sha256=3),
    "another hash": _config(weights_sha256="0" * 64),
    "no generator": _config(generator=..., weights_sha256="0" * 64),
    "generator is a number": _config(generator=3, generator_file=4),
    "generator file is long": _config(generator_file="x" * 5000, weights_sha256="0" * 64),
    "generator is an address": _config(generator="https://example.org/g.pkl"),
    "generator is a folder": _config(generator="/", generator_file="/"),
    "block is text": _config(block="a"),
    "block is huge": _config(block=10**9),
    "block is negative": _config(block=-3),
    "no block": _config(block=...),
    "method is unknown": _config(method="magic"),
    "ws of NaN": _with("ws", lambda a: np.full_like(a, np.nan)),
    "ws of infinities": _with("ws", lambda a: np.full_like(a, np.inf)),
    "ws of huge numbers": _with("ws", lambda a: np.full_like(a, 3e38)),
    "ws of texts": _with("ws", lambda a: a.astype(str)),
    "ws of complex numbers": _with("ws", lambda a: a.astype(complex)),
    "ws of a layer less": _with("ws", lambda a: a[:, 1:]),
    "ws of a number less": _with("ws", lambda a: a[..., 1:]),
    "ws is a number": _with("ws", lambda a: a[0, 0, 0]),
    "ws is a row": _with("ws", lambda a: a[0, 0]),
    "ws of no solution": _with("ws", lambda a: a[:0]),
    "ws of four axes": _with("ws", lambda a: a[None]),
    "noise of NaN": _with("noise_001", lambda a: np.full_like(a, np.nan)),
    "noise of another size": _with("noise_001", lambda a: a[:, 1:]),
    "noise of nothing": _with("noise_001", lambda a: a[:0]),
    "noise is a number": _with("noise_001", lambda a: 3.0),
    "noise of texts": _with("noise_001", lambda a: a.astype(str)),
    "target is a number": _with("target", lambda a: 3.0),
    "target is empty": _with("target", lambda a: a[:0]),
    "target is grey": _with("target", lambda a: a[..., :1]),
    "target of NaN": _with("target", lambda a: np.full_like(a, np.nan)),
    "mask of another size": _with("mask", lambda a: a[1:]),
    "more noise": lambda arrays: arrays.update(noise_999=np.zeros((1, 4, 4), np.float32)),
    "an activation": lambda arrays: arrays.update(activation_000=np.zeros((1, 4), np.float32)),
    "a changed weight": lambda arrays: arrays.update(synthesis_000=np.zeros((1, 4), np.float32)),
    "corrections of another size": lambda arrays: arrays.update(corrections=np.zeros((1, 5, 5, 3))),
    "corrections of NaN": lambda arrays: arrays.update(
        corrections=np.full((1, 32, 32, 3), np.nan, np.float32)
    ),
    "corrections of nothing": lambda arrays: arrays.update(corrections=np.zeros((0, 8, 8, 3))),
    "corrections of texts": lambda arrays: arrays.update(corrections=np.array(["text"])),
}


def _redrawn(data: Callable[[Files], bytes], files: Files) -> Arguments:
    source = file_in(files, "solutions.npz", data(files))
    options = ("--generator", files.generator, "--out", files.folder / "out", "--quiet")
    return ["--from", source, *options]


def _damaged_solutions(seed: int, files: Files) -> bytes:
    return with_damage(files.solutions.read_bytes(), np.random.default_rng(seed))


def _members_of(files: Files) -> dict[str, bytes]:
    with zipfile.ZipFile(files.solutions) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _replaced(styles: bytes, files: Files) -> bytes:
    """The saved solutions with other bytes as their styles."""
    return _zip({**_members_of(files), "ws.npy": styles})


def _bomb(files: Files) -> bytes:
    return _with_zeros(_members_of(files))


def _solution_cases() -> Iterator[Case]:
    datas: dict[str, Callable[[Files], bytes]] = {
        "empty": lambda _: b"",
        "a picture": lambda _: saved(smooth("RGB"), "PNG"),
        "an array": lambda _: _npy(np.zeros(3)),
        "a pickle": lambda _: wf.dumps({"ws": 1}),
        "objects": lambda _: _npz({"ws": np.array([{}], object), "config": np.asarray("{}")}),
        "a zip of nothing": lambda _: _zip({}),
        "a huge claim": partial(_replaced, _huge("1, 99999999, 16")),
        "a negative claim": partial(_replaced, _huge("-1, 8, 16")),
        "a claim of 2^70": partial(_replaced, _huge("1099511627776, 1073741824")),
        "a bomb": _bomb,
        "no numpy inside": partial(_replaced, b"hello"),
    }
    for seed in range(16):
        datas[f"damage {seed}"] = partial(_damaged_solutions, seed)
    for name, change in SOLUTIONS.items():
        datas[name] = partial(_solutions, change)
    for name, data in datas.items():
        yield Case(f"npz: {name}", "upsample", partial(_redrawn, data))


# --- Starts -----------------------------------------------------------------------------------

LAYERS_OF_TINY, WIDTH_OF_TINY = 8, 16  # num_ws and w_dim of the tiny generator
SAVED = ("a.npy", "a.npz", "projected_w.npz")


def _started(start: str | Path, files: Files, method: str = "pulse") -> Arguments:
    """A search of two steps from saved styles."""
    search = ("--method", method, "--steps", "2", "--solutions", "1")
    return _upsample(files, files.photo, *search, f"--start={os.fspath(start)}")


def _from_file(
    name: str, data: Callable[[Files], bytes], files: Files, suffix: str = ""
) -> Arguments:
    return _started(f"{file_in(files, name, data(files))}{suffix}", files)


def _styles(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _changed_styles(change: Callable[[np.ndarray], Any]) -> np.ndarray:
    return np.asarray(change(_styles(0, LAYERS_OF_TINY, WIDTH_OF_TINY)))


def _saved_as(name: str, array: np.ndarray) -> bytes:
    """The file of an array, of the kind that its name says."""
    if name.endswith(".npy"):
        return _npy(array)
    return _npz({"w" if name == "projected_w.npz" else "latent": array})


def _damaged_styles(name: str, seed: int) -> bytes:
    data = _saved_as(name, _styles(seed, 1, LAYERS_OF_TINY, WIDTH_OF_TINY))
    return with_damage(data, np.random.default_rng([seed, len(data)]))


SOUND_STYLES: dict[str, tuple[int, ...]] = {
    "W": (WIDTH_OF_TINY,),
    "a W": (1, WIDTH_OF_TINY),
    "three W": (3, WIDTH_OF_TINY),
    "W of a projector": (1, 1, WIDTH_OF_TINY),
    "W+": (LAYERS_OF_TINY, WIDTH_OF_TINY),
    "three W+": (3, LAYERS_OF_TINY, WIDTH_OF_TINY),
    "W+ of a projector": (1, LAYERS_OF_TINY, WIDTH_OF_TINY),
}
OTHER_TYPES: dict[str, Any] = {  # of the same numbers
    "halves": np.float16, "doubles": np.float64, "long doubles": np.longdouble,
    "big-endian": np.dtype(">f4"), "bytes": np.int8, "whole": np.int64,
}  # fmt: skip
WRONG_STYLES: dict[str, Callable[[np.ndarray], Any]] = {
    "of a number": lambda a: a[0, 0],
    "of nothing": lambda a: a[:0],
    "of no width": lambda a: a[:, :0],
    "of a number less": lambda a: a[:, 1:],
    "of a layer less": lambda a: a[1:, :].reshape(1, LAYERS_OF_TINY - 1, WIDTH_OF_TINY),
    "of ffhq's shape": lambda a: np.zeros((1, 18, 512), np.float32),
    "transposed": lambda a: a.T,
    "of 32 axes": lambda a: a.reshape((1,) * 30 + a.shape)[..., :3],
    "of NaN": lambda a: np.full_like(a, np.nan),
    "with one NaN": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 7, np.nan, a),
    "of infinities": lambda a: np.full_like(a, -np.inf),
    "of huge numbers": lambda a: np.full_like(a, 3e38),
    "of huge doubles": lambda a: np.full(a.shape, 1e300),
    "of the least whole number": lambda a: np.full(a.shape, -(2**63)),
    "of the most whole numbers": lambda a: np.full(a.shape, 2**64 - 1, np.uint64),
    "of texts": lambda a: a.astype(str),
    "of complex numbers": lambda a: a.astype(complex),
    "of bits": lambda a: a > 0,
    "of dates": lambda a: np.zeros(a.shape, "datetime64[s]"),
    "of records": lambda a: np.zeros(a.shape, [("a", "f4"), ("b", "f4")]),
}


def _many_styles(files: Files) -> bytes:
    """W of so many pictures that W+ of them all would not fit."""
    return _npz({"w": np.zeros((2_000_000, WIDTH_OF_TINY), np.float16)})


def _start_cases() -> Iterator[Case]:
    def case(name: str, arguments: Callable[[Files], Arguments], *ends: int) -> Case:
        return Case(f"start: {name}", "upsample", arguments, ends or (0, 2))

    for name, shape in SOUND_STYLES.items():
        for i, file in enumerate(SAVED):
            data = partial(lambda file, shape, _: _saved_as(file, _styles(3, *shape)), file, shape)
            yield case(f"{name} in {file}", partial(_from_file, file, data), 0)
            if name.startswith("three"):
                number, end = (("#2", 0), ("#3", 2), ("#1", 0))[i]
                make = partial(_from_file, file, data, suffix=number)
                yield case(f"{name} in {file}{number}", make, end)
    for name, kind in OTHER_TYPES.items():
        data = partial(lambda kind, _: _npy(_changed_styles(lambda a: a.astype(kind))), kind)
        yield case(f"W+ of {name}", partial(_from_file, "a.npy", data), 0)
    for name, change in WRONG_STYLES.items():
        for file in SAVED[:2]:
            data = partial(
                lambda file, change, _: _saved_as(file, _changed_styles(change)), file, change
            )
            yield case(f"{file} {name}", partial(_from_file, file, data), 2)
    for file in SAVED:
        for seed in range(8):
            data = partial(lambda file, seed, _: _damaged_styles(file, seed), file, seed)
            yield case(f"{file}, damage {seed}", partial(_from_file, file, data))
    for seed in range(6):
        make = partial(_from_file, "solutions.npz", partial(_damaged_solutions, seed + 100))
        yield case(f"solutions.npz, damage {seed}", make)
    sound = partial(lambda files: files.solutions.read_bytes())
    for suffix, end in {
        "": 0, "#0": 0, "#00": 0, "#1": 2, "#999999999999": 2, "#" + "9" * 5000: 2, "#": 2,
        "#-1": 2, "#x": 2, "#0#0": 2, "#²": 2, "#\u0660": 0, "# 0": 2, "#/": 2,
    }.items():  # fmt: skip
        make = partial(_from_file, "solutions.npz", sound, suffix=suffix)
        yield case(f"solutions.npz{suffix[:20]}", make, end)
    datas: dict[str, Callable[[Files], bytes]] = {
        "empty": lambda _: b"",
        "a picture": lambda _: saved(smooth("RGB"), "PNG"),
        "text": lambda _: b"0.1 0.2 0.3\n",
        "a pickle": lambda _: wf.dumps({"w": 1}),
        "a checkpoint": lambda _: _weights()["rosinality.pt"],
        "a generator": lambda files: files.generator.read_bytes(),
        "objects": lambda _: _npz({"w": np.array([{}], object)}),
        "another array": lambda _: _npz({"mean": np.zeros(16)}),
        "no array": lambda _: _zip({}),
        "a folder's name": lambda _: _zip({"w.npy/": b""}),
        "a bomb": lambda _: _with_zeros({"w.npy": _npy(np.zeros(16))}),
        "a huge claim": lambda _: _huge("99999999, 8, 16"),
        "a huge claim in an archive": lambda _: _zip({"w.npy": _huge("99999999, 8, 16")}),
        "a negative claim": lambda _: _huge("-1, 16"),
        "a claim of 2^70": lambda _: _huge("1099511627776, 1073741824"),
        "a claim of texts": lambda _: _huge("'16', 16"),
        "a header cut off": lambda _: _npy(np.zeros(16))[:40],
        "version 9": lambda _: b"\x93NUMPY\x09\0" + _npy(np.zeros(16))[8:],
    }
    for name, data in datas.items():
        yield case(name, partial(_from_file, "a.npz", data), 2)
    yield case("many W", partial(_from_file, "a.npz", _many_styles), 0)
    for text in ("", "#0", "x" * 5000, "/", "/dev/zero", "/dev/null", "two\nlines", "none.npz",
                 "http://example.org/a.npz", "~nobody/a.npy"):  # fmt: skip
        yield case(f"name {text[:24]!r}", partial(_started, text), 2)
    yield case("a loop", partial(_looping, "--start"), 2)
    yield case("a pipe", partial(_pipe, "--start"), 2)
    for method in ("bicubic", "csgm", "multimodal", "langevin", "ilo"):
        end = 2 if method in ("bicubic", "csgm") else 0
        yield case(f"with {method}", partial(_sound_start, method), end)


def _sound_start(method: str, files: Files) -> Arguments:
    return _started(files.solutions, files, method)


# --- Resuming ---------------------------------------------------------------------------------


def _resumed(change: Callable[[bytes], bytes], files: Files) -> Arguments:
    """The search of `Files.solutions` again, where something has changed its report."""
    folder = files.folder / "out" / "photo"
    shutil.copytree(files.solutions.parent, folder)
    report = folder / "report.json"
    report.write_bytes(change(report.read_bytes()))
    search = ("--method", "csgm", "--steps", "2", "--solutions", "1")
    return _upsample(files, files.photo, *search, "--resume")


def _entry_is(**values: Any) -> Callable[[bytes], bytes]:
    """A report with other entries; those of ... are gone."""

    def change(data: bytes) -> bytes:
        report = {**json.loads(data), **values}
        return json.dumps({name: v for name, v in report.items() if v is not ...}).encode()

    return change


REPORTS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "empty": lambda _: b"",
    "cut off": lambda data: data[:-9],
    "not UTF-8": lambda data: b"\xff" + data,
    "a list": lambda _: b"[1]",
    "nested deeply": lambda _: b"[" * 100_000,
    "of a huge number": lambda _: b"9" * 9000,
    "of no status": _entry_is(status=...),
    "of a list as status": _entry_is(status=[1]),
    "of no solutions": _entry_is(solutions=...),
    "of a number as solutions": _entry_is(solutions=3),
    "of numbers as solutions": _entry_is(solutions=[3]),
    "of empty solutions": _entry_is(solutions=[{}]),
    "of faces": _entry_is(faces=[]),
    "of a face": _entry_is(faces=[1], found=1),
    "of a number as faces": _entry_is(faces=3, found=3),
    "of text as faces": _entry_is(faces="a", found="b"),
    "of no seconds": _entry_is(seconds=...),
    "of no host": _entry_is(host=...),
}


def _resume_cases() -> Iterator[Case]:
    for name, change in REPORTS.items():
        yield Case(f"resume: a report {name}", "upsample", partial(_resumed, change), (0,))
    for seed in range(6):
        change = partial(lambda seed, data: with_damage(data, np.random.default_rng(seed)), seed)
        yield Case(f"resume: damage {seed}", "upsample", partial(_resumed, change), (0,))


# --- Names ------------------------------------------------------------------------------------


def _pipe(option: str, files: Files) -> Arguments:
    """A pipe to which nobody writes."""
    pipe = files.folder / "pipe.json"
    os.mkfifo(pipe)
    return _with_file(option, pipe, files)


def _named(name: str | bytes, files: Files) -> Arguments:
    """A sound picture under an odd name."""
    path = files.folder / "in" / os.fsdecode(name)
    path.parent.mkdir()
    path.write_bytes(files.photo.read_bytes())
    return _upsample(files, path, *BICUBIC)


def _looping_link(files: Files) -> Arguments:
    (files.folder / "a.png").symlink_to("b.png")
    (files.folder / "b.png").symlink_to("a.png")
    return _upsample(files, files.folder / "a.png", *BICUBIC)


def _link_to_itself(files: Files) -> Arguments:
    """A folder with a picture and a link to the folder, read with its folders."""
    inner = files.photo.parent / "in"
    inner.mkdir()
    (inner / "photo.png").write_bytes(files.photo.read_bytes())
    (inner / "again").symlink_to(inner)
    return _upsample(files, inner, "--recursive", *BICUBIC)


def _looping(option: str, files: Files) -> Arguments:
    link = files.folder / "loop.png"
    link.symlink_to(link)
    return _with_file(option, link, files)


def _with_file(option: str, file: Path, files: Files) -> Arguments:
    """A command that reads the file which the option names."""
    if option == "--from":
        return ["--from", file, "--out", files.folder / "out", "--quiet"]
    methods = {"--prior": ("--method", "rls"), "--start": ("--method", "pulse")}
    extra = ("--noise-std", "0.1") if option == "--noise-mask" else ()
    own = _upsample(files, files.photo, *methods.get(option, BICUBIC))
    return [*own, *extra, option, file]


def _fifo(files: Files) -> Arguments:
    os.mkfifo(files.folder / "a.png")
    return _upsample(files, files.folder / "a.png", *BICUBIC)


def _input(text: str, files: Files) -> Arguments:
    return _upsample(files, text.replace("FOLDER", str(files.folder)), *BICUBIC)


def _out_is(kind: str, files: Files) -> Arguments:
    return out_is(kind, files, _upsample(files, files.photo, *BICUBIC))


def out_is(kind: str, files: Files, arguments: Arguments) -> Arguments:
    """A command whose results have no place."""
    out = files.folder / "place"
    if kind == "a file":
        out.write_bytes(b"")
    elif kind == "a loop":
        out.symlink_to(out)
    elif kind == "a dangling link":
        out.symlink_to(files.folder / "nowhere" / "deeper")
    return [*arguments, "--out", _out_text(kind, out)]


def _out_text(kind: str, out: Path) -> str | Path:
    return {
        "long": "x" * 5000,
        "of long parts": f"{out}/" + "y" * 300,
        "a device": "/dev/null",
    }.get(kind, out)


def _option_is(option: str, text: str, files: Files) -> Arguments:
    extra = ("--noise-std", "0.1") if option == "--noise-mask" else ()
    return [*_upsample(files, files.photo, *BICUBIC), *extra, option, text]


def _from_is(text: str, files: Files) -> Arguments:
    return ["--from", text, "--out", files.folder / "out"]


def _converted_pipe(files: Files) -> Arguments:
    pipe = files.folder / "pipe.pkl"
    os.mkfifo(pipe)
    return _converts(str(pipe), "out/o.safetensors", files)


def _converts(text: str, out: str, files: Files) -> Arguments:
    return [text, "--out", files.folder / out]


def _name_cases() -> Iterator[Case]:
    for name in (
        b"...png", b"summary.json.png", b".claims.png", b"caf\xe9.png", b"two\nlines.png",
        b"x" * 251 + b".png", b"-rf.png", b"a#3.png", b"*.png", b"[a].png", b"a b\t.png",
        "\u202egnp.png", "e\u0301.png", b"\x1b[31m.png", b"%s%n.png", b"con.png", b"~.png",
        "\U0001f600.png", b"a.png.png.png", b" .png", b"\\.png", b"report.json.png", b"{x}.png",
    ):  # fmt: skip
        yield Case(f"name: {name!r:.40}", "upsample", partial(_named, name), (0,))
    yield Case("name: links that loop", "upsample", _looping_link, (2,))
    yield Case("name: a folder in itself", "upsample", _link_to_itself, (0,))
    yield Case("name: a pipe", "upsample", _fifo, (2,))
    for option in ("--generator", "--noise-mask", "--from"):
        yield Case(f"name: {option} loops", "upsample", partial(_looping, option), (2,))
    for option in ("--generator", "--prior", "--noise-mask", "--from", "--align"):
        yield Case(f"name: {option} is a pipe", "upsample", partial(_pipe, option), (2,))
    yield Case("name: convert a pipe", "convert", _converted_pipe, (2,))
    for text in (
        "", " ", "/dev/null", "/dev/zero", "/proc/self/mem", "FOLDER/none.png", "FOLDER/*.bmp",
        "FOLDER/**", "x" * 5000, "FOLDER/" + "a/" * 2000, "http://example.org/a.png", "[", "FOLDER",
    ):  # fmt: skip
        yield Case(f"name: input {text[:30]!r}", "upsample", partial(_input, text), (2,))
    for kind in ("a file", "a loop", "long", "of long parts", "a device"):
        yield Case(f"name: --out is {kind}", "upsample", partial(_out_is, kind), (2,))
    yield Case("name: --out dangles", "upsample", partial(_out_is, "a dangling link"))
    texts = ("", "x" * 5000, "/", "/dev/null", "two\nlines", "http://example.org/a", "none/x.pkl")
    for option in ("--generator", "--noise-mask"):
        for text in texts:
            make = partial(_option_is, option, text)
            yield Case(f"name: {option} {text[:20]!r}", "upsample", make)
    for text in texts:
        yield Case(f"name: --from {text[:20]!r}", "upsample", partial(_from_is, text), (2,))
        make = partial(_converts, text, "out/o.safetensors")
        yield Case(f"name: convert {text[:20]!r}", "convert", make, (2,))


# --- Masks ------------------------------------------------------------------------------------


def _noise_mask(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    mask = file_in(files, f"mask-{name}", data())
    options = ("--noise-std", "0.1", "--noise-mask", mask, "--steps", "2", "--method", "csgm")
    return _upsample(files, files.photo, "--solutions", "1", *options)


def _hole(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    mask = file_in(files, f"mask-{name}", data())
    spec = f"bicubic(8)|mask({mask})"
    return _upsample(
        files, files.photo, *BICUBIC, "--degradation", spec, "--search-degradation", "truth"
    )


def _mask_cases() -> Iterator[Case]:
    datas: dict[str, tuple[str, Callable[[], bytes]]] = {
        name: odd_pictures()[name]
        for name in (
            "empty", "noise", "1x1", "1x30000", "30000x40", "animated gif", "pages that loop",
            "claims 50000x50000", "claims 2^31 x 2^31", "gif claims 65535x65535", "bmp of ones",
            "claims 0x5", "exif of noise", "text called png",
        )
    }  # fmt: skip
    for name in ("deep.png", "float.tif", "alpha.png", "a.gif", "cmyk.jpg"):
        for seed in (0, 1):
            damaged = partial(damaged_picture, name, seed)
            datas[f"{name}, damage {seed}"] = (name, damaged)
    for name, (file, data) in datas.items():
        yield Case(f"mask: {name}", "upsample", partial(_noise_mask, file, data))
        yield Case(f"hole: {name}", "upsample", partial(_hole, file, data))


# --- Options ----------------------------------------------------------------------------------

NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "0", "1e-400", "9" * 400, "", "x", "0x10", "1_0")
NUMERIC = ("--noise-std", "--inject-noise", "--diversity")
WHOLE = (
    "--solutions", "--steps", "--seed", "--lr-size", "--batch", "--devices", "--class", "--faces",
    "--scale",
)  # fmt: skip
SPECS = (
    "", "|", "()", "bicubic", "bicubic(", "bicubic(0)", "bicubic(-3)", "bicubic(nan)",
    "bicubic(99999999999)", "bicubic(x0)", "bicubic(x-1)", "bicubic(1x1)", "bicubic(8,8,8,8)",
    "blur(nan)", "blur(inf)", "blur(-1)", "blur(1e30)", "motion(1e9)", "motion(nan,nan)",
    "jpeg(0)", "jpeg(101)", "noise(nan)", "noise(-1)", "noise(1e39)", "salt_pepper(2)",
    "laplace(inf)", "mask(none.png)", "mask(/)", "grey(1)", "magic(3)", "x" * 5000,
    "bicubic(8)|" * 500, "bicubic(size=8,size=8)", "bicubic(nonsense=1)", "two\nlines(3)",
    "bicubic(²)", "area(8)",
)  # fmt: skip
SETS = (
    "", "=", "rls", "rls.=", ".=", "rls.lambda_w", "rls.lambda_w=nan", "rls.lambda_w=inf",
    "rls.lambda_w=", "rls.steps=-1", "rls.learning_rate=nan", "rls.nonsense=1",
    "pulse.steps=1", "rls.lambda_w=" + "9" * 400, "rls.a\nb=1",
)  # fmt: skip
LAYERS = ("0.1@", "0.1@99", "0.1@-1", "0.1@3-1", "0.1@a", "0.1@0,", "0.1@" + "9" * 50, "@", "nan@0")


NOWHERE = "127.0.0.1:1"  # an address where nobody listens
SHARDS = (
    "", "0", "1/1", "-1/2", "a/b", "0/0", "1/0", "0/-1", "1/" + "9" * 5000, "0/1/2", "²/3", "2/2",
    "4/3", "0/3/", "/3", " ",
)  # fmt: skip
CLUSTERS = (
    "", " ", "rubbish", "AUTO", "local", "host", ":6379", " :6379", ":", "127.0.0.1:",
    "127.0.0.1:0", "127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1:" + "9" * 5000, "127.0.0.1:x",
    "127.0.0.1:²", "127.0.0.1:1 ", "127.0.0.1:1/", "ray://127.0.0.1:1", "http://127.0.0.1:1",
    "[]:1", "x" * 3000, "x" * 3000 + ":1", "two\nlines", "two\nlines:1", "\x1b[31m:1",
    "caf\udce9:1", "no-such-host.invalid:1", "a:b:1", NOWHERE,
)  # fmt: skip
WORKERS = ("", "0", "-1", "x", "nan", "1.5", "²", "9" * 400, "9" * 5000, "two\nlines", "1000001")


def divisions() -> dict[str, tuple[str, ...]]:
    """Name -> options of either command that divide its inputs wrongly."""
    found: dict[str, tuple[str, ...]] = {
        "--workers alone": ("--workers", "2"),
        "--workers of a part": ("--workers", "2", "--shard", "0/3"),
        "--cluster of a part": ("--cluster", NOWHERE, "--shard", "0/3"),
        "--cluster auto of a part": ("--cluster", "auto", "--shard", "0/3"),
        "--cluster of nothing": ("--cluster",),
        "--workers of an address where nobody listens": ("--cluster", NOWHERE, "--workers", "2"),
    }
    for text in SHARDS:
        found[f"--shard {text[:12]!r}"] = (f"--shard={text}",)
    for text in CLUSTERS:
        found[f"--cluster {text[:24]!r}"] = (f"--cluster={text}",)
    for text in WORKERS:
        found[f"--workers {text[:12]!r}, {len(text)}"] = (f"--workers={text}", "--cluster", NOWHERE)
    return found


def _divided(options: tuple[str, ...], files: Files) -> Arguments:
    return [*_upsample(files, files.photo, *BICUBIC), *options]


def _redrawn_divided(options: tuple[str, ...], files: Files) -> Arguments:
    """Options that a command which only redraws has no use for."""
    return [*_redrawn(lambda files: files.solutions.read_bytes(), files), *options]


def _truth(spec: str, files: Files) -> Arguments:
    options = ("--degradation", spec, "--search-degradation", "truth")
    return _upsample(files, files.photo, *BICUBIC, *options)


def _searched(option: str, text: str, files: Files) -> Arguments:
    options = ("--method", "rls", "--solutions", "2", "--steps", "1")
    return _upsample(files, files.photo, *options, f"{option}={text}")


def _option_cases() -> Iterator[Case]:
    for option in WHOLE:
        for text in NUMBERS:
            valid = {("--seed", "0"), *((o, "1_0") for o in ("--seed", "--lr-size", "--faces"))}
            if (option, text) in valid:
                continue
            make = partial(_option_is, option, text)
            yield Case(f"option: {option} {text[:12]!r}", "upsample", make)
    for option in NUMERIC:
        for text in ("nan", "inf", "-1", "1e999", "9" * 400, "", "x"):
            make = partial(_searched, option, text)
            yield Case(f"option: {option} {text[:12]!r}", "upsample", make, (2,))
    for text in LAYERS:
        make = partial(_searched, "--inject-noise", text)
        yield Case(f"option: --inject-noise {text[:12]!r}", "upsample", make, (2,))
    for text in SETS:
        make = partial(_searched, "--set", text)
        yield Case(f"option: --set {text[:30]!r}", "upsample", make, (2,))
    for spec in SPECS:
        yield Case(f"option: --degradation {spec[:24]!r}", "upsample", partial(_truth, spec))
    for name, options in divisions().items():
        make = partial(_divided, options)
        yield Case(f"option: division {name}", "upsample", make, (2,))
    for options in (("--cluster", NOWHERE), ("--cluster", "auto"), ("--shard", "0/3")):
        make = partial(_redrawn_divided, options)
        yield Case(f"option: --from with {' '.join(options)}", "upsample", make, (2,))
    for option in (
        "--method",
        "--preset",
        "--format",
        "--search-degradation",
        "--align",
        "--nonsense",
    ):
        for text in ("", "magic", "two\nlines", "x" * 3000):
            make = partial(_option_is, option, text)
            yield Case(f"option: {option} {text[:12]!r}", "upsample", make, (2,))


def all_cases() -> list[Case]:
    """Every case; the same at each call."""
    makers = (
        _picture_cases,
        _weight_cases,
        _solution_cases,
        _start_cases,
        _resume_cases,
        _name_cases,
        _mask_cases,
        _option_cases,
    )
    return [case for make in makers for case in make()]
