"""Image files <-> float32 arrays in [-1, 1], always RGB."""

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from stylesr_jax.errors import UserError
from stylesr_jax.images.colour import srgb_profile
from stylesr_jax.images.decoding import Picture, decode
from stylesr_jax.images.kinds import (
    Unreadable,
    printable,
    readable_suffixes,
    unreadable_by_name,
)
from stylesr_jax.runtime import files
from stylesr_jax.runtime.storage import Url, path_of

MAX_BYTES = 2**30  # of an image file; 100 million pixels of four 16-bit channels are less
MAX_NAMED = 10  # skipped files of a kind whose names are given
JPEG_QUALITY = 95
MAX_SIDE = {"png": 2**31 - 1, "jpg": 65500, "webp": 16383}  # px, of the formats


class Found(NamedTuple):
    """The image files that were found, and a printable line for each kind of those skipped."""

    paths: list[Path]
    skipped: list[str]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of an image file.

    Raises:
        UserError: there is no such file, it cannot be read, or it is over a gigabyte.
    """
    shown = printable(path)
    try:
        if isinstance(path, Url):
            _check_size(path.size(), shown)
            return path.read_bytes()
        with files.open_file(path) as file:
            _check_size(os.fstat(file.fileno()).st_size, shown)
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{shown}: a folder, not an image; name a file in it") from None
    except UserError:
        raise
    except ValueError:
        raise UserError(f"{shown}: not a name that a file can have") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{shown} cannot be read ({reason}); check the file") from error


def _check_size(size: int, shown: str) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{shown}: over {MAX_BYTES >> 20} MB; save a smaller image")


def read_picture(path: str | os.PathLike[str], *, mosaics: bool = True) -> Picture:
    """Read any format that Pillow reads, with notes on what was done: see `decode`.

    Raises:
        UserError: the file is missing, no image, damaged, too large, or of values without a range.
    """
    return decode(read_bytes(path), os.fsdecode(path), mosaics=mosaics)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The pixels of `read_picture`: (height, width, 3) float32 in [-1, 1], sRGB, upright.

    Raises:
        UserError: as `read_picture`.
    """
    return read_picture(path).pixels


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture's brightness as a mask: (height, width) float32, 0 where black to 1 where white.

    Raises:
        UserError: as `read_picture`.
    """
    return (read_picture(path, mosaics=False).pixels.mean(axis=-1) + 1.0) / 2.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[-1, 1] floats to 8 bits, rounded; values outside are clipped, never rescaled."""
    return np.clip(np.rint((np.asarray(image) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write (H, W, 3) or (H, W) floats in [-1, 1], or uint8, as a PNG file, whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    write_image(path, image, format="png")


def write_image(
    path: str | os.PathLike[str],
    image: np.ndarray,
    *,
    format: Literal["png", "jpg", "webp"] = "png",
) -> None:
    """Write an image, said to be in sRGB and with no other metadata, whole or not at all.

    PNG and WebP are lossless; JPEG is of quality 95 without subsampling.

    Args:
        image: (H, W, 3) or (H, W) floats in [-1, 1], or uint8.

    Raises:
        UserError: the folder cannot be written, or the image is too large for the format.
    """
    pixels = image if image.dtype == np.uint8 else to_uint8(image)
    if max(pixels.shape[:2]) > MAX_SIDE[format]:
        raise UserError(
            f"{printable(path)}: {pixels.shape[1]}x{pixels.shape[0]} px is too large for "
            f"{format}; choose png"
        )
    with files.atomic_path(path) as temporary:
        _save(Image.fromarray(pixels), temporary, format)


def _save(image: Image.Image, path: Path, format: str) -> None:
    if format == "png":
        info = PngImagePlugin.PngInfo()
        info.add(b"sRGB", b"\0")  # the specification's few bytes in place of a profile
        image.save(path, format="PNG", pnginfo=info)
    elif format == "jpg":
        options = {"quality": JPEG_QUALITY, "subsampling": 0}
        image.save(path, format="JPEG", icc_profile=srgb_profile(), **options)
    else:
        image.save(path, format="WEBP", lossless=True, icc_profile=srgb_profile())


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The paths of `find_pictures`.

    Raises:
        UserError: a pattern or folder holds no image.
    """
    return find_pictures(inputs).paths


def find_pictures(inputs: Sequence[str], *, recursive: bool = False) -> Found:
    """The image files that files, folders and globs name, each once, folders' sorted by name.

    A folder gives the files whose endings say a format that can be read; hidden ones, such as the
    `._*` of macOS, do not count. A glob gives what it matches. Picture-like files of both that
    cannot be read (HEIC without pillow-heif, raw data, video) are skipped and named.

    Args:
        recursive: whether folders in folders count; links to folders are not followed.

    Raises:
        UserError: a pattern or folder holds no image that can be read, or cannot be read itself.
    """
    listings = [_pictures_of(text, recursive=recursive) for text in inputs]
    paths = dict.fromkeys(path for listing in listings for path in listing.paths)
    skipped = dict.fromkeys(line for listing in listings for line in listing.skipped)
    return Found(list(paths), list(skipped))


def _pictures_of(text: str, *, recursive: bool) -> Found:
    path, shown = path_of(text), printable(text)
    try:
        if isinstance(path, Url):
            return _pictures_at(path, recursive=recursive)
        if path.is_dir():
            return _chosen(_files_of(path, recursive), shown, suffixes=readable_suffixes())
        if path.exists() or not glob.has_magic(text):
            return Found([path], [])
        matches = sorted(glob.glob(text, recursive=True))
        return _chosen((Path(m) for m in matches if os.path.isfile(m)), shown, suffixes=None)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{shown} cannot be read ({reason}); check its rights") from error


def _pictures_at(url: Url, *, recursive: bool) -> Found:
    if url.is_dir():
        return _chosen(url.files(recursive=recursive), printable(url), suffixes=readable_suffixes())
    if not glob.has_magic(str(url)) or url.is_file():
        return Found([url], [])
    return _chosen(url.matches(), printable(url), suffixes=None)


def _files_of(folder: Path, recursive: bool) -> Iterator[Path]:
    """The files of a folder that are not hidden, by name, before those of its folders."""
    folders = [folder]
    while folders:
        folder = folders.pop()
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        entries = [folder / name for name in names]
        yield from (entry for entry in entries if os.path.isfile(entry))
        if recursive:
            inner = [e for e in entries if os.path.isdir(e) and not os.path.islink(e)]
            folders.extend(reversed(inner))


def _chosen(files: Iterable[Path], text: str, *, suffixes: set[str] | None) -> Found:
    """Those of the files that can be read; with `suffixes`, those alone.

    Raises:
        UserError: there are none.
    """
    paths, skipped = [], defaultdict(list)
    for path in files:
        suffix = path.suffix.lower()
        if suffixes is not None and suffix in suffixes:
            paths.append(path)
        elif kind := unreadable_by_name(suffix):
            skipped[kind].append(path)
        elif suffixes is None:
            paths.append(path)
    lines = [_skipped(kind, members) for kind, members in skipped.items()]
    if not paths:
        where = "no file matches this pattern"
        if suffixes is not None:
            where = "there are no images in this folder"
        elif lines:
            where = "no image matches this pattern"
        raise UserError("; ".join([f"{text}: {where}", *lines]))
    return Found(paths, lines)


def _skipped(kind: Unreadable, paths: list[Path]) -> str:
    names = ", ".join(printable(path.name) for path in paths[:MAX_NAMED])
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return f"skipped {names}{more} ({kind.kind}): {kind.advice}"
