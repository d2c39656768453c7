"""Reads pickles as data: a bounded interpreter of the opcodes that builds inert records.

Nothing is imported, called or executed. A global is only a name; calling one gives a `Record`
that remembers the name and its arguments; assigning state stores it in the record. Callers look
for the few names they know and decode those records themselves, from the files' own bytes.

Bounds: the number of opcodes is limited, large byte strings are views of the file instead of
copies, and a declared size that exceeds the file is an error before anything is allocated.
"""

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

from stylesr_jax.errors import UserError

MAX_OPCODES = 500_000  # a published file with three networks at 1024 px has about 50,000
MAX_TEXT = 1 << 24  # bytes of one string; the longest real one is the embedded source text
MAX_TEXT_TOTAL = 1 << 26
MAX_LINE = 1 << 12  # bytes of an argument that ends with its line
MAX_INTEGER = 32  # bytes of one integer
MAX_SCAN = 4_000_000  # values that one walk over the result visits

# Names that a generator's file may refer to. They are recorded, never resolved.
ALLOWED_GLOBALS = frozenset(
    {
        "torch_utils.persistence._reconstruct_persistent_obj",
        "dnnlib.util.EasyDict",
        "dnnlib.tflib.network.Network",
        "collections.OrderedDict",
        "builtins.dict",
        "builtins.list",
        "builtins.set",
        "builtins.frozenset",
        "builtins.slice",
        "__builtin__.set",
        "_codecs.encode",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.storage._load_from_bytes",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "numpy.ndarray",
        "numpy.dtype",
        *(
            f"numpy.{core}.{name}"
            for core in ("core", "_core")
            for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
        ),
        *(
            f"torch.{kind}Storage"
            for kind in (
                "Float",
                "Half",
                "Double",
                "BFloat16",
                "Long",
                "Int",
                "Short",
                "Char",
                "Byte",
                "Bool",
            )
        ),
        "torch.float16",
        "torch.float32",
        "torch.float64",
    }
)

_MAPPINGS = {"collections.OrderedDict", "builtins.dict", "dnnlib.util.EasyDict"}
_SEQUENCES = {
    "builtins.list",
    "builtins.set",
    "builtins.frozenset",
    "__builtin__.set",
    "torch.Size",
}


class MalformedPickle(UserError):
    """The bytes are no pickle, are damaged, or exceed a bound."""


class TruncatedPickle(MalformedPickle):
    """The pickle goes on after the end of the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """The name of a function or class; nothing is looked up."""

    name: str

    @property
    def allowed(self) -> bool:
        return self.name in ALLOWED_GLOBALS


@dataclasses.dataclass(slots=True, eq=False)
class Record:
    """What calling `function` with `args` would have made, with the state given to it."""

    function: Any
    args: Any
    state: Any = None
    entries: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, eq=False)
class PersistentId:
    """A reference to data kept outside the pickle."""

    value: Any


@dataclasses.dataclass(slots=True, eq=False)
class OpaqueKey:
    """A dictionary key other than text or a number: kept apart, and never hashed by value."""

    value: Any


class _Mark:
    pass


_MARK = _Mark()


def _key(value: Any) -> Any:
    # Hashing nested tuples takes exponential time, and long integers can be made to collide.
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    return value if isinstance(value, str | float | None) else OpaqueKey(value)


class _Reader:
    def __init__(self, data: memoryview, position: int) -> None:
        self.data = data
        self.position = position
        self.text_left = MAX_TEXT_TOTAL

    def take(self, count: int) -> memoryview:
        start, end = self.position, self.position + count
        if end > len(self.data):
            raise TruncatedPickle("pickle data was truncated")
        self.position = end
        return self.data[start:end]

    def unsigned(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def signed(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little", signed=True)

    def line(self) -> str:
        raw = bytes(self.data[self.position : self.position + MAX_LINE])
        end = raw.find(b"\n")
        if end < 0:
            if len(raw) < MAX_LINE:
                raise TruncatedPickle("pickle data was truncated")
            raise MalformedPickle("an argument in the pickle is too long")
        self.position += end + 1
        try:
            return raw[:end].decode()
        except UnicodeDecodeError as error:
            raise MalformedPickle("a name in the pickle is not text") from error

    def text(self, count: int, encoding: str = "utf-8") -> str:
        self.text_left -= count
        if count > MAX_TEXT or self.text_left < 0:
            raise MalformedPickle("a text in the pickle is implausibly long")
        try:
            return str(self.take(count), encoding, "surrogatepass")
        except UnicodeDecodeError as error:
            raise MalformedPickle("a text in the pickle is damaged") from error

    def integer(self, count: int) -> int:
        if count > MAX_INTEGER:
            raise MalformedPickle("an integer in the pickle is implausibly long")
        return self.signed(count)


def _number(text: str) -> int | bool:
    if text in ("00", "01"):
        return text == "01"
    text = text.removesuffix("L")
    if len(text) > 2 * MAX_INTEGER:
        raise MalformedPickle("an integer in the pickle is implausibly long")
    try:
        return int(text)
    except ValueError as error:
        raise MalformedPickle("an integer in the pickle is damaged") from error


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise MalformedPickle("a number in the pickle is damaged") from error


# Opcodes that push one value read from the file.
_READERS = {
    b"I": lambda r: _number(r.line()),
    b"L": lambda r: _number(r.line()),
    b"F": lambda r: _real(r.line()),
    b"S": lambda r: r.line().strip("'\""),
    b"V": lambda r: r.line(),
    b"J": lambda r: r.signed(4),
    b"K": lambda r: r.unsigned(1),
    b"M": lambda r: r.unsigned(2),
    b"\x8a": lambda r: r.integer(r.unsigned(1)),
    b"\x8b": lambda r: r.integer(r.unsigned(4)),
    b"G": lambda r: struct.unpack(">d", r.take(8))[0],
    b"T": lambda r: r.text(r.unsigned(4), "latin-1"),
    b"U": lambda r: r.text(r.unsigned(1), "latin-1"),
    b"X": lambda r: r.text(r.unsigned(4)),
    b"\x8c": lambda r: r.text(r.unsigned(1)),
    b"\x8d": lambda r: r.text(r.unsigned(8)),
    b"B": lambda r: r.take(r.unsigned(4)),
    b"C": lambda r: r.take(r.unsigned(1)),
    b"\x8e": lambda r: r.take(r.unsigned(8)),
    b"\x96": lambda r: r.take(r.unsigned(8)),
    b"N": lambda r: None,
    b"\x88": lambda r: True,
    b"\x89": lambda r: False,
    b")": lambda r: (),
    b"]": lambda r: [],
    b"}": lambda r: {},
    b"\x8f": lambda r: [],
    b"P": lambda r: PersistentId(r.line()),
    b"\x82": lambda r: Global(f"copyreg extension {r.unsigned(1)}"),
    b"\x83": lambda r: Global(f"copyreg extension {r.unsigned(2)}"),
    b"\x84": lambda r: Global(f"copyreg extension {r.unsigned(4)}"),
    b"c": lambda r: Global(f"{r.line()}.{r.line()}"),
}
_VALUES = {code[0]: read for code, read in _READERS.items()}
# Opcodes that look up or store in the memo: the width of the index, 0 for a line of text.
_GET = {ord("g"): 0, ord("h"): 1, ord("j"): 4}
_PUT = {ord("p"): 0, ord("q"): 1, ord("r"): 4}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}


def _construct(function: Any, args: Any) -> Any:
    """An inert value for function(*args): plain containers for the few known container types."""
    if isinstance(function, Global):
        if function.name in _SEQUENCES and (args == () or isinstance(args, tuple)):
            inner = args[0] if args else []
            return list(inner) if isinstance(inner, list | tuple) else Record(function, args)
        if function.name in _MAPPINGS and isinstance(args, tuple):
            return _mapping(function, args)
    return Record(function, args)


def _mapping(function: Global, args: tuple) -> Any:
    if not args:
        return {}
    pairs = args[0]
    if len(args) == 1 and isinstance(pairs, dict):
        return dict(pairs)
    if (
        len(args) == 1
        and isinstance(pairs, list | tuple)
        and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    ):
        return {_key(key): value for key, value in pairs}
    return Record(function, args)


class _Machine:
    def __init__(self, data: memoryview, position: int) -> None:
        self.reader = _Reader(data, position)
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise MalformedPickle("the pickle is damaged: it takes more values than it made")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack:
            value = self.stack.pop()
            if value is _MARK:
                items.reverse()
                return items
            items.append(value)
        raise MalformedPickle("the pickle is damaged: a mark is missing")

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Record):
            target.entries.extend(items)
        else:
            raise MalformedPickle("the pickle is damaged: it appends to something else")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2:
            raise MalformedPickle("the pickle is damaged: a dictionary entry has no value")
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in pairs)
        elif isinstance(target, Record):
            target.entries.extend(pairs)
        else:
            raise MalformedPickle("the pickle is damaged: it sets an item of something else")

    def call(self, function: Any, args: Any) -> None:
        if isinstance(args, tuple):
            # A container built from another one is a copy: bound what these add up to.
            self.copied += sum(len(a) for a in args if isinstance(a, list | tuple | dict))
            if self.copied > MAX_SCAN:
                raise MalformedPickle("the pickle copies its values implausibly often")
        self.stack.append(_construct(function, args))

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Record):
            if target.state is not None:
                target.state = Record(Global("a second state"), (target.state, state))
            else:
                target.state = state
        elif not isinstance(target, dict | list):
            # The attributes of a dictionary, as torch gives its state dicts, are left out.
            raise MalformedPickle("the pickle is damaged: it sets the state of a plain value")

    def index(self, width: int) -> int:
        if width:
            return self.reader.unsigned(width)
        number = _number(self.reader.line())
        if number < 0:
            raise MalformedPickle("the pickle is damaged: a negative memo index")
        return int(number)

    def run(self, max_opcodes: int) -> Any:
        reader, stack, values = self.reader, self.stack, _VALUES
        data, size = reader.data, len(reader.data)
        for _ in range(max_opcodes):
            if reader.position >= size:
                raise TruncatedPickle("pickle data was truncated")
            code = data[reader.position]
            reader.position += 1
            read = values.get(code)
            if read is not None:
                stack.append(read(reader))
            elif code in _GET:
                index = self.index(_GET[code])
                if index not in self.memo:
                    raise MalformedPickle("the pickle is damaged: it recalls an unknown value")
                stack.append(self.memo[index])
            elif code == 0x94:  # MEMOIZE
                self.memo[len(self.memo)] = self.top()
            elif code in _PUT:
                self.memo[self.index(_PUT[code])] = self.top()
            elif code == ord("."):
                return self.pop()
            else:
                self.step(code)
        raise MalformedPickle(f"the pickle has more than {max_opcodes:,} steps")

    def step(self, code: int) -> None:
        """One of the rarer opcodes, which work on the stack."""
        stack, reader = self.stack, self.reader
        if code in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[code])]
            stack.append(tuple(reversed(items)))
        elif code == ord("("):
            stack.append(_MARK)
        elif code == ord("t"):
            stack.append(tuple(self.pop_to_mark()))
        elif code in (ord("l"), 0x91):  # LIST, FROZENSET
            stack.append(self.pop_to_mark())
        elif code == ord("d"):
            items = self.pop_to_mark()
            stack.append({})
            self.set_items(items)
        elif code == ord("a"):
            self.append([self.pop()])
        elif code in (ord("e"), 0x90):  # APPENDS, ADDITEMS
            self.append(self.pop_to_mark())
        elif code == ord("s"):
            value, key = self.pop(), self.pop()
            self.set_items([key, value])
        elif code == ord("u"):
            self.set_items(self.pop_to_mark())
        elif code == ord("R") or code == 0x81:  # REDUCE, NEWOBJ
            args, function = self.pop(), self.pop()
            self.call(function, args)
        elif code == 0x92:  # NEWOBJ_EX
            keywords, args, function = self.pop(), self.pop(), self.pop()
            self.call(function, (args, keywords) if keywords else args)
        elif code == ord("b"):
            self.build()
        elif code == 0x93:  # STACK_GLOBAL
            name, module = self.pop(), self.pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise MalformedPickle("the pickle is damaged: a global's name is not text")
            if len(name) + len(module) > MAX_LINE:
                raise MalformedPickle("an argument in the pickle is too long")
            stack.append(Global(f"{module}.{name}"))
        elif code == ord("i"):  # INST
            function = Global(f"{reader.line()}.{reader.line()}")
            self.call(function, tuple(self.pop_to_mark()))
        elif code == ord("o"):  # OBJ
            items = self.pop_to_mark()
            if not items:
                raise MalformedPickle("the pickle is damaged: an object without a class")
            self.call(items[0], tuple(items[1:]))
        elif code == ord("Q"):
            stack.append(PersistentId(self.pop()))
        elif code == 0x80:  # PROTO
            if reader.unsigned(1) > 5:
                raise MalformedPickle("the pickle's protocol is unknown")
        elif code == 0x95:  # FRAME
            if reader.unsigned(8) > len(reader.data) - reader.position:
                raise TruncatedPickle("pickle data was truncated")
        elif code == ord("0"):
            if stack and stack[-1] is _MARK:
                stack.pop()
            else:
                self.pop()
        elif code == ord("1"):
            self.pop_to_mark()
        elif code == ord("2"):
            stack.append(self.top())
        else:
            raise MalformedPickle(
                f"the pickle is damaged: unknown opcode {code:#04x} at byte {reader.position - 1}"
            )


def read_pickle(
    data: memoryview, position: int = 0, *, max_opcodes: int = MAX_OPCODES
) -> tuple[Any, int]:
    """Read one pickle as inert values.

    Args:
        data: the file's bytes; the byte strings of the result are views of them.
        position: where the pickle begins.
        max_opcodes: how many steps the pickle may have.

    Returns:
        (value, position after the pickle). The value holds None, bool, int, float, str,
        memoryview, tuple, list (also for sets), dict (also for OrderedDict and EasyDict),
        `Global`, `Record`, `PersistentId`; it may contain itself.

    Raises:
        TruncatedPickle: the data end too early.
        MalformedPickle: they are no pickle, or exceed a bound.
    """
    machine = _Machine(data, position)
    value = machine.run(max_opcodes)
    return value, machine.reader.position


def children(value: Any) -> Iterator[Any]:
    """The values directly inside an inert value."""
    if isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, Record):
        yield from (value.function, value.args, value.state, value.entries)
    elif isinstance(value, PersistentId | OpaqueKey):
        yield value.value


_COMPOUND = (list, tuple, dict, Record, PersistentId, OpaqueKey)


def refused_globals(value: Any) -> list[str]:
    """Names outside the allow-list anywhere inside an inert value, sorted."""
    seen: set[int] = set()
    refused: set[str] = set()
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, Global):
            refused |= set() if node.allowed else {node.name}
        elif isinstance(node, _COMPOUND) and id(node) not in seen:
            seen.add(id(node))
            pending.extend(children(node))
    return sorted(refused)


def require_allowed(value: Any, what: str) -> None:
    """Check that an inert value refers to known names only.

    Raises:
        UserError: it does not; the message says which names.
    """
    if refused := refused_globals(value):
        names = ", ".join(repr(name[:80]) for name in refused[:3])
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise UserError(
            f"{what} refers to {names}{more}, which a generator does not need; nothing was run. "
            "Only open files from a source you trust"
        )
