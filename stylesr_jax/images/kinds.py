"""Which files are pictures that can be read, and what to do about the others."""

import importlib
import os
from typing import NamedTuple

from PIL import Image, features

from stylesr_jax.errors import UserError, pip_install, printable


class Unreadable(NamedTuple):
    """A kind of picture-like file that cannot be read."""

    kind: str
    advice: str


_HEIC = Unreadable("HEIC", f"save it as JPEG, or {pip_install('pillow-heif')}")
_AVIF = Unreadable("AVIF", f"save it as PNG, or {pip_install('--upgrade', 'pillow')}")
_RAW = Unreadable("raw camera data", "develop it to a TIFF, PNG or JPEG file")
_VIDEO = Unreadable("video", "save a frame as PNG: ffmpeg -i VIDEO -frames:v 1 frame.png")
_DRAWING = Unreadable("drawing or document", "export it as PNG")
_OTHER = Unreadable("format that Pillow cannot read", "save it as PNG")

_SUFFIXES = {
    _AVIF: "avif avifs",
    _HEIC: "heic heics heif heifs hif",
    _RAW: "3fr ari arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw "
    "rw2 rwl sr2 srf srw x3f",
    _VIDEO: "3gp avi flv insv m2ts m4v mkv mov mp4 mpeg mpg mts webm wmv",
    _DRAWING: "ai cdr emf eps pdf ps svg svgz wmf",
    _OTHER: "afphoto clip djvu exr fpx hdr jbig2 jng jxl jxr kra mng ora wdp xcf",
}
_KINDS = {f".{suffix}": kind for kind, text in _SUFFIXES.items() for suffix in text.split()}
_NO_PICTURES = {".bufr", ".grib", ".h5", ".hdf"}  # data that Pillow registers without reading

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_VIDEO_BRANDS = {b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V ", b"avc1", b"3gp4", b"3gp5"}
_STARTS = {
    b"%!PS": _DRAWING,  # Pillow would start Ghostscript
    b"\xc5\xd0\xd3\xc6": _DRAWING,
    b"%PDF": _DRAWING,
    b"<svg": _DRAWING,
    b"\x1aE\xdf\xa3": _VIDEO,
    b"FUJIFILMCCD-RAW": _RAW,
    b"\xff\x0a": _OTHER,  # JPEG XL
    b"\x00\x00\x00\x0cJXL ": _OTHER,
}


def _heif_opener_registered() -> bool:
    """Whether pillow-heif, an optional package, is there; Pillow then knows HEIC."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _if_missing(kind: Unreadable) -> Unreadable | None:
    """The kind, unless what reads it is installed."""
    installed = (kind is _HEIC and _heif_opener_registered()) or (
        kind is _AVIF and "avif" in features.modules and bool(features.check("avif"))
    )
    return None if installed else kind


def unreadable_by_name(suffix: str) -> Unreadable | None:
    """Why files with this ending cannot be read; None where they can, or are no pictures."""
    kind = _KINDS.get(suffix.lower())
    return kind and _if_missing(kind)


def _unreadable_by_content(data: bytes) -> Unreadable | None:
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in _HEIC_BRANDS:
        # AVIF files may state the general brand first, their own among the compatible ones.
        listed = {data[i : i + 4] for i in range(16, min(int.from_bytes(data[:4]), 256), 4)}
        return _if_missing(_AVIF if listed & _AVIF_BRANDS else _HEIC)
    if brand in _AVIF_BRANDS:
        return _if_missing(_AVIF)
    if brand in _VIDEO_BRANDS or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        return _VIDEO
    canon = data[:4] == b"II*\0" and data[8:10] == b"CR"
    if canon or brand == b"crx ":  # Canon's raw files, of both ages
        return _RAW
    return next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)


def refuse_unreadable(data: bytes, name: str) -> None:
    """Refuse what Pillow cannot read, or would read wrongly: a raw file's small preview.

    Raises:
        UserError: with what the file is and what to do.
    """
    by_name = unreadable_by_name(os.path.splitext(name)[1])
    kind = by_name if by_name == _RAW else _unreadable_by_content(data)
    if kind:
        raise UserError(f"{printable(name)} cannot be read ({kind.kind}); {kind.advice}")


def readable_suffixes() -> set[str]:
    """The endings, in lower case, of files that are taken from a folder."""
    pillow = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    suffixes = pillow | {".mpo"} | _KINDS.keys()
    return {e for e in suffixes - _NO_PICTURES if unreadable_by_name(e) is None}
