"""Pre-trained generators, loaded by name or by path."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from stylesr_jax import store
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config, Generator, measure_statistics
from stylesr_jax.generators.heads import with_known_heads
from stylesr_jax.generators.mobile import MobileConfig
from stylesr_jax.store import DEFAULT

__all__ = [
    "DEFAULT",
    "Config",
    "Generator",
    "config_from_dict",
    "config_to_dict",
    "generator_from_file",
    "load_generator",
    "measure_statistics",
]


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


def generator_from_file(path: str | os.PathLike[str]) -> Generator:
    """Load a converted generator, with the image heads that were fitted for it.

    Raises:
        UserError: the file is missing, damaged or no generator.
    """
    tensors, header = store.load(path)
    if header.get("kind") != "generator":
        raise UserError(f"{path} holds a {header.get('kind', 'file')}, not a generator")
    tensors = jax.device_put(tensors)  # at once: one array after the other takes ten times longer
    generator = Generator(
        params=tensors["params"],
        statistics=tensors["statistics"],
        label=None,
        config=config_from_dict(header["config"]).on_this_machine(),
    )
    return with_known_heads(generator)


def generator_path(name_or_path: str | os.PathLike[str] = DEFAULT) -> Path:
    """The converted file of a generator: an embedded one, the path itself, or its conversion.

    A file in another format is converted once into the user's cache, under its sha256.

    Raises:
        UserError: there is neither an embedded generator nor a file of that name.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    if path.is_dir():
        raise UserError(f"{text} is a folder; give the generator's file")
    if path.is_file():
        if path.suffix == ".safetensors":
            try:
                store.read_header(path)
            except UserError:
                pass  # bare tensors, which the converter can tell from damage
            else:
                return path
        from convert.stylegan2 import convert_file

        converted = store.cache_dir() / "generators" / f"{store.sha256(path)}.safetensors"
        if not converted.is_file():
            convert_file(path, converted)
        return converted
    if path.suffix or os.sep in text:
        raise UserError(f"generator file {text} does not exist; check the path")
    try:
        return store.find_weights(f"{text}.safetensors")
    except UserError:
        fetched = store.cache_dir() / "generators" / f"{text}.safetensors"
        if fetched.is_file():
            return fetched
    raise UserError(
        f"unknown generator {text!r}; the embedded one is {DEFAULT}. Give a file's path, or "
        "download a published one: python -m convert.fetch --list"
    )


def load_generator(name_or_path: str | os.PathLike[str] = DEFAULT) -> Generator:
    """Load a generator by name (embedded or fetched) or from any supported weight file.

    Args:
        name_or_path: "mobile-ffhq-1024", a converted `.safetensors`, a StyleGAN2 pickle, a
            rosinality `.pt`, a bare state dict, or MobileStyleGAN's OpenVINO wheel.

    Raises:
        UserError: nothing of that name exists, or the file cannot be read.
    """
    return generator_from_file(generator_path(name_or_path))
