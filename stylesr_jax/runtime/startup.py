"""How commands start: JAX's compilation cache, and no garbage collection while importing."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def configure() -> None:
    """Turn on JAX's persistent compilation cache, unless the user set one up, and `program_cache`.

    The cache lies in `files.cache_dir()`; JAX_COMPILATION_CACHE_DIR moves it and
    JAX_ENABLE_COMPILATION_CACHE=false turns both off.
    """
    import jax

    from stylesr_jax.runtime import files, program_cache

    config: Any = jax.config
    if config.jax_enable_compilation_cache:
        program_cache.keep_in(files.cache_dir() / "programs")

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(files.cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


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
