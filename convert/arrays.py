"""Inert records of numpy arrays and torch tensors, decoded from the bytes of the file."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from convert.archive import Archive
from convert.safe_pickle import (
    MAX_OPCODES,
    Global,
    MalformedPickle,
    PersistentId,
    Record,
    TruncatedPickle,
    children,
    read_pickle,
)
from stylesr_jax.errors import UserError

MAX_DIMENSIONS = 8
MAX_NESTED_OPCODES = 1000  # the stream of one storage has about 50
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001
_NUMPY_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_STORAGE_TYPES = {
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.DoubleStorage": "f8",
    "torch.BFloat16Storage": "bf16",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "b1",
}
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")

Storages = Callable[[PersistentId], np.ndarray]


def _damaged(what: str) -> MalformedPickle:
    return MalformedPickle(f"the file is damaged: {what}")


def _is(value: Any, *names: str) -> bool:
    return isinstance(value, Global) and value.name in names


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if isinstance(value, Record) and _is(value.function, "torch.Size"):
        value = value.args
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise _damaged(f"{what} is no list of sizes")
    for size in value:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 40:
            raise _damaged(f"{what} holds an impossible size")
    return tuple(value)


def as_bytes(value: Any) -> memoryview:
    """The bytes of an inert value, also when protocol 2 stored them as text."""
    if isinstance(value, memoryview):
        return value
    if isinstance(value, str):
        text = value
    elif isinstance(value, Record) and _is(value.function, "_codecs.encode"):
        text = value.args[0] if value.args and isinstance(value.args, tuple) else None
    else:
        text = None
    if not isinstance(text, str):
        raise _damaged("an array's data is missing")
    try:
        return memoryview(text.encode("latin-1"))
    except UnicodeEncodeError as error:
        raise _damaged("an array's data is not bytes") from error


def widen(raw: memoryview, kind: str, order: str = "<") -> np.ndarray:
    """The flat array in raw bytes; bfloat16 ("bf16") becomes float32."""
    if kind == "bf16":
        high = np.frombuffer(raw, f"{order}u2").astype(np.uint32)
        return (high << np.uint32(16)).view(np.float32)
    return np.frombuffer(raw, f"{order}{kind}")


def _numpy_type(value: Any) -> np.dtype:
    """The dtype that an inert record describes; only plain numbers are known."""
    if not isinstance(value, Record) or not _is(value.function, "numpy.dtype"):
        raise _damaged("an array's element type is missing")
    kind = value.args[0] if isinstance(value.args, tuple) and value.args else None
    if not isinstance(kind, str) or kind.lstrip("<>|=") not in _NUMPY_TYPES:
        raise UserError(f"an array in the file has elements of type {str(kind)[:20]!r}; not read")
    order = "<"
    if isinstance(value.state, tuple) and len(value.state) > 1:
        order = ">" if value.state[1] == ">" else "<"
    return np.dtype(order + kind.lstrip("<>|="))


def numpy_array(value: Any) -> np.ndarray:
    """The array in an inert record of a numpy array or scalar: a view of the file's bytes.

    Raises:
        UserError: it is something else, or its shape, type and data contradict each other.
    """
    if not isinstance(value, Record):
        raise _damaged("a number array was expected")
    if _is(value.function, *(f"{core}.scalar" for core in _MULTIARRAY)):
        if not isinstance(value.args, tuple) or len(value.args) != 2:
            raise _damaged("a number is incomplete")
        dtype, raw = _numpy_type(value.args[0]), as_bytes(value.args[1])
        shape: tuple[int, ...] = ()
        fortran = False
    elif _is(value.function, *(f"{core}._reconstruct" for core in _MULTIARRAY)):
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            raise _damaged("an array is incomplete")
        _, sizes, element, fortran, data = value.state
        dtype, shape, raw = _numpy_type(element), _sizes(sizes, "an array's shape"), as_bytes(data)
    elif _is(value.function, "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"):
        if not isinstance(value.args, tuple) or len(value.args) != 4:
            raise _damaged("an array is incomplete")
        data, element, sizes, layout = value.args
        dtype, shape, raw = _numpy_type(element), _sizes(sizes, "an array's shape"), as_bytes(data)
        fortran = layout == "F"
    else:
        raise _damaged("a number array was expected")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise _damaged("an array's shape does not fit its data")
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


def storage_key(reference: PersistentId) -> tuple[str, str, int]:
    """(element type, key, number of elements) of a reference to a torch storage.

    Raises:
        UserError: it is no such reference.
    """
    value = reference.value
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        raise _damaged("a reference to tensor data is malformed")
    _, kind, key, _, count, *view = value
    name = kind.name if isinstance(kind, Global) else None
    if name in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        name = "torch.ByteStorage"
    if name not in _STORAGE_TYPES:
        raise UserError(f"tensor data of type {str(name)[:60]!r} is not known; not read")
    if any(part is not None for part in view):
        raise UserError("tensor data shared between storages is not known; not read")
    if not isinstance(key, str) or isinstance(count, bool) or not isinstance(count, int):
        raise _damaged("a reference to tensor data is malformed")
    return _STORAGE_TYPES[name], key, count


def item_size(kind: str) -> int:
    """Bytes of one element of a storage."""
    return 2 if kind == "bf16" else np.dtype(kind).itemsize


def read_torch_stream(data: memoryview, *, max_opcodes: int = MAX_OPCODES) -> tuple[Any, Storages]:
    """Read a stream of `torch.save` without zip: (inert value, its storages).

    Raises:
        UserError: the stream is damaged, truncated, or of an unknown version.
    """
    magic, start = read_pickle(data, max_opcodes=max_opcodes)
    if magic != TORCH_MAGIC:
        raise _damaged("torch's magic number is missing")
    protocol, start = read_pickle(data, start, max_opcodes=max_opcodes)
    system, start = read_pickle(data, start, max_opcodes=max_opcodes)
    if protocol != TORCH_PROTOCOL or not isinstance(system, dict):
        raise UserError("this torch stream's version is not known")
    order = "<" if system.get("little_endian", True) is True else ">"
    value, start = read_pickle(data, start, max_opcodes=max_opcodes)
    keys, start = read_pickle(data, start, max_opcodes=max_opcodes)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _damaged("the list of torch storages is malformed")
    kinds = storage_kinds(value)
    located: dict[str, np.ndarray] = {}
    for key in keys:
        if len(data) - start < 8:
            raise TruncatedPickle("pickle data was truncated")
        count = int.from_bytes(data[start : start + 8], "little")
        if key not in kinds or kinds[key][1] != count:
            raise _damaged("the list of torch storages does not fit the tensors")
        size = count * item_size(kinds[key][0])
        if len(data) - start - 8 < size:
            raise TruncatedPickle("pickle data was truncated")
        located[key] = widen(data[start + 8 : start + 8 + size], kinds[key][0], order)
        start += 8 + size

    def storages(reference: PersistentId) -> np.ndarray:
        kind, key, count = storage_key(reference)
        if key not in located or (kind, count) != kinds[key]:
            raise _damaged("a tensor's data is missing")
        return located[key]

    return value, storages


def storage_kinds(value: Any) -> dict[str, tuple[str, int]]:
    """{key: (element type, number of elements)} of every storage that a value refers to."""
    seen: set[int] = set()
    kinds: dict[str, tuple[str, int]] = {}
    pending = [value]
    while pending:
        node = pending.pop()
        if id(node) in seen or isinstance(node, str | memoryview | int | float | None):
            continue
        seen.add(id(node))
        if isinstance(node, PersistentId):
            kind, key, count = storage_key(node)
            kinds.setdefault(key, (kind, count))
        pending.extend(children(node))
    return kinds


def zip_storages(archive: Archive, prefix: str, order: str) -> Storages:
    """The storages of a zip archive of `torch.save`, whose members begin with `prefix`."""
    names = set(archive.names)

    def storages(reference: PersistentId) -> np.ndarray:
        kind, key, count = storage_key(reference)
        name = f"{prefix}data/{key}"
        if name not in names:
            raise UserError("the torch archive lacks a tensor's data; download it again")
        raw = archive.read(name)
        if count < 0 or count * item_size(kind) != len(raw):
            raise _damaged("a tensor's data have another size than the tensor")
        return widen(raw, kind, order)

    return storages


def _no_storages(reference: PersistentId) -> np.ndarray:
    raise _damaged("a tensor's data is outside the file")


def _storage(value: Any, storages: Storages) -> np.ndarray:
    if isinstance(value, PersistentId):
        return storages(value)
    if isinstance(value, Record) and _is(value.function, "torch.storage._load_from_bytes"):
        if not isinstance(value.args, tuple) or len(value.args) != 1:
            raise _damaged("a tensor's data is missing")
        raw = as_bytes(value.args[0])
        reference, inner = read_torch_stream(raw, max_opcodes=MAX_NESTED_OPCODES)
        if not isinstance(reference, PersistentId):
            raise _damaged("a nested torch stream holds something else than tensor data")
        return inner(reference)
    raise _damaged("a tensor's data is missing")


def is_tensor(value: Any) -> bool:
    """Whether an inert value is a record of a torch tensor or parameter."""
    return isinstance(value, Record) and _is(
        value.function,
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
    )


def tensor(value: Any, storages: Storages = _no_storages) -> np.ndarray:
    """The array in an inert record of a torch tensor or parameter.

    Raises:
        UserError: it is something else, or its layout does not fit its data.
    """
    if not is_tensor(value) or not isinstance(value.args, tuple) or not value.args:
        raise _damaged("a tensor was expected")
    if _is(value.function, "torch._utils._rebuild_parameter"):
        inner = value.args[0]
        if not is_tensor(inner) or _is(inner.function, "torch._utils._rebuild_parameter"):
            raise _damaged("a parameter without a tensor")
        return tensor(inner, storages)
    if len(value.args) < 4:
        raise _damaged("a tensor is incomplete")
    source, offset, size, stride = value.args[:4]
    data = _storage(source, storages)
    sizes, strides = _sizes(size, "a tensor's shape"), _sizes(stride, "a tensor's strides")
    if len(sizes) != len(strides) or isinstance(offset, bool) or not isinstance(offset, int):
        raise _damaged("a tensor's layout is malformed")
    count = math.prod(sizes)
    if count == 0:
        return np.zeros(sizes, data.dtype)
    last = offset + sum((s - 1) * step for s, step in zip(sizes, strides, strict=True))
    if offset < 0 or last >= data.size or count > data.size:
        raise _damaged("a tensor reaches beyond its data")
    return np.lib.stride_tricks.as_strided(
        data[offset:],
        sizes,
        [step * data.itemsize for step in strides],
        writeable=False,
    )
