"""Traced programs on disk, so that a warm start need not trace a search again.

JAX's compilation cache spares compiling, but finds its entry only after a program was traced and
lowered, which takes Python several seconds for a generator's gradient. Here the lowered program
(`jax.export`: data, nothing that could run code of its own) is kept too, under a hash of all that
decides it: what is called with which static values, the arguments' shapes, the package's own
source files, JAX's version, the backend. What has no name that is the same in every process, such
as a lambda, is traced as usual.
"""

import dataclasses
import hashlib
import logging
import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.export

from stylesr_jax import store
from stylesr_jax.errors import UserError
from stylesr_jax.generators import native
from stylesr_jax.runtime import mappings, release_memory, versions

OPTIONS = ("jax_numpy_dtype_promotion", "jax_default_matmul_precision", "jax_enable_x64")
# Native code of this package, whose interface changes with its source files alone.
CALLS = [jax.export.DisabledSafetyCheck.custom_call(name) for name in native.TARGETS]
_log = logging.getLogger(__name__)
_folder: Path | None = None
_ready: dict[Any, Callable[..., Any]] = {}


def keep_in(folder: Path | None) -> None:
    """Keep traced programs in this folder from now on; None keeps none, as at the start."""
    global _folder
    _folder = folder


def make_room() -> None:
    """Let go of every compiled program when half of the process's memory mappings are used.

    A search of one size of image takes nearly 3,000 mappings, and the compiler crashes when there
    are none left, as after a folder of two dozen sizes. What is needed again comes from the cache.
    """
    found = mappings()
    if found is not None and found[0] > found[1] // 2:
        _log.debug("%d of %d memory mappings are used; compiled programs are let go", *found)
        _ready.clear()
        jax.clear_caches()


class _NoName(Exception):
    """A static value cannot be told apart from others by a text."""


def _name(value: Any) -> str:
    """A text for a static value that is the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(_name, value))})"
    if isinstance(value, types.FunctionType) and not value.__closure__:
        if "<" not in value.__qualname__:
            return f"{value.__module__}.{value.__qualname__}"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = (f"{f.name}={_name(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{kind.__module__}.{kind.__qualname__}({','.join(fields)})"
    raise _NoName(repr(value))


@lru_cache(maxsize=1)
def _sources() -> str:
    """A hash of the package's source files."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parent
    for path in sorted((*package.rglob("*.py"), *package.rglob("*.cc"))):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _is_native(facts: list[str]) -> bool:
    """Whether a generator with native blocks is among the arguments."""
    return any("native=True" in fact for fact in facts)


def _broken(promise: bool, facts: list[str]) -> bool:
    """Whether native blocks that were promised to a trace cannot be had; it is forgotten then."""
    if not promise or not _is_native(facts) or native.ready():
        return False
    jax.clear_caches()
    return True


def _key(facts: list[str], leaves: list[Any]) -> str:
    device = _device(leaves)
    facts = [
        *facts,
        *(str(jax.typeof(leaf)) for leaf in leaves),
        _sources(),
        repr(sorted(versions().items())),  # optax and others are traced in
        f"{device.platform} {device.device_kind}",
        *(f"{option}={getattr(jax.config, option)}" for option in OPTIONS),
    ]
    if _is_native(facts):
        # Or the generator's blocks are XLA's after all, or round nothing.
        facts.append(f"{native.ready()} {native.rounding()}")

    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _device(leaves: list[Any]) -> Any:
    placed = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    return next(iter(placed[0].devices())) if placed else jax.local_devices()[0]


def _read(path: Path) -> Any:
    """The program in a file, or None if there is none that can be read."""
    if not path.is_file():
        return None
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # whatever is wrong with it, it is made again
        _log.warning("%s cannot be read (%s); it is made again", path, error)
        return None


def call(function: Callable[..., Any], *args: Any, out: Any, **static: Any) -> Any:
    """`function(*args, **static)`, from a kept program where one is found.

    Args:
        function: a jitted function of this package, at its module's top level.
        args: pytrees of arrays.
        out: pytree with the structure of the result.
        static: its static arguments. With a "mesh" it is called as it is: what is kept is for
            one device.
    """
    if _folder is None or static.get("mesh") is not None:
        return function(*args, **static)
    leaves, tree = jax.tree.flatten(args)
    types_ = tuple(jax.typeof(leaf) for leaf in leaves)
    options = tuple(getattr(jax.config, name) for name in OPTIONS)
    known = (function, tuple(sorted(static.items())), tree, types_, options, _folder)
    run = _ready.get(known)
    if run is None:
        run = _ready[known] = _prepare(function, leaves, tree, static)
    return jax.tree.unflatten(jax.tree.structure(out), run(*leaves))


def _prepare(
    function: Callable[..., Any], leaves: list[Any], tree: Any, static: Mapping[str, Any]
) -> Callable[..., Any]:
    """The function on flat lists of arrays: read, or traced and kept."""

    def flat(*leaves: Any) -> Any:
        return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves), **static))

    assert _folder is not None
    try:
        named = [f"{name}={_name(value)}" for name, value in sorted(static.items())]
    except _NoName as error:
        _log.debug("%s has no name to be kept under", error)
        return _compile(jax.jit(flat), leaves)
    facts = [f"{function.__module__}.{function.__qualname__}", *named, str(tree)]
    promise = False
    try:
        with native.promised() as promise:  # the compiler may still be at work
            exported = _exported(flat, facts, leaves, _folder)
        if _broken(promise, facts):
            exported = _exported(flat, facts, leaves, _folder)
    except (ValueError, NotImplementedError, UserError) as error:
        # A custom call without a promise of stability, or a folder that cannot be written.
        _log.debug("%s is not kept: %s", facts[0], error)
        _broken(promise, facts)
        return _compile(jax.jit(flat), leaves)
    # What a kept program returns is tied to its device; without this it would be compiled once
    # for arguments that are tied, and once for those that are not.
    place = jax.sharding.SingleDeviceSharding(_device(leaves))
    return _compile(jax.jit(exported.call, in_shardings=place, out_shardings=place), leaves)


def _exported(
    flat: Callable[..., Any], facts: list[str], leaves: list[Any], folder: Path
) -> jax.export.Exported:
    """The lowered program: read from the folder, or made and kept there."""
    path = folder / f"{_key(facts, leaves)}.program"
    exported = _read(path)
    if exported is None:
        exported = jax.export.export(jax.jit(flat), disabled_checks=CALLS)(*leaves)
        data = exported.serialize()
        with store.atomic_path(path) as temporary:
            temporary.write_bytes(data)
    return exported


def _compile(function: Any, leaves: list[Any]) -> Callable[..., Any]:
    """The jitted function compiled, with what that took of memory given back before it runs."""
    compiled = function.lower(*leaves).compile()
    release_memory()
    return compiled
