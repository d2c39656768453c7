"""NumPy's `.npz` archives of plain arrays; object arrays, which hold pickles, are not read."""

import math
import re

import numpy as np

from convert.archive import Archive
from convert.arrays import item_size, widen
from stylesr_jax.errors import UserError

_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|][a-z]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}, ?)*\d{0,12})\), ?\}\s*"
)
_NPY_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


def is_npz(archive: Archive) -> bool:
    """Whether all members of an archive, of which there are some, are arrays."""
    return bool(archive.names) and all(name.endswith(".npy") for name in archive.names)


def _npy(data: memoryview, name: str) -> np.ndarray:
    head = bytes(data[:12])
    wide = head[6:7] == b"\x02"
    start = 12 if wide else 10
    if len(head) < 12 or head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\x01\0", b"\x02\0"):
        raise UserError(f"{name} in the archive is no numpy array that can be read")
    length = int.from_bytes(head[8:start], "little")
    match = _NPY_HEADER.fullmatch(bytes(data[start : start + min(length, 10_000)]))
    if match is None:
        raise UserError(f"{name} in the archive is no plain array of numbers; not read")
    shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
    code = match[1].decode()
    if code[1:] not in _NPY_TYPES:
        raise UserError(f"{name} has elements of type {code!r}; only numbers are read")
    raw = data[start + length :]
    if math.prod(shape) * item_size(code[1:]) != len(raw) or len(shape) > 8:
        raise UserError(f"{name} in the archive is damaged: its shape does not fit its data")
    order = "F" if match[2] == b"True" else "C"
    return widen(raw, code[1:], ">" if code[0] == ">" else "<").reshape(shape, order=order)


def read_npz(archive: Archive) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, by name.

    Raises:
        UserError: a member is no plain array, or damaged.
    """
    archive.allow_inflating()
    return {
        name.removesuffix(".npy"): _npy(archive.read(name), name)
        for name in archive.names
        if name.endswith(".npy")
    }
