"""Which generator a file's nested dictionaries hold, and under which names.

Checkpoints nest state dicts under "g_ema", "state_dict", "params_ema", ..., and networks inside
networks under prefixes ("decoder.", "module."). Both are taken as one dotted path, and a
generator is where an array's path ends in a name that only such generators have.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convert.arrays import is_global, is_numpy_array, numpy_array
from convert.other_networks import refuse_other_networks
from convert.pickles import Global, Record, refused_globals, require_allowed
from convert.torch_files import Storages, is_tensor, no_storages, tensor
from stylesr_jax.errors import UserError

MAX_DEPTH = 6
MAX_ENTRIES = 50_000
MAX_NAME = 200  # longer names are no parameters'
MAX_SEQUENCE = 8  # entries of a tuple that is looked into
RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"
# Paths end in one of these, by the layout of the names around it.
_ANCHORS = {
    "mobile": "layers.0.conv1.conv.weight_dw",
    "ada": "synthesis.b4.const",
    "rosinality": "input.input",
    "basicsr": "constant_input.weight",
}
_AVERAGED = re.compile(r"(^|.*_)(ema|running|smooth|avg|averaged)(_.*)?|gs", re.I)
_MEAN_LATENT = ("latent_avg", "mean_latent", "style_mean")
_WRAPPERS = {"", "state_dict", "module", "model"}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds, by dotted path.

    Attributes:
        arrays: records of arrays, or arrays.
        modules: persistent modules of stylegan2-ada-pytorch.
        others: names of the classes of other objects, which are not read.
        names: what the outermost dictionary holds.
        decode: turns an entry of `arrays` into an array.
        kind: the file's kind, for messages.
        size: how many numbers the file can hold.
    """

    arrays: Mapping[str, Any]
    modules: Mapping[str, Any]
    others: Mapping[str, str]
    names: tuple[str, ...]
    decode: Callable[[Any], np.ndarray]
    kind: str
    size: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A generator in a file: `layout` is "module" or a key of the layouts of state dicts."""

    layout: str
    path: str  # dotted, "" for the file's root

    @property
    def prefix(self) -> str:
        return f"{self.path}." if self.path else ""

    @property
    def averaged(self) -> bool:
        return any(_AVERAGED.fullmatch(part) for part in self.path.split("."))


def persistent(value: Any) -> dict | None:
    """The description of a persistent object: its class name, state, ...; None for others."""
    if (
        isinstance(value, Record)
        and is_global(value.function, RECONSTRUCT)
        and isinstance(value.args, tuple)
        and len(value.args) == 1
        and isinstance(value.args[0], dict)
    ):
        return value.args[0]
    return None


def _children(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        named = {name: child for name, child in value.items() if isinstance(name, str)}
        return {name: child for name, child in named.items() if len(name) <= MAX_NAME}
    if isinstance(value, list | tuple) and len(value) <= MAX_SEQUENCE:
        return {str(i): child for i, child in enumerate(value)}
    return {}


def from_arrays(arrays: Mapping[str, np.ndarray], kind: str, size: int) -> Contents:
    """The contents of a file of plain arrays."""
    return Contents(arrays, {}, {}, tuple(arrays), lambda array: array, kind, size)


def from_value(value: Any, kind: str, size: int, storages: Storages = no_storages) -> Contents:
    """The contents of an inert value, as pickles and `torch.save` hold it.

    Raises:
        UserError: it has implausibly many entries.
    """
    arrays: dict[str, Any] = {}
    modules: dict[str, Any] = {}
    others: dict[str, str] = {}
    pending = [("", value, 0)]
    seen = 0
    while pending:
        path, node, depth = pending.pop()
        seen += 1
        if seen > MAX_ENTRIES:
            raise UserError(f"the {kind} has implausibly many entries; not read")
        if is_tensor(node) or is_numpy_array(node):
            arrays[path] = node
        elif persistent(node) is not None:
            modules[path] = node
        elif isinstance(node, Record):
            others[path] = _class_of(node)
        elif depth < MAX_DEPTH:
            below = [
                (_join(path, name), child, depth + 1) for name, child in _children(node).items()
            ]
            pending.extend(reversed(below))

    def decode(record: Any) -> np.ndarray:
        return tensor(record, storages) if is_tensor(record) else numpy_array(record)

    return Contents(arrays, modules, others, tuple(_children(value)), decode, kind, size)


def _class_of(record: Record) -> str:
    return record.function.name if isinstance(record.function, Global) else "an object"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _candidates(contents: Contents) -> list[Candidate]:
    found = [Candidate("module", path) for path in contents.modules]
    for layout, anchor in _ANCHORS.items():
        for name in contents.arrays:
            if name == anchor or name.endswith(f".{anchor}"):
                found.append(Candidate(layout, name.removesuffix(anchor).rstrip(".")))
    # MobileStyleGAN's checkpoints hold their teacher too, and share a name with rosinality's.
    mobile = [candidate for candidate in found if candidate.layout == "mobile"]
    return mobile or found


def _is_generator(contents: Contents, candidate: Candidate) -> bool:
    if candidate.layout != "module":
        return True
    description = persistent(contents.modules[candidate.path]) or {}
    return description.get("class_name") == "Generator"


def choose(contents: Contents) -> tuple[Candidate, tuple[str, ...]]:
    """The file's generator, the averaged one where there are several, and remarks on the choice.

    Raises:
        UserError: there is none, or several of the same rank.
    """
    found = _candidates(contents)
    found = [c for c in found if _is_generator(contents, c)] or found
    best = [c for c in found if c.averaged] or found
    if not best:
        _refuse(contents)
    if len(best) > 1:
        listed = ", ".join(f"{c.path!r:.60}" for c in best[:4])
        raise UserError(
            f"this {contents.kind} holds several generators ({listed}); save the state_dict() of "
            "the one that you want to a file of its own"
        )
    chosen = best[0]
    return chosen, (*_remarks(chosen, found), *_unread(contents, chosen))


def _remarks(chosen: Candidate, found: list[Candidate]) -> tuple[str, ...]:
    rest = ", ".join(f"{c.path!r:.60}" for c in found if c is not chosen)
    left = f"; {rest} left out" if rest else ""
    if chosen.averaged:
        return (f"read from {chosen.path!r:.80}, the averaged (EMA) generator{left}",)
    if set(chosen.path.split(".")) <= _WRAPPERS:
        return ()
    return (f"read from {chosen.path!r:.80}; the file holds no averaged (EMA) generator",)


def _unread(contents: Contents, chosen: Candidate) -> tuple[str, ...]:
    """A remark where other parts of a file refer to unknown names."""
    unknown = {name for path, name in contents.others.items() if not Global(name).allowed}
    for path, module in contents.modules.items():
        if path != chosen.path:
            unknown |= set(refused_globals(module))
    if not unknown:
        return ()
    listed = ", ".join(f"{name!r:.80}" for name in sorted(unknown)[:3])
    return (f"other parts of the file refer to unknown names ({listed}); they were not read",)


def _refuse(contents: Contents) -> None:
    """Say what a file without a generator holds instead."""
    refuse_other_networks(contents.arrays)
    classes = [name for name in contents.others.values() if not Global(name).allowed]
    if "tfutil.Network" in classes:
        raise UserError(
            "this is a Progressive GAN generator; only StyleGAN2 generators can be converted"
        )
    if classes:
        raise UserError(
            f"this {contents.kind} refers to {classes[0]!r:.80}, a class whose objects only their "
            "own code can read; nothing was run. If you trust the file, load it with that code "
            "and save the generator's state_dict()"
        )
    names = (*contents.arrays, *contents.names)[:3]
    listed = ", ".join(f"{name!r:.60}" for name in names) or "nothing with a name"
    raise UserError(
        f"this {contents.kind} holds no StyleGAN2 generator, but {listed}; G_ema, g_ema or "
        "state_dict with a generator's arrays, or those alone, are expected"
    )


def arrays_below(contents: Contents, prefix: str) -> dict[str, np.ndarray]:
    """The decoded arrays whose paths begin with a prefix, which is taken off.

    Raises:
        UserError: one is damaged, or its record refers to unknown names.
    """
    what = f"the generator in this {contents.kind}"
    if prefix:
        for path, name in contents.others.items():
            if path.startswith(prefix):
                require_allowed(Global(name), what)
    chosen = {n.removeprefix(prefix): a for n, a in contents.arrays.items() if n.startswith(prefix)}
    require_allowed(list(chosen.values()), what)
    return {name: contents.decode(record) for name, record in chosen.items()}


def mean_latent(contents: Contents, candidate: Candidate) -> np.ndarray | None:
    """The mean w that a checkpoint keeps beside the generator or further up; None without one."""
    parts = candidate.path.split(".") if candidate.path else []
    for depth in range(len(parts), -1, -1):
        for name in _MEAN_LATENT:
            path = ".".join((*parts[:depth], name))
            if path in contents.arrays:
                require_allowed(contents.arrays[path], f"{path!r:.80} in this {contents.kind}")
                return contents.decode(contents.arrays[path])
    return None
