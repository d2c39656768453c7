"""Settings of the process that commands share: JAX's persistent compilation cache."""

import os

from stylesr_jax import store


def configure() -> None:
    """Turn on JAX's persistent compilation cache, unless the user set one up.

    The cache lies in `store.cache_dir()`; JAX_COMPILATION_CACHE_DIR moves it and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(store.cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
