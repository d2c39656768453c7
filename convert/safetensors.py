"""Bare tensors in `.safetensors` files."""

import json
import math

import numpy as np

from convert.arrays import item_size, widen
from stylesr_jax.errors import UserError
from stylesr_jax.runtime.weights import HEADER_KEY

MAX_HEADER = 1 << 24  # bytes of a header; StyleGAN2's at 1024 px has 20,000
_TYPES = {
    "F32": "f4",
    "F16": "f2",
    "BF16": "bf16",
    "F64": "f8",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "b1",
}


def is_safetensors(data: memoryview) -> bool:
    """Whether the bytes begin as a safetensors file does."""
    return len(data) > 9 and data[8] == ord("{") and int.from_bytes(data[:8], "little") < 1 << 40


def read_safetensors(data: memoryview) -> dict[str, np.ndarray]:
    """The arrays in the bytes of a `.safetensors` file, by name.

    Raises:
        UserError: the file is damaged, or already in this project's format.
    """
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise UserError("the safetensors file ends too early; download it again")
    if length > MAX_HEADER:
        raise UserError("the safetensors file's header is implausibly long; not read")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise UserError("the safetensors file's header is damaged") from error
    metadata = header.pop("__metadata__", None) or {}
    if HEADER_KEY in metadata:
        raise UserError("this file is already converted; use it as it is")
    body = data[8 + length :]
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        try:
            kind = _TYPES[entry["dtype"]]
            shape = tuple(int(size) for size in entry["shape"])
            start, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the safetensors header's {name!r:.80} is damaged") from error
        if end > len(body):
            raise UserError("the safetensors file ends too early; download it again")
        fits = len(shape) <= 8 and min(shape, default=1) >= 0 and 0 <= start <= end
        if not fits or math.prod(shape) * item_size(kind) != end - start:
            raise UserError(f"{name!r:.80} is damaged: its shape does not fit its data")
        arrays[name] = widen(body[start:end], kind).reshape(shape)
    return arrays
