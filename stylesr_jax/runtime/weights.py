"""Parameters on disk: nested dictionaries of arrays in safetensors files with a JSON header.

Nothing in such a file can run, and the header can be read without the arrays.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from stylesr_jax.errors import UserError
from stylesr_jax.runtime.files import atomic_path

HEADER_KEY = "stylesr_jax"
DEFAULT = "mobile-ffhq-1024"  # the embedded generator


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if "/" in name:
            raise ValueError(f"parameter names cannot hold '/': {name!r}")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, np.array(value, order="C")


def _unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} lies in an array")
        node[name] = value
    return tree


def save(
    path: str | os.PathLike[str], params: Mapping[str, Any], header: Mapping[str, Any]
) -> None:
    """Write nested dictionaries of arrays and a JSON header to one safetensors file.

    The file appears whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    metadata = {HEADER_KEY: json.dumps(header, sort_keys=True)}
    with atomic_path(path) as temporary:
        try:
            safetensors.numpy.save_file(dict(_flatten(params)), temporary, metadata)
        except safetensors.SafetensorError as error:  # the disk is full, say
            raise OSError(str(error)) from error


def _open(path: Path) -> Any:
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist; give the path of a .safetensors file")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error})") from error


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a file that `save` wrote; the arrays are not read.

    Raises:
        UserError: the file is missing, damaged or was not written by `save`.
    """
    path = Path(path)
    with _open(path) as file:
        metadata = file.metadata() or {}
    if HEADER_KEY not in metadata:
        raise UserError(
            f"{path} holds bare tensors without this project's header; "
            "convert it first: python -m convert.stylegan2 FILE --out OUT.safetensors"
        )
    return _parsed(metadata[HEADER_KEY], path)


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise _damaged(path, "the header cannot be read")
    return header


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; convert or download it again")


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save` wrote: (nested dictionaries of numpy arrays, header).

    Raises:
        UserError: the file is missing, damaged or was not written by `save`.
    """
    path = Path(path)
    header = read_header(path)
    with _open(path) as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        return _unflatten(flat), header
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def load_kept(path: Path, facts: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    """What a run that was killed has kept, by its header for these facts; None: there is no file.

    Raises:
        UserError: the file is damaged, or holds `what` of another fit.
    """
    if not path.is_file():
        return None
    tensors, header = load(path)
    if header.get("facts") != facts:
        raise UserError(f"{path} holds {what} of another fit; delete it")
    return tensors


def find_weights(name: str) -> Path:
    """The path of an embedded weight file, in a checkout or in an installed wheel.

    Raises:
        UserError: there is no such file; the message lists those there are.
    """
    package = Path(__file__).resolve().parent.parent
    folders = (package / "weights", package.parent / "weights")
    for folder in folders:
        if os.path.isfile(folder / name):  # False, too, for names that no file can have
            return folder / name
    present = sorted({path.name for folder in folders for path in folder.glob("*.safetensors")})
    raise UserError(
        f"no embedded weights named {name}; there are: {', '.join(present) or 'none'}. "
        "Reinstall the package, or clone the repository whole."
    )


def known_files(embedded: Iterable[str], folder: Path) -> Iterator[Path]:
    """The embedded files of these names that are there, then what the user's folder holds."""
    for name in embedded:
        try:
            yield find_weights(name)
        except UserError:
            continue  # a checkout in which it has not been made yet
    yield from sorted(folder.glob("*.safetensors"))


def load_fitted(
    fact: Mapping[str, str], embedded: Iterable[str], folder: Path
) -> dict[str, Any] | None:
    """What the first of `known_files` holds whose header has a fact, in float32; None: none has.

    Raises:
        UserError: a file is damaged.
    """
    for path in known_files(embedded, folder):
        if fact.items() <= read_header(path).items():
            return _single(load(path)[0])
    return None


def _single(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _single(value) if isinstance(value, Mapping) else np.asarray(value, np.float32)
        for name, value in tree.items()
    }
