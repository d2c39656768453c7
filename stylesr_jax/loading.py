"""Names and paths to models: generators, whatever format their weights are in.

The one door to `convert`: a file in another format is converted when it is first asked for.
"""

import os
from pathlib import Path

import jax

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.generators.mobile.heads import with_known_heads
from stylesr_jax.generators.registry import config_from_dict
from stylesr_jax.runtime import files, weights
from stylesr_jax.runtime.weights import DEFAULT


def generator_from_file(path: str | os.PathLike[str]) -> Generator:
    """Load a converted generator, with the image heads that were fitted for it.

    Raises:
        UserError: the file is missing, damaged or no generator.
    """
    tensors, header = weights.load(path)
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
                weights.read_header(path)
            except UserError:
                pass  # bare tensors, which the converter can tell from damage
            else:
                return path
        from convert.stylegan2 import convert_file

        converted = files.cache_dir() / "generators" / f"{files.sha256(path)}.safetensors"
        if not converted.is_file():
            convert_file(path, converted)
        return converted
    if path.suffix or os.sep in text:
        raise UserError(f"generator file {text} does not exist; check the path")
    try:
        return weights.find_weights(f"{text}.safetensors")
    except UserError:
        fetched = files.cache_dir() / "generators" / f"{text}.safetensors"
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
