"""The architectures of generators, by the names that weight files give them.

An architecture is a `Config` subclass in a file of its own, and an entry here.
"""

import dataclasses
from typing import Any

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config
from stylesr_jax.generators.mobile.network import MobileConfig
from stylesr_jax.generators.stylegan2 import StyleGAN2Config

LARGEST_SIZE = 1 << 16  # of a generator's layers, labels and sides
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
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"unknown generator architecture {architecture!r}; this version knows "
            f"{', '.join(ARCHITECTURES)}: update stylesr_jax, or convert the file again"
        )
    try:
        config = ARCHITECTURES[architecture](**fields)
    except TypeError as error:
        raise UserError(f"the generator's header does not fit this version: {error}") from error
    _check(config)
    return config


def _check(config: Config) -> None:
    """Raise UserError unless the numbers are such as a generator can have."""
    channels: Any = getattr(config, "channels", config.mapping_widths)
    sizes = (config.resolution, config.num_ws, config.w_dim, config.z_dim)
    plausible = (
        all(isinstance(widths, tuple) and widths for widths in (config.mapping_widths, channels))
        and all(_is_count(size) for size in (*sizes, *config.mapping_widths, *channels))
        and all(_is_count(size, 0) for size in (config.label_dim, config.embed_dim))
        and isinstance(config.name, str)
        and config.resolution in (config.block_resolutions[-1], 2 * config.block_resolutions[-1])
    )
    if not plausible:
        raise UserError("the generator's header holds implausible sizes; convert the file again")


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value <= LARGEST_SIZE


def _hashable(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
