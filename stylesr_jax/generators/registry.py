"""The architectures of generators, by the names that weight files give them.

An architecture is a `Config` subclass in a file of its own, and an entry here.
"""

import dataclasses
from typing import Any

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config
from stylesr_jax.generators.mobile.network import MobileConfig
from stylesr_jax.generators.stylegan2 import StyleGAN2Config

ARCHITECTURES: dict[str, type[Config]] = {
    kind.architecture: kind for kind in (MobileConfig, StyleGAN2Config)
}


def config_to_dict(config: Config) -> dict[str, Any]:
    """A configuration as JSON-able values; `config_from_dict` is the inverse."""
    return {"architecture": config.architecture, **dataclasses.asdict(config)}


def config_from_dict(values: dict[str, Any]) -> Config:
    """The configuration in a weight file's header.

    Raises:
        UserError: the architecture is unknown or a field does not belong to it.
    """
    fields = {name: _hashable(value) for name, value in values.items()}
    architecture = fields.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"unknown generator architecture {architecture!r}; this version knows "
            f"{', '.join(ARCHITECTURES)}: update stylesr_jax, or convert the file again"
        )
    try:
        return ARCHITECTURES[architecture](**fields)
    except TypeError as error:
        raise UserError(f"the generator's header does not fit this version: {error}") from error


def _hashable(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
