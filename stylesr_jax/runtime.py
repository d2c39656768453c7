"""The process that commands share: JAX's compilation cache, threads, memory, versions."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


def beside(function: Callable[..., Result], *args: Any) -> Future[Result]:
    """Call a function in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    called = pool.submit(function, *args)
    pool.shutdown(wait=False)
    return called


def configure() -> None:
    """Turn on JAX's persistent compilation cache, unless the user set one up, and `programs`.

    The cache lies in `store.cache_dir()`; JAX_COMPILATION_CACHE_DIR moves it and
    JAX_ENABLE_COMPILATION_CACHE=false turns both off.
    """
    import jax

    from stylesr_jax import programs, store

    config: Any = jax.config
    if config.jax_enable_compilation_cache:
        programs.keep_in(store.cache_dir() / "programs")

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(store.cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Python looks for no garbage in here: where modules are imported all that is made stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def release_memory() -> None:
    """Hand memory that was freed back to the system, where the C library can be told to.

    Compiling a program leaves hundreds of MB of freed memory in small pieces, which glibc would
    keep while the arrays of the next step are put elsewhere. Source: malloc_trim(3).
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # other C libraries have no such function
            ctypes.CDLL(None).malloc_trim(0)


def mappings() -> tuple[int, int] | None:
    """Memory mappings of this process, and how many it may have; None where that is not told.

    Linux allows 65,530 by default. Source: proc(5), vm.max_map_count.
    """
    try:
        with open("/proc/self/maps", "rb") as used, open("/proc/sys/vm/max_map_count") as most:
            return sum(1 for _ in used), int(most.read())
    except (OSError, ValueError):
        return None


def describe_machine() -> dict[str, Any]:
    """Date, device, processor and package versions, to stand beside any measured figure."""
    import datetime
    import platform

    import jax

    device = jax.devices()[0]
    model = ""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((row.partition(":")[2].strip() for row in file if "model name" in row), "")
    processor = model or platform.processor() or platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.platform} ({device.device_kind}) x {jax.device_count()}",
        "machine": f"{processor}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the results."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("stylesr-jax", "jax", "jaxlib", "flax", "optax", "distrax", "numpy", "pillow"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
