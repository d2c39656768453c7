"""Traced programs on disk, so that a warm start need not trace a search again.

JAX's compilation cache spares compiling, but finds its entry only after a program was traced and
lowered, which takes Python several seconds for a generator's gradient. Here the lowered program
(`jax.export`: data, nothing that could run code of its own) is kept too, under a hash of all that
decides it: what is called with which static values, the arguments' shapes, the package's own
source files, JAX's version, the backend. What has no name that is the same in every process, such
as a lambda, is traced as usual.

Reading takes a while too, most of it beside Python: `foreseen` begins with it before the programs
are called.
"""

import dataclasses
import hashlib
import json
import logging
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.export

from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.native import blocks as native
from stylesr_jax.runtime import files
from stylesr_jax.runtime.machine import versions
from stylesr_jax.runtime.memory import mappings, release_memory

OPTIONS = ("jax_numpy_dtype_promotion", "jax_default_matmul_precision", "jax_enable_x64")
# Native code of this package, whose interface changes with its source files alone.
CALLS = [jax.export.DisabledSafetyCheck.custom_call(name) for name in native.TARGETS]
_log = logging.getLogger(__name__)
_folder: Path | None = None
_ready: dict[Any, Callable[..., Any]] = {}
_foreseen: dict[str, Future[Callable[..., Any] | None]] = {}  # by key, until they are called
_called: dict[str, None] | None = None  # keys, in order; None: they are not noted (any more)


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
    package = Path(__file__).resolve().parent.parent
    for path in sorted((*package.rglob("*.py"), *package.rglob("*.cc"))):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _may_be_native(facts: list[str]) -> bool:
    """Whether a generator with native blocks is among the arguments."""
    return any("native=True" in fact for fact in facts)


def _broken(promise: bool, exported: jax.export.Exported) -> bool:
    """Whether native blocks that were promised to a trace cannot be had; it is forgotten then."""
    if not promise or not _is_native(exported) or native.ready():
        return False
    jax.clear_caches()
    return True


def _is_native(exported: jax.export.Exported) -> bool:
    """Whether native blocks are called."""
    return any(name.encode() in exported.mlir_module_serialized for name in native.TARGETS)


def _circumstances(device: Any) -> list[str]:
    """What decides every program on a device."""
    return [
        _sources(),
        repr(sorted(versions().items())),  # optax and others are traced in
        f"{device.platform} {device.device_kind}",
        *(f"{option}={getattr(jax.config, option)}" for option in OPTIONS),
    ]


def _key(facts: list[str], leaves: list[Any]) -> str:
    types_ = (str(jax.typeof(leaf)) for leaf in leaves)
    facts = [*facts, *types_, *_circumstances(_device(leaves))]
    if _may_be_native(facts):
        facts.append(str(native.ready()))  # or the generator's blocks are XLA's after all

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


def call(
    function: Callable[..., Any], *args: Any, out: Any = None, keep: bool = True, **static: Any
) -> Any:
    """`function(*args, **static)`, from a kept program where one is found.

    Args:
        function: a jitted function of this package, at its module's top level.
        args: pytrees of arrays.
        out: pytree with the structure of the result; None if it has dictionaries, lists and
            tuples only.
        keep: False calls it as it is; for meshes, as what is kept is for one device.
        static: its static arguments.
    """
    global _called
    if _folder is None or not keep:
        return function(*args, **static)
    leaves, tree = jax.tree.flatten(args)
    types_ = tuple(jax.typeof(leaf) for leaf in leaves)
    options = tuple(getattr(jax.config, name) for name in OPTIONS)
    flat = out is not None
    known = (function, tuple(sorted(static.items())), tree, types_, flat, options, _folder)
    run = _ready.get(known)
    if run is not None:
        _called = None
    else:
        run = _ready[known] = _prepare(function, leaves, tree, static, flat=flat)
    found = run(*leaves)
    return jax.tree.unflatten(jax.tree.structure(out), found) if flat else found


def _prepare(
    function: Callable[..., Any],
    leaves: list[Any],
    tree: Any,
    static: Mapping[str, Any],
    *,
    flat: bool,
) -> Callable[..., Any]:
    """The function on a flat list of arrays, perhaps returning one: read, or traced and kept."""

    def on_leaves(*leaves: Any) -> Any:
        found = function(*jax.tree.unflatten(tree, leaves), **static)
        return jax.tree.leaves(found) if flat else found

    assert _folder is not None
    try:
        named = [f"{name}={_name(value)}" for name, value in sorted(static.items())]
    except _NoName as error:
        _log.debug("%s has no name to be kept under", error)
        return _compile(jax.jit(on_leaves), leaves)
    facts = [f"{function.__module__}.{function.__qualname__}", *named, str(tree), str(flat)]
    # The compiler may still be at work.
    tracing = native.promised() if _may_be_native(facts) else nullcontext(False)
    promise = False
    try:
        with tracing as promise:
            key = _key(facts, leaves)
            if (run := _fetch(key, leaves)) is not None:
                return run
            exported = _exported(on_leaves, key, leaves, _folder)
        if _broken(promise, exported):
            key = _key(facts, leaves)
            exported = _exported(on_leaves, key, leaves, _folder)
    except (ValueError, TypeError, NotImplementedError, UserError) as error:
        # A custom call without a promise of stability, a result of another structure, or a folder
        # that cannot be written.
        _log.debug("%s is not kept: %s", facts[0], error)
        if promise and not native.ready():
            jax.clear_caches()
        return _compile(jax.jit(on_leaves), leaves)
    return _placed(exported, leaves)


def _placed(exported: jax.export.Exported, leaves: list[Any]) -> Callable[..., Any]:
    """A kept program, compiled."""
    # What it returns is tied to its device; without this it would be compiled once for arguments
    # that are tied, and once for those that are not.
    place = jax.sharding.SingleDeviceSharding(_device(leaves))
    run = _without_lapack(exported).call
    return _compile(jax.jit(run, in_shardings=place, out_shardings=place), leaves)


def _without_lapack(exported: jax.export.Exported) -> jax.export.Exported:
    """The program, for which JAX need not make LAPACK ready if it is not called.

    Before any call of a program for CPUs JAX imports SciPy, for LAPACK: a quarter of a second. So
    it is told of no platform, and not to look; that it is the right one is in the program's key.
    """
    if exported.platforms != ("cpu",) or b"lapack" in exported.mlir_module_serialized:
        return exported
    checks = (*exported.disabled_safety_checks, jax.export.DisabledSafetyCheck.platform())
    return dataclasses.replace(exported, platforms=("any",), disabled_safety_checks=checks)


def _exported(
    function: Callable[..., Any], key: str, leaves: list[Any], folder: Path
) -> jax.export.Exported:
    """The lowered program: read from the folder, or made and kept there."""
    path = folder / f"{key}.program"
    exported = _read(path)
    if exported is None:
        exported = jax.export.export(jax.jit(function), disabled_checks=CALLS)(*leaves)
        data = exported.serialize()
        with files.atomic_path(path) as temporary:
            temporary.write_bytes(data)
    return exported


def _compile(function: Any, leaves: list[Any]) -> Callable[..., Any]:
    """The jitted function compiled, with what that took of memory given back before it runs."""
    compiled = function.lower(*leaves).compile()
    release_memory()
    return compiled


# --- before they are called -----------------------------------------------------------------


@contextmanager
def foreseen(kind: str) -> Iterator[None]:
    """Load in the background what the last process of this kind called, and note what is called.

    That is, until it called one for the second time: by then it was computing, with all cores.

    Args:
        kind: a text that processes which call the same programs share.
    """
    global _called
    if _folder is None:
        yield
        return
    facts = [kind, *_circumstances(jax.local_devices()[0])]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    path = _folder / f"{name}.called"
    keys = _noted(path)
    pool = ThreadPoolExecutor(1)
    _foreseen.update({key: pool.submit(_load, key, _folder) for key in keys})
    pool.shutdown(wait=False)
    called = _called = dict[str, None]()
    try:
        yield
    finally:
        _called = None
        for waiting in _foreseen.values():
            waiting.cancel()
        _foreseen.clear()
        if called and list(called) != keys:
            with suppress(UserError), files.atomic_path(path) as temporary:
                temporary.write_text(json.dumps(list(called)))


def _noted(path: Path) -> list[str]:
    """The keys in a file; none if it holds something else."""
    with suppress(OSError, ValueError):
        keys = json.loads(path.read_text())
        if isinstance(keys, list) and all(isinstance(key, str) for key in keys):
            return keys
    return []


def _load(key: str, folder: Path) -> Callable[..., Any] | None:
    """A kept program for the first device, or None if it cannot be had."""
    exported = _read(folder / f"{key}.program")
    if exported is None or (_is_native(exported) and not native.ready()):
        return None
    return _placed(exported, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.in_avals])


def _fetch(key: str, leaves: list[Any]) -> Callable[..., Any] | None:
    """What was loaded, or is being loaded, before this call of it, which is noted.

    None for devices other than the first: nothing is loaded for them, nor noted.
    """
    if _device(leaves) != jax.local_devices()[0]:
        return None
    if (called := _called) is not None:  # another thread may end the notes
        called[key] = None
    waiting = _foreseen.pop(key, None)
    if waiting is None or waiting.cancel():
        return None
    try:
        return waiting.result()
    except Exception as error:  # whatever it is, the program is read again, and may say more
        _log.debug("%s cannot be loaded beforehand: %s", key, error)
        return None


def kept_jit(function, static_argnames=()):  # FIXME until the branch "cache" is merged
    return jax.jit(function, static_argnames=static_argnames)
