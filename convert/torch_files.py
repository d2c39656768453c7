"""Files of `torch.save`, zip archives and older streams, and inert records of their tensors."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from convert.archive import Archive
from convert.arrays import as_bytes, damaged, is_global, item_size, sizes_in, widen
from convert.pickles import (
    MAX_OPCODES,
    Global,
    PersistentId,
    Record,
    TruncatedPickle,
    children,
    read_pickle,
)
from convert.raw import ZIP
from stylesr_jax.errors import UserError

TORCH_STREAM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001
MAX_NESTED_OPCODES = 1000  # the stream of one storage has about 50
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

Storages = Callable[[PersistentId], np.ndarray]


def pickle_roots(names: list[str]) -> list[str]:
    """The folders (with their "/") of a zip archive that hold a pickle of `torch.save`."""
    pickles = [name for name in names if re.fullmatch(r"[^/]*/?data\.pkl", name)]
    return [name.removesuffix("data.pkl") for name in pickles]


def read_torch(data: memoryview) -> tuple[Any, Storages]:
    """Read a file of `torch.save`, new or old format: (inert value, its storages).

    Raises:
        UserError: it is another file, a TorchScript program, or damaged.
    """
    if bytes(data[:4]) != ZIP:
        return read_torch_stream(data)
    archive = Archive(data)
    names = archive.names
    roots = pickle_roots(names)
    if len(roots) != 1:
        raise UserError("this zip archive is no file of torch.save")
    root = roots[0]
    if f"{root}constants.pkl" in names or any(n.startswith(f"{root}code/") for n in names):
        raise UserError(
            "this is a TorchScript program, which is not read: load it in PyTorch and save its "
            "state_dict()"
        )
    big = f"{root}byteorder" in names and bytes(archive.read(f"{root}byteorder")) == b"big"
    value, _ = read_pickle(archive.read(f"{root}data.pkl"))
    return value, zip_storages(archive, root, ">" if big else "<")


def storage_key(reference: PersistentId) -> tuple[str, str, int]:
    """(element type, key, number of elements) of a reference to a torch storage.

    Raises:
        UserError: it is no such reference.
    """
    value = reference.value
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        raise damaged("a reference to tensor data is malformed")
    _, kind, key, _, count, *view = value
    name = kind.name if isinstance(kind, Global) else None
    if name in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        name = "torch.ByteStorage"
    if name not in _STORAGE_TYPES:
        raise UserError(f"tensor data of type {str(name)[:60]!r} is not known; not read")
    if any(part is not None for part in view):
        raise UserError("tensor data shared between storages is not known; not read")
    if not isinstance(key, str) or isinstance(count, bool) or not isinstance(count, int):
        raise damaged("a reference to tensor data is malformed")
    return _STORAGE_TYPES[name], key, count


def read_torch_stream(data: memoryview, *, max_opcodes: int = MAX_OPCODES) -> tuple[Any, Storages]:
    """Read a stream of `torch.save` without zip: (inert value, its storages).

    Raises:
        UserError: the stream is damaged, truncated, or of an unknown version.
    """
    magic, start = read_pickle(data, max_opcodes=max_opcodes)
    if magic != TORCH_MAGIC:
        raise damaged("torch's magic number is missing")
    protocol, start = read_pickle(data, start, max_opcodes=max_opcodes)
    system, start = read_pickle(data, start, max_opcodes=max_opcodes)
    if protocol != TORCH_PROTOCOL or not isinstance(system, dict):
        raise UserError("this torch stream's version is not known")
    order = "<" if system.get("little_endian", True) is True else ">"
    value, start = read_pickle(data, start, max_opcodes=max_opcodes)
    keys, start = read_pickle(data, start, max_opcodes=max_opcodes)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged("the list of torch storages is malformed")
    kinds = storage_kinds(value)
    located: dict[str, np.ndarray] = {}
    for key in keys:
        if len(data) - start < 8:
            raise TruncatedPickle("pickle data was truncated")
        count = int.from_bytes(data[start : start + 8], "little")
        if key not in kinds or kinds[key][1] != count:
            raise damaged("the list of torch storages does not fit the tensors")
        size = count * item_size(kinds[key][0])
        if len(data) - start - 8 < size:
            raise TruncatedPickle("pickle data was truncated")
        located[key] = widen(data[start + 8 : start + 8 + size], kinds[key][0], order)
        start += 8 + size

    def storages(reference: PersistentId) -> np.ndarray:
        kind, key, count = storage_key(reference)
        if key not in located or (kind, count) != kinds[key]:
            raise damaged("a tensor's data is missing")
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
            raise damaged("a tensor's data have another size than the tensor")
        return widen(raw, kind, order)

    return storages


def no_storages(reference: PersistentId) -> np.ndarray:
    """The storages of a pickle: none."""
    raise damaged("a tensor's data is outside the file")


def _storage(value: Any, storages: Storages) -> np.ndarray:
    if isinstance(value, PersistentId):
        return storages(value)
    if isinstance(value, Record) and is_global(value.function, "torch.storage._load_from_bytes"):
        if not isinstance(value.args, tuple) or len(value.args) != 1:
            raise damaged("a tensor's data is missing")
        raw = as_bytes(value.args[0])
        reference, inner = read_torch_stream(raw, max_opcodes=MAX_NESTED_OPCODES)
        if not isinstance(reference, PersistentId):
            raise damaged("a nested torch stream holds something else than tensor data")
        return inner(reference)
    raise damaged("a tensor's data is missing")


def is_tensor(value: Any) -> bool:
    """Whether an inert value is a record of a torch tensor or parameter."""
    return isinstance(value, Record) and is_global(
        value.function,
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
    )


def tensor(value: Any, storages: Storages = no_storages) -> np.ndarray:
    """The array in an inert record of a torch tensor or parameter.

    Raises:
        UserError: it is something else, or its layout does not fit its data.
    """
    if not is_tensor(value) or not isinstance(value.args, tuple) or not value.args:
        raise damaged("a tensor was expected")
    if is_global(value.function, "torch._utils._rebuild_parameter"):
        inner = value.args[0]
        if not is_tensor(inner) or is_global(inner.function, "torch._utils._rebuild_parameter"):
            raise damaged("a parameter without a tensor")
        return tensor(inner, storages)
    if len(value.args) < 4:
        raise damaged("a tensor is incomplete")
    source, offset, size, stride = value.args[:4]
    data = _storage(source, storages)
    sizes, strides = sizes_in(size, "a tensor's shape"), sizes_in(stride, "a tensor's strides")
    if len(sizes) != len(strides) or isinstance(offset, bool) or not isinstance(offset, int):
        raise damaged("a tensor's layout is malformed")
    count = math.prod(sizes)
    if count == 0:
        return np.zeros(sizes, data.dtype)
    last = offset + sum((s - 1) * step for s, step in zip(sizes, strides, strict=True))
    if offset < 0 or last >= data.size or count > data.size:
        raise damaged("a tensor reaches beyond its data")
    return np.lib.stride_tricks.as_strided(
        data[offset:],
        sizes,
        [step * data.itemsize for step in strides],
        writeable=False,
    )
