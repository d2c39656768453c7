"""Parameters on disk: nested dictionaries of arrays in safetensors files with a JSON header.

Nothing in such a file can run, and the header can be read without the arrays.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import beside

HEADER_KEY = "stylesr_jax"
DEFAULT = "mobile-ffhq-1024"  # the embedded generator
_hashing: dict[tuple[Any, ...], Future[str]] = {}  # by `_version`


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
    except OSError as error:
        raise UserError(
            f"cannot write in {path.parent}: {error.strerror}; choose another folder"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # a machine that stops leaves the old file or the new one
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # once: threads that read it at the same time would set each other's to 0


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    begun = _hashing.pop(_version(path), None)
    return _sha256(path) if begun is None else begun.result()


def begin_sha256(path: str | os.PathLike[str]) -> None:
    """Let a thread begin with what `sha256` is soon asked for; Python need not wait for it."""
    _hashing[_version(path)] = beside(_sha256, path)


def _version(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """What changes with a file."""
    found = os.stat(path)
    return (os.fspath(path), found.st_ino, found.st_size, found.st_mtime_ns)


def _sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: str | os.PathLike[str]) -> str:
    """A file's size and sha256, to be printed."""
    return f"{Path(path).stat().st_size / 1e6:.1f} MB, sha256 {sha256(path)}"


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
        safetensors.numpy.save_file(dict(_flatten(params)), temporary, metadata)


def _open(path: Path) -> Any:
    if not path.is_file():
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
    return json.loads(metadata[HEADER_KEY])


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save` wrote: (nested dictionaries of numpy arrays, header).

    Raises:
        UserError: the file is missing, damaged or was not written by `save`.
    """
    path = Path(path)
    header = read_header(path)
    with _open(path) as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _unflatten(flat), header


def find_weights(name: str) -> Path:
    """The path of an embedded weight file, in a checkout or in an installed wheel.

    Raises:
        UserError: there is no such file; the message lists those there are.
    """
    package = Path(__file__).resolve().parent
    folders = (package / "weights", package.parent / "weights")
    for folder in folders:
        if (folder / name).is_file():
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


def cache_dir() -> Path:
    """The user's cache folder: $STYLESR_CACHE, else $XDG_CACHE_HOME or ~/.cache/stylesr_jax."""
    if chosen := os.environ.get("STYLESR_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "stylesr_jax"
