"""The bytes of a file, and what people have in its place: pages of broken downloads, addresses."""

import mmap
import re
from pathlib import Path

from stylesr_jax.errors import UserError
from stylesr_jax.runtime.files import open_file

AGAIN = "download it again (python -m convert.fetch NAME continues broken downloads)"
ZIP = b"PK\x03\x04"
LFS_POINTER = b"version https://git-lfs"
_HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html|head|body|!--|script)", re.I
)
_ADDRESS = re.compile(r"(https?|ftp|gdrive|s3|hf):/", re.I)
_EXPORT = "which is not read: give the checkpoint that it was exported from"
_BEGINNINGS = {
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
    b"\x89HDF": "an HDF5 file, which is not read",
    b"\x89PNG": "a PNG image, not a generator",
    b"\xff\xd8\xff": "a JPEG image, not a generator",
    b"\x93NUMPY": "a single numpy array, not a generator",
    b"%PDF": "a PDF document, not a generator",
    b"\x7fELF": "a program, not a generator",
    b"{": "JSON text, not a generator",
    b"<?xml": "an XML file; for MobileStyleGAN give the whole random-face wheel",
}
_OTHER_FORMATS = {(0, magic): meaning for magic, meaning in _BEGINNINGS.items()} | {
    (257, b"ustar"): "a tar archive: unpack it first",
    (4, b"TFL3"): f"a TFLite model, {_EXPORT}",
    (2, b"\x12\x07pytorch"): f"an ONNX model, {_EXPORT}",
}


def refuse_text(head: bytes) -> None:
    """Recognise what broken downloads leave behind.

    Raises:
        UserError: the file begins with a page, a pointer, zeros, or another format's mark.
    """
    if head.startswith(LFS_POINTER):
        raise UserError(
            "this is a git-lfs pointer, not the file it stands for: run `git lfs pull` in its "
            "repository, or download the file from its page"
        )
    if _HTML.match(head):
        lower = head.lower()
        reason = "a sign-in, quota or error page was saved in its place"
        if b"quota exceeded" in lower or b"too many users" in lower:
            reason = "the server's download quota is used up"
        elif b"virus scan" in lower:
            reason = "the server asks to confirm a large download in the browser"
        raise UserError(f"this is an HTML page, not weights ({reason}): {AGAIN}")
    if not head.strip(b"\0"):
        raise UserError(f"this file begins with zeros only, as a broken download does: {AGAIN}")
    for (start, magic), meaning in _OTHER_FORMATS.items():
        if head[start : start + len(magic)] == magic:
            raise UserError(f"this is {meaning}")


def refuse_address(text: str) -> None:
    """Recognise an address where a file's path is expected.

    Raises:
        UserError: the text is an address.
    """
    if _ADDRESS.match(text):
        raise UserError(
            f"{text} is an address, not a file: download and convert it with "
            f"`python -m convert.fetch {text}`, or a published generator by its name "
            "(`python -m convert.fetch --list`)"
        )


def map_file(path: Path) -> memoryview:
    """The bytes of a file, read on demand.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        with open_file(path) as file:
            if path.stat().st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
