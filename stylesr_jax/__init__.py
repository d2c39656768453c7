"""Face super-resolution by regularised latent search in StyleGAN, in JAX.

The functional API; each name is imported from its module when it is first used, so that the
command line's help does not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylesr_jax.errors import UserError
    from stylesr_jax.flow import Prior, load_prior
    from stylesr_jax.generators import Generator, load_generator
    from stylesr_jax.images import read_image, write_png
    from stylesr_jax.methods import METHODS, Method
    from stylesr_jax.solve import Result, Solution, upsample

_HOMES = {
    "UserError": "errors",
    "Prior": "flow",
    "load_prior": "flow",
    "Generator": "generators",
    "load_generator": "generators",
    "read_image": "images",
    "write_png": "images",
    "METHODS": "methods",
    "Method": "methods",
    "Result": "solve",
    "Solution": "solve",
    "upsample": "solve",
}

__all__ = [
    "METHODS",
    "Generator",
    "Method",
    "Prior",
    "Result",
    "Solution",
    "UserError",
    "load_generator",
    "load_prior",
    "read_image",
    "upsample",
    "write_png",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
