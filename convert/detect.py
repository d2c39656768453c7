"""Which format a file has, told from its bytes, and the generator in it."""

import mmap
import re
from pathlib import Path
from typing import Any

from convert import ada_pytorch, rosinality, state_dict, tf_legacy
from convert.archive import Archive
from convert.arrays import read_torch_stream, zip_storages
from convert.safe_pickle import (
    MalformedPickle,
    TruncatedPickle,
    read_pickle,
    refused_globals,
    require_allowed,
)
from convert.state_dict import Source
from stylesr_jax.errors import UserError

AGAIN = "download it again (python -m convert.fetch NAME continues broken downloads)"
TORCH_STREAM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LFS_POINTER = b"version https://git-lfs"
_HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html|head|body|!--|script)", re.I
)
_OTHER_FORMATS = {
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


def refuse_text(head: bytes) -> None:
    """Recognise what broken downloads leave behind."""
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
    for magic, meaning in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise UserError(f"this is {meaning}")


def _from_pickle(data: memoryview) -> Source:
    value, _ = read_pickle(data)
    if tf_legacy.is_network(value):
        return tf_legacy.convert(value, len(data))
    if ada_pytorch.persistent(value) is not None:
        return ada_pytorch.convert(value, len(data))
    if isinstance(value, tuple | list) and any(tf_legacy.is_network(v) for v in value):
        return _from_networks(list(value), len(data))
    if isinstance(value, dict) and "G_ema" in value:
        source = ada_pytorch.convert(value["G_ema"], len(data))
        rest = [part for name, part in value.items() if name != "G_ema"]
        return _remark(source, refused_globals(rest))
    _refuse_other_pickle(value)
    raise UserError(f"this pickle holds no StyleGAN2 generator ({_summary(value)})")


def _from_networks(networks: list[Any], file_size: int) -> Source:
    """The averaged generator of (G, D, Gs), or of fewer networks: it is the last one."""
    if len(networks) > 3 or not tf_legacy.is_network(networks[-1]):
        raise UserError("the pickle's last network, the averaged generator, cannot be read")
    source = tf_legacy.convert(networks[-1], file_size)
    return _remark(source, refused_globals(networks[:-1]))


def _remark(source: Source, refused: list[str]) -> Source:
    if not refused:
        return source
    listed = ", ".join(f"{name!r:.80}" for name in refused[:3])
    remark = f"other parts of the pickle refer to unknown names ({listed}); they were not read"
    return Source(**{**vars(source), "remarks": (*source.remarks, remark)})


def _refuse_other_pickle(value: Any) -> None:
    if "tfutil.Network" in refused_globals(value):
        raise UserError(
            "this is a Progressive GAN generator; only StyleGAN2 generators can be converted"
        )
    require_allowed(value, "this pickle")


def _summary(value: Any) -> str:
    if isinstance(value, dict):
        names = ", ".join(f"{name!r:.40}" for name in list(value)[:5] if isinstance(name, str))
        return f"a dictionary with {names or 'no named entries'}; G_ema is expected"
    return f"a single {type(value).__name__}"


def _from_zip(data: memoryview) -> Source:
    archive = Archive(data)
    names = archive.names
    pickles = [name for name in names if re.fullmatch(r"[^/]*/?data\.pkl", name)]
    roots = [name.removesuffix("data.pkl") for name in pickles]
    if len(roots) == 1:
        root = roots[0]
        if f"{root}constants.pkl" in names or any(n.startswith(f"{root}code/") for n in names):
            raise UserError("this is a TorchScript program, which is not read; save a state dict")
        order = bytes(archive.read(f"{root}byteorder")) if f"{root}byteorder" in names else b""
        value, _ = read_pickle(archive.read(f"{root}data.pkl"))
        storages = zip_storages(archive, root, ">" if order == b"big" else "<")
        return rosinality.convert(value, storages, len(data))
    if names and all(name.endswith(".npy") for name in names):
        return state_dict.read_npz(archive)
    listed = ", ".join(f"{name!r:.60}" for name in names[:3])
    raise UserError(f"this zip archive holds no weights that are known ({listed or 'it is empty'})")


def is_openvino(data: memoryview) -> bool:
    """Whether the bytes are the zip archive (wheel) of MobileStyleGAN's OpenVINO networks."""
    if bytes(data[:4]) != b"PK\x03\x04":
        return False
    return any(name.endswith("/SynthesisNetwork.xml") for name in Archive(data).names)


def read_source(data: memoryview) -> Source:
    """The StyleGAN2 generator in the bytes of a file, whatever its format.

    Raises:
        UserError: the format is unknown, the file is damaged, or it holds something else.
    """
    head = bytes(data[:4096])
    if not head:
        raise UserError(f"this file is empty: {AGAIN}")
    refuse_text(head)
    try:
        if head.startswith(b"PK\x03\x04"):
            return _from_zip(data)
        if state_dict.is_safetensors(data):
            return state_dict.read_safetensors(data)
        if head.startswith(TORCH_STREAM):
            value, storages = read_torch_stream(data)
            return rosinality.convert(value, storages, len(data))
        if head[0] == 0x80 or head[:1] in b"(]}c":
            return _from_pickle(data)
    except TruncatedPickle as error:
        raise UserError(f"{error}: the file is incomplete; {AGAIN}") from error
    except MalformedPickle as error:
        raise UserError(f"{error}; {AGAIN}") from error
    raise UserError(
        f"unknown format (it begins with {head[:8]!r}, an invalid load key for a pickle); "
        f"if it should be a generator, {AGAIN}"
    )


def map_file(path: Path) -> memoryview:
    """The bytes of a file, read on demand.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if path.stat().st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
