"""The native blocks' library, once it is compiled: loaded, and its functions registered with XLA.

Where there is no compiler the generator computes the same in XLA.
"""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from subprocess import SubprocessError
from typing import Any

import jax

from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.native import compiler
from stylesr_jax.runtime.program_dependencies import Dependency, register_dependency

FORWARD, BACKWARD = "stylesr_mobile_block_forward", "stylesr_mobile_block_backward"
TARGETS = {FORWARD: "forward", BACKWARD: "backward"}  # names in XLA and in the library
_log = logging.getLogger(__name__)

_assumed: ContextVar[bool | None] = ContextVar("_assumed", default=None)


def available() -> bool:
    """Whether native blocks can be expected.

    Where the library is yet to be compiled this begins, in the background.
    """
    compiled = compiler.begun()
    return compiled is not None and not (compiled.done() and _loaded() is None)


def ready() -> bool:
    """Whether native blocks can be used; waits for the compiler."""
    assumed = _assumed.get()
    return _loaded() is not None if assumed is None else assumed


@contextmanager
def assume_ready() -> Iterator[None]:
    """In here what is available at first is taken to be ready, so that tracing does not wait."""
    token = _assumed.set(available())
    try:
        yield
    finally:
        _assumed.reset(token)


@lru_cache(maxsize=1)
def _loaded() -> ctypes.CDLL | None:
    """The library, registered, or None if it cannot be had."""
    compiled = compiler.begun()
    if compiled is None:
        return None
    try:
        library = ctypes.CDLL(str(compiled.result()))
        for name, symbol in TARGETS.items():
            handler = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except (OSError, AttributeError, RuntimeError, UserError, SubprocessError) as error:
        _log.warning("native blocks cannot be used (%s); XLA's, which take longer, are", error)
        return None
    return library


# --- programs that call them ----------------------------------------------------------------


def _is_native(argument: Any) -> bool:
    """Whether a part of a program's arguments is a generator with native blocks, or its config."""
    return getattr(getattr(argument, "config", argument), "native", None) is True


register_dependency(
    Dependency(
        module=__name__,
        targets=tuple(TARGETS),
        applies_to=_is_native,
        state=lambda: "native" if ready() else "",
        assume_ready=assume_ready,
    )
)
