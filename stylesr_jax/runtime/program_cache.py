"""Traced programs on disk, so that a warm start need not trace a search again.

JAX's compilation cache spares compiling, but finds its entry only after a program was traced and
lowered, which takes Python several seconds for a generator's gradient. `kept_jit` keeps the
lowered program too (`jax.export`: data, nothing that could run code of its own), under a hash of
all that decides it: the function, its static values, the arguments' structure and shapes, the
package's source files, versions of other packages, the backend. What has no name that is the same
in every process, such as a lambda, and what other sources define, is traced as usual.

Reading takes a while too, most of it beside Python: `prefetch` begins with it before the programs
are called.
"""

import dataclasses
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.export
from jax.core import Tracer
from jax.sharding import Mesh, SingleDeviceSharding

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import program_dependencies as dependencies
from stylesr_jax.runtime.machine import versions
from stylesr_jax.runtime.memory import mappings, release_memory
from stylesr_jax.runtime.program_files import (
    Program,
    read_notes,
    read_program,
    write_notes,
    write_program,
)
from stylesr_jax.runtime.program_names import NoNameError, describe, example_of, name_of, path_of

OPTIONS = (  # of JAX, which decide what is traced
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
PACKAGE = Path(__file__).resolve().parent.parent
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_folder: Path | None = None
_ready: "dict[_Call, Callable[..., Any]]" = {}
_prefetched: dict[str, Future[Program | None]] = {}  # by key, until they are called
_called: dict[str, list[str]] | None = None  # notes, in order; None: nothing is noted (any more)


def keep_in(folder: Path | None) -> None:
    """Keep traced programs in this folder from now on; None keeps none, as at the start."""
    global _folder
    _folder = folder


def drop_programs_if_full() -> None:
    """Drop every compiled program when half of the process's memory mappings are used.

    A search of one size of image takes nearly 3,000 mappings, and the compiler crashes when there
    are none left, as after a folder of two dozen sizes. What is needed again comes from the cache.
    """
    counts = mappings()
    if counts is not None and counts[0] > counts[1] // 2:
        _log.debug("%d of %d memory mappings are used; compiled programs are dropped", *counts)
        _ready.clear()
        jax.clear_caches()


# --- calls ----------------------------------------------------------------------------------


class _Call(NamedTuple):
    """What tells programs apart within a process."""

    jitted: Any
    static: tuple[tuple[str, type, Any], ...]  # names, types and values: 1 is not True
    tree: Any  # of the other arguments, by name
    types: tuple[Any, ...]
    device: Any
    options: tuple[Any, ...]
    folder: Path

    def on_leaves(self, *leaves: Any) -> Any:
        """The function of the flat arguments."""
        arguments: Any = {name: value for name, _, value in self.static}
        arguments.update(jax.tree.unflatten(self.tree, leaves))
        bound = inspect.BoundArguments(inspect.signature(self.jitted), arguments)
        return self.jitted(*bound.args, **bound.kwargs)

    def facts(self) -> list[str]:
        """What tells the program apart in every process; raises NoNameError if nothing does."""
        static = (f"{name}={name_of(value)}" for name, _, value in self.static)
        structure = json.dumps(describe(self.tree, name_of))
        types = map(str, self.types)
        return [path_of(self.jitted), *static, structure, *types, *_circumstances(self.device)]


def kept_jit(
    function: Callable[Parameters, Result], *, static_argnames: Sequence[str] = ()
) -> Callable[Parameters, Result]:
    """`jax.jit` that keeps traced programs on disk, in the folder of `keep_in`.

    Without a folder, within another trace, and where an argument lies on several devices or a
    static one is a mesh, it is `jax.jit` itself. Kept programs' results are never weakly typed.

    Args:
        function: a function of this package at its module's top level, perhaps jitted.
        static_argnames: names of its static arguments.
    """
    given: Any = function
    jitted = given if hasattr(given, "lower") else jax.jit(given, static_argnames=static_argnames)
    signature = inspect.signature(function)

    @wraps(jitted)
    def run(*args: Any, **kwargs: Any) -> Any:
        if _folder is None:
            return jitted(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        static = {name: bound.arguments.pop(name) for name in static_argnames}
        leaves, tree = jax.tree.flatten(bound.arguments)
        if any(map(_is_elsewhere, (*leaves, *static.values()))):
            return jitted(*args, **kwargs)
        typed = tuple((name, type(value), value) for name, value in static.items())
        types, options = tuple(map(jax.typeof, leaves)), tuple(_options().values())
        call = _Call(jitted, typed, tree, types, _device(leaves), options, _folder)
        return _program(call, leaves)(*leaves)

    return run


def _is_elsewhere(argument: Any) -> bool:
    """Whether an argument is of an outer trace, or of several devices."""
    if isinstance(argument, (Tracer, Mesh)):
        return True
    return isinstance(argument, jax.Array) and len(argument.sharding.device_set) > 1


def _device(leaves: Iterable[Any]) -> Any:
    """The device that computes with these arguments."""
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    placed = max(arrays, key=lambda array: array.committed, default=None)
    return jax.local_devices()[0] if placed is None else next(iter(placed.devices()))


def _options() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in OPTIONS}


def _program(call: _Call, leaves: list[Any]) -> Callable[..., Any]:
    """The program of a call, on flat arguments."""
    global _called
    run = _ready.get(call)
    if run is not None:
        _called = None
        return run
    drop_programs_if_full()
    run = _ready[call] = _prepare(call, leaves)
    return run


def _prepare(call: _Call, leaves: list[Any]) -> Callable[..., Any]:
    """The program of a call: read, or traced and kept; only traced if it cannot be kept."""
    modules = dependencies.modules_for((jax.tree.unflatten(call.tree, leaves), call.static))
    try:
        with dependencies.assume_ready(modules):
            program = _find(call, leaves, modules)
        if not dependencies.can_call(program.modules):
            jax.clear_caches()  # of what was traced with them
            program = _find(call, leaves, modules)
        run: Any = _compiled(program, call.device).run
        tree = jax.tree.structure(example_of(program.result))
    except (NoNameError, ValueError, TypeError, NotImplementedError, UserError) as error:
        # Besides what has no name: a custom call without a promise of stability, or a folder that
        # cannot be written.
        _log.debug("%s is not kept: %s", call.jitted, error)
        if not dependencies.can_call(modules):
            jax.clear_caches()
        return _compile(call.on_leaves, leaves, call.device)
    return lambda *leaves: jax.tree.unflatten(tree, run(*leaves))


def _find(call: _Call, leaves: list[Any], modules: Iterable[str]) -> Program:
    """The program of a call: prefetched, read, or made and kept."""
    key = _hash([*call.facts(), *dependencies.states(modules)])
    path = call.folder / f"{key}.program"
    program = _take(key, call.device) or read_program(path) or _make(call, leaves, path)
    called = _called  # another thread may end the notes
    if called is not None and call.device == jax.local_devices()[0]:
        called[key] = program.modules
    return program


def _make(call: _Call, leaves: list[Any], path: Path) -> Program:
    """Trace, lower and keep the program of a call.

    Raises:
        NoNameError, ValueError, TypeError, NotImplementedError: what cannot be kept.
        UserError: the folder cannot be written.
    """
    checks = dependencies.safety_checks()
    exported = jax.export.export(jax.jit(call.on_leaves), disabled_checks=checks)(*leaves)
    result = json.loads(json.dumps(describe(exported.out_tree)))
    if jax.tree.structure(example_of(result)) != exported.out_tree:
        raise NoNameError(f"{exported.out_tree} cannot be described")
    flat = jax.tree.structure([0] * len(exported.out_avals))
    data = dataclasses.replace(exported, out_tree=flat).serialize()
    exported = jax.export.deserialize(data)  # without weak types, as in other processes
    program = Program(exported, result, dependencies.modules_in(exported))
    write_program(path, program)
    return program


def _compiled(program: Program, device: Any) -> Program:
    """A program with its compiled form for a device."""
    if program.run is not None:
        return program
    exported = _without_lapack(program.exported)
    return program._replace(run=_compile(exported.call, exported.in_avals, device))


def _compile(function: Callable[..., Any], leaves: Sequence[Any], device: Any) -> Any:
    """A function compiled for a device, with what that took of memory given back."""
    # What it returns is tied to its device; without this it would be compiled once for arguments
    # that are tied, and once for those that are not.
    place = SingleDeviceSharding(device)
    compiled = jax.jit(function, in_shardings=place, out_shardings=place).lower(*leaves).compile()
    release_memory()
    return compiled


def _without_lapack(exported: jax.export.Exported) -> jax.export.Exported:
    """The program, for which JAX need not make LAPACK ready if it is not called.

    Before any call of a program for CPUs JAX imports SciPy, for LAPACK: a quarter of a second. So
    it is told of no platform, and not to look; that it is the right one is in the program's key.
    """
    if exported.platforms != ("cpu",) or b"lapack" in exported.mlir_module_serialized:
        return exported
    checks = (*exported.disabled_safety_checks, jax.export.DisabledSafetyCheck.platform())
    return dataclasses.replace(exported, platforms=("any",), disabled_safety_checks=checks)


@lru_cache(maxsize=1)
def _sources() -> str:
    """A hash of the package's source files."""
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("py", "cc", "h") for path in PACKAGE.rglob(f"*.{kind}")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _circumstances(device: Any) -> list[str]:
    """What decides every program on a device."""
    return [
        _sources(),
        repr(sorted(versions().items())),  # optax and others are traced in
        f"{device.platform} {device.device_kind}",
        repr(_options()),
    ]


def _hash(facts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


# --- before they are called -----------------------------------------------------------------


@contextmanager
def prefetch(kind: str) -> Iterator[None]:
    """Load in the background what the last process of this kind called, and note what is called.

    That is, until it called one for the second time: by then it was computing, with all cores.

    Args:
        kind: a text that processes which call the same programs share.
    """
    global _called
    if _folder is None:
        yield
        return
    path = _folder / f"{_hash([kind, *_circumstances(jax.local_devices()[0])])}.called"
    last = read_notes(path)
    for module in {module for modules in last.values() for module in modules}:
        if module.startswith(f"{PACKAGE.name}."):
            with suppress(ImportError):
                import_module(module)  # not in the thread, beside the imports of this one
    pool = ThreadPoolExecutor(1)
    _prefetched.update({key: pool.submit(_load, _folder / f"{key}.program") for key in last})
    pool.shutdown(wait=False)
    called = _called = dict[str, list[str]]()
    try:
        yield
    finally:
        _called = None
        for waiting in _prefetched.values():
            waiting.cancel()
        _prefetched.clear()
        if called and [*called.items()] != [*last.items()]:
            with suppress(UserError):
                write_notes(path, called)


def _load(path: Path) -> Program | None:
    """A kept program for the first device, or None if it cannot be had."""
    program = read_program(path)
    if program is None or not dependencies.can_call(program.modules):
        return None
    return _compiled(program, jax.local_devices()[0])


def _take(key: str, device: Any) -> Program | None:
    """What was prefetched, or is being loaded; None on devices other than the first."""
    waiting = _prefetched.pop(key, None) if device == jax.local_devices()[0] else None
    if waiting is None or waiting.cancel():
        return None
    try:
        return waiting.result()
    except Exception as error:  # whatever it is, the program is read again, and may say more
        _log.debug("%s cannot be prefetched: %s", key, error)
        return None
