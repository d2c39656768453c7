"""Inert records of numpy arrays, decoded from the bytes of the file."""

import math
from typing import Any

import numpy as np

from convert.pickles import Global, MalformedPickle, Record
from stylesr_jax.errors import UserError

MAX_DIMENSIONS = 8
_NUMPY_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


def damaged(what: str) -> MalformedPickle:
    """The error for values that contradict each other."""
    return MalformedPickle(f"the file is damaged: {what}")


def is_global(value: Any, *names: str) -> bool:
    """Whether an inert value is one of the named globals."""
    return isinstance(value, Global) and value.name in names


def sizes_in(value: Any, what: str) -> tuple[int, ...]:
    """The shape or strides in an inert value; `what` names it in errors."""
    if isinstance(value, Record) and is_global(value.function, "torch.Size"):
        value = value.args
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise damaged(f"{what} is no list of sizes")
    for size in value:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 40:
            raise damaged(f"{what} holds an impossible size")
    return tuple(value)


def as_bytes(value: Any) -> memoryview:
    """The bytes of an inert value, also when protocol 2 stored them as text."""
    if isinstance(value, memoryview):
        return value
    if isinstance(value, str):
        text = value
    elif isinstance(value, Record) and is_global(value.function, "_codecs.encode"):
        text = value.args[0] if value.args and isinstance(value.args, tuple) else None
    else:
        text = None
    if not isinstance(text, str):
        raise damaged("an array's data is missing")
    try:
        return memoryview(text.encode("latin-1"))
    except UnicodeEncodeError as error:
        raise damaged("an array's data is not bytes") from error


def widen(raw: memoryview, kind: str, order: str = "<") -> np.ndarray:
    """The flat array in raw bytes; bfloat16 ("bf16") becomes float32."""
    if kind == "bf16":
        high = np.frombuffer(raw, f"{order}u2").astype(np.uint32)
        return (high << np.uint32(16)).view(np.float32)
    return np.frombuffer(raw, f"{order}{kind}")


def item_size(kind: str) -> int:
    """Bytes of one element of a kind that `widen` knows."""
    return 2 if kind == "bf16" else np.dtype(kind).itemsize


def _numpy_type(value: Any) -> np.dtype:
    """The dtype that an inert record describes; only plain numbers are known."""
    if not isinstance(value, Record) or not is_global(value.function, "numpy.dtype"):
        raise damaged("an array's element type is missing")
    kind = value.args[0] if isinstance(value.args, tuple) and value.args else None
    if not isinstance(kind, str) or kind.lstrip("<>|=") not in _NUMPY_TYPES:
        raise UserError(f"an array in the file has elements of type {str(kind)[:20]!r}; not read")
    order = "<"
    if isinstance(value.state, tuple) and len(value.state) > 1:
        order = ">" if value.state[1] == ">" else "<"
    return np.dtype(order + kind.lstrip("<>|="))


def is_numpy_array(value: Any) -> bool:
    """Whether an inert value is a record of a numpy array."""
    makers = [f"{core}._reconstruct" for core in _MULTIARRAY]
    makers += [f"{numeric}._frombuffer" for numeric in _NUMERIC]
    return isinstance(value, Record) and is_global(value.function, *makers)


def numpy_array(value: Any) -> np.ndarray:
    """The array in an inert record of a numpy array or scalar: a view of the file's bytes.

    Raises:
        UserError: it is something else, or its shape, type and data contradict each other.
    """
    if not isinstance(value, Record):
        raise damaged("a number array was expected")
    if is_global(value.function, *(f"{core}.scalar" for core in _MULTIARRAY)):
        if not isinstance(value.args, tuple) or len(value.args) != 2:
            raise damaged("a number is incomplete")
        dtype, raw = _numpy_type(value.args[0]), as_bytes(value.args[1])
        shape: tuple[int, ...] = ()
        fortran = False
    elif is_global(value.function, *(f"{core}._reconstruct" for core in _MULTIARRAY)):
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            raise damaged("an array is incomplete")
        _, sizes, element, fortran, data = value.state
        dtype, shape, raw = (
            _numpy_type(element),
            sizes_in(sizes, "an array's shape"),
            as_bytes(data),
        )
    elif is_global(value.function, *(f"{numeric}._frombuffer" for numeric in _NUMERIC)):
        if not isinstance(value.args, tuple) or len(value.args) != 4:
            raise damaged("an array is incomplete")
        data, element, sizes, layout = value.args
        dtype, shape, raw = (
            _numpy_type(element),
            sizes_in(sizes, "an array's shape"),
            as_bytes(data),
        )
        fortran = layout == "F"
    else:
        raise damaged("a number array was expected")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise damaged("an array's shape does not fit its data")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran is True else "C")


def number(value: Any) -> Any:
    """An inert number as a Python one (numpy scalars too); other values are returned as given."""
    if isinstance(value, Record):
        try:
            array = numpy_array(value)
        except UserError:
            return value
        return array.item() if array.size == 1 else value
    return value
