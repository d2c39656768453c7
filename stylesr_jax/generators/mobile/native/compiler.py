"""The compiler of the native blocks: in the background, its result kept in the cache folder.

The machine's own C++ compiler, or the one that CXX names, is called when the library is first asked
for; with STYLESR_NATIVE=0 it never is. This module does not import JAX: compiling takes ten seconds
of a first run, and begins before that.
"""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import files
from stylesr_jax.runtime.background import in_background

SOURCE = Path(__file__).with_name("kernels") / "block.cc"
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = ("-O3", "-std=c++17", "-fno-exceptions", "-shared", "-fPIC")
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")  # as `platform.machine` names them
_log = logging.getLogger(__name__)
_lock = Lock()
_running: subprocess.Popen[str] | None = None


def begun() -> Future[Path] | None:
    """The library's file, once it is there; or None if there is to be none."""
    with _lock:
        return _begun()


@lru_cache(maxsize=1)
def _begun() -> Future[Path] | None:
    if os.environ.get("STYLESR_NATIVE") == "0":
        return None
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        _log.info("without a C++ compiler, full steps of the default generator take twice as long")
        return None
    return in_background(_library, compiler)


def begin_early() -> None:
    """`begun` before JAX can say which device there is, where that is likely a CPU."""
    wanted = os.environ.get("JAX_PLATFORMS", "cpu").startswith("cpu")
    if wanted and find_spec("jax_plugins") is None and find_spec("libtpu") is None:
        begun()


def give_up() -> None:
    """Stop the compiler if it is at work, for a process that ends and would wait for it."""
    if _running is not None:
        _stop(_running)
        _begun.cache_clear()  # should it go on after all


def include_dir() -> str:
    """`jax.ffi.include_dir()`, for which JAX need not be imported."""
    spec = find_spec("jaxlib")
    folders = (spec and spec.submodule_search_locations) or [""]
    return str(Path(folders[0]) / "include")


def _library(compiler: str) -> Path:
    """The compiled library in the cache folder, made if it is not there.

    Raises:
        UserError: it cannot be compiled, or the folder cannot be written.
    """
    include = include_dir()
    sources = [path.read_text() for path in sorted(SOURCE.parent.glob("*.[ch]*"))]
    facts = [*sources, compiler, *OPTIONS, include, version("jaxlib"), *_processor()]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    path = files.cache_dir() / "native" / f"{name}.so"
    if not path.is_file():
        with files.atomic_path(path) as temporary:
            arguments = ["-isystem", include, str(SOURCE), "-o", str(temporary)]
            _compile([*shlex.split(compiler), *OPTIONS, *arguments])
    return path


def _compile(command: list[str]) -> None:
    """Run the compiler for this very processor.

    Raises:
        UserError: it fails.
    """
    global _running
    machine = platform.machine().lower()
    native = ["-march=native"] if machine in X86 else ["-mcpu=native"] if machine in ARM else []
    try:
        started = subprocess.Popen(
            [*command, *native],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # with the processes that the compiler starts
        )
    except OSError as error:
        raise UserError(f"{command[0]} cannot be run: {error.strerror}") from error
    with started as run:
        _running = run
        try:
            _, errors = run.communicate(timeout=300)
        finally:
            _stop(run)
            _running = None
    if run.returncode == 0:
        return
    rows = errors.strip().splitlines() or ["no message"]
    reason = next((row for row in rows if "error" in row), rows[-1])
    raise UserError(f"{command[0]} fails: {reason}")


def _stop(run: subprocess.Popen[str]) -> None:
    """Kill a process, and what it started, unless it has ended."""
    if run.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL) if hasattr(os, "killpg") else run.kill()


def _processor() -> list[str]:
    """What tells processors with different instructions apart."""
    try:
        with open("/proc/cpuinfo") as file:
            identifying = ("model name", "flags", "Features")
            rows = {row for row in file if row.startswith(identifying)}
    except OSError:
        rows = set()
    return [platform.machine(), platform.processor(), *sorted(rows)]
