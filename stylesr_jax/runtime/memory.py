"""The process's memory: given back to the system, its mappings, and garbage collection."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


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


@contextmanager
def gc_paused() -> Iterator[None]:
    """Python looks for no garbage in here: where modules are imported all that is made stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
