"""Face super-resolution by regularised latent search in StyleGAN, in JAX.

The functional API; each name is imported from its module when it is first used, so that the
command line's help does not wait for JAX.
"""

import sys
import types
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylesr_jax.errors import UserError
    from stylesr_jax.generators.base import Generator
    from stylesr_jax.images.files import read_image, write_png
    from stylesr_jax.loading import load_generator
    from stylesr_jax.methods import METHODS, Method
    from stylesr_jax.priors.flow import Prior, load_prior
    from stylesr_jax.solver.result import Result, Solution
    from stylesr_jax.solver.solve import upsample

_HOMES = {
    "UserError": "errors",
    "Prior": "priors.flow",
    "load_prior": "priors.flow",
    "Generator": "generators.base",
    "load_generator": "loading",
    "read_image": "images.files",
    "write_png": "images.files",
    "METHODS": "methods",
    "Method": "methods",
    "Result": "solver.result",
    "Solution": "solver.result",
    "upsample": "solver.solve",
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


class _Package(types.ModuleType):
    """The package, of which a command module never hides the API's name that is spelt alike.

    Importing `stylesr_jax.upsample`, the command, makes Python set this attribute.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
