"""How commands set JAX up: its compilation cache, a device, and programs loaded ahead."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from stylesr_jax.errors import UserError, pip_install
from stylesr_jax.runtime import files, program_cache

# Searches are in 32 bits, and set aside by themselves what is not finite.
REQUIRED = {
    "jax_enable_x64": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_numpy_rank_promotion": "allow",
}


def configure() -> None:
    """Set what commands need of JAX, and turn on its compilation cache and `program_cache`.

    The caches lie in `files.cache_dir()`; JAX_COMPILATION_CACHE_DIR moves the first and
    JAX_ENABLE_COMPILATION_CACHE=false turns both off.
    """
    files.remove_leftovers(files.cache_dir(), depth=1)
    for name, value in REQUIRED.items():
        jax.config.update(name, value)
    config: Any = jax.config
    if config.jax_enable_compilation_cache:
        program_cache.keep_in(files.cache_dir() / "programs")

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(files.cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def configure_beside_workers() -> None:
    """`configure`, for a process that leaves the machine's accelerators to others."""
    jax.config.update("jax_platforms", "cpu")
    configure()
    check_device()


@contextmanager
def prefetched(facts: Mapping[str, Any]) -> Iterator[None]:
    """`configure`, then load in the background what the last such process called.

    Args:
        facts: what processes that call the same programs share.
    """
    configure()
    check_device()
    with program_cache.prefetch(repr(sorted(facts.items()))):
        yield


def check_device() -> None:
    """Raise UserError unless there is a device such as JAX is told to use."""
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={asked}; unset it to compute with what there "
            f"is, or install JAX for the device: {pip_install('jax[cuda13]')}"
        ) from error
