"""The architectures of generators, by the names that weight files give them."""

import dataclasses
from typing import Any

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config
from stylesr_jax.generators.mobile.network import MobileConfig


def _architectures() -> dict[str, type[Config]]:
    from stylesr_jax.generators.stylegan2 import StyleGAN2Config

    return {"mobile": MobileConfig, "stylegan2": StyleGAN2Config}


def config_to_dict(config: Config) -> dict[str, Any]:
    """A configuration as JSON-able values; `config_from_dict` is the inverse."""
    return {"architecture": config.architecture, **dataclasses.asdict(config)}


def config_from_dict(values: dict[str, Any]) -> Config:
    """The configuration in a weight file's header.

    Raises:
        UserError: the architecture is unknown or a field does not belong to it.
    """

    def hashable(value: Any) -> Any:
        return tuple(hashable(v) for v in value) if isinstance(value, list) else value

    fields = {name: hashable(value) for name, value in values.items()}
    architecture = fields.pop("architecture", None)
    kinds = {"mobile": MobileConfig} if architecture == "mobile" else _architectures()
    if architecture not in kinds:
        raise UserError(
            f"unknown generator architecture {architecture!r}; this version knows "
            f"{', '.join(kinds)}: update stylesr_jax, or convert the file again"
        )
    try:
        return kinds[architecture](**fields)
    except TypeError as error:
        raise UserError(f"the generator's header does not fit this version: {error}") from error
