"""Names and paths to models: generators, whatever format their weights are in.

The one door to `convert`: a file in another format is converted when it is first asked for.
Conversions are kept in the user's cache, under the file's sha256.
"""

import os
from collections.abc import Callable
from pathlib import Path

import jax

from convert.raw import refuse_address
from stylesr_jax.errors import UserError, printable
from stylesr_jax.generators.base import Generator
from stylesr_jax.generators.mobile.heads import with_known_heads
from stylesr_jax.generators.registry import config_from_dict
from stylesr_jax.priors.estimate import with_known_estimate
from stylesr_jax.runtime import files, weights
from stylesr_jax.runtime.weights import DEFAULT


def generator_from_file(path: str | os.PathLike[str]) -> Generator:
    """Load a converted generator, with the heads and the estimate that were fitted for it.

    Raises:
        UserError: the file is missing, damaged or no generator.
    """
    tensors, header = weights.load(path)
    if header.get("kind") != "generator":
        raise UserError(f"{path} holds a {header.get('kind', 'file')}, not a generator")
    if not isinstance(header.get("config"), dict) or not {"params", "statistics"} <= tensors.keys():
        raise UserError(f"{path} is damaged: parts of the generator are missing; convert it again")
    config = config_from_dict(header["config"])
    tensors = jax.device_put(tensors)  # at once: one array after the other takes ten times longer
    generator = Generator(
        params=tensors["params"],
        statistics=tensors["statistics"],
        label=None,
        config=config.on_this_machine(),
    )
    return with_known_estimate(with_known_heads(generator))


def notes_of(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """What its converter had to say of a generator's file, each a printable line.

    Raises:
        UserError: the file is missing, damaged or of another format.
    """
    notes = weights.read_header(path).get("notes")
    texts = notes if isinstance(notes, list) else []
    return tuple(printable(note) for note in dict.fromkeys(filter(_is_text, texts)))


def _is_text(note: object) -> bool:
    return isinstance(note, str) and bool(note)


def _converted(path: Path, folder: str, convert: Callable[[Path, Path], object]) -> Path:
    """The conversion of a file in a folder of the cache, made when there is none."""
    converted = files.cache_dir() / folder / f"{files.sha256(path)}.safetensors"
    if not converted.is_file():
        convert(path, converted)
    return converted


def generator_path(name_or_path: str | os.PathLike[str] = DEFAULT) -> Path:
    """The converted file of a generator: an embedded one, the path itself, or its conversion.

    Raises:
        UserError: there is neither an embedded generator nor a file of that name.
    """
    text = os.fspath(name_or_path)
    refuse_address(text)
    path = Path(text)
    if os.path.isdir(path):
        raise UserError(f"{text} is a folder; give the generator's file")
    if os.path.isfile(path):
        if path.suffix == ".safetensors":
            try:
                weights.read_header(path)
            except UserError:
                pass  # bare tensors, which the converter can tell from damage
            else:
                return path
        from convert.build import convert_file

        return _converted(path, "generators", convert_file)
    if path.suffix or os.sep in text:
        raise UserError(f"generator file {text} does not exist; check the path")
    try:
        return weights.find_weights(f"{text}.safetensors")
    except UserError:
        fetched = files.cache_dir() / "generators" / f"{text}.safetensors"
        if os.path.isfile(fetched):
            return fetched
    raise UserError(
        f"unknown generator {text!r}; the embedded one is {DEFAULT}. Give a file's path, or "
        "download a published one: python -m convert.fetch --list"
    )


def load_generator(name_or_path: str | os.PathLike[str] = DEFAULT) -> Generator:
    """Load a generator by name (embedded or fetched) or from any supported weight file.

    Args:
        name_or_path: "mobile-ffhq-1024", a converted `.safetensors`, or any file that
            `python -m convert.stylegan2` reads.

    Raises:
        UserError: nothing of that name exists, or the file cannot be read.
    """
    return generator_from_file(generator_path(name_or_path))


def inception_path(source: str | os.PathLike[str]) -> Path:
    """The file of FID's Inception in our format, for a file or an address of pytorch-fid's.

    Raises:
        UserError: the file is missing, of another network, or cannot be downloaded.
    """
    from convert.embedded.inception import convert_file, download_weights

    text = os.fspath(source)
    path = download_weights(text) if text.startswith(("http://", "https://")) else Path(text)
    if not os.path.isfile(path):  # False, too, for names that no file can have
        raise UserError(f"{path} does not exist; give pytorch-fid's .pth file or its address")
    return path if path.suffix == ".safetensors" else _converted(path, "features", convert_file)
