"""Files: written whole or not at all, hashed, and the user's cache folder."""

import hashlib
import io
import os
import platform
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stylesr_jax.errors import UserError, printable
from stylesr_jax.runtime.background import in_background
from stylesr_jax.runtime.storage import Url

_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
# A temporary file: the machine and the process that writes, and random characters.
_TEMPORARY = re.compile(r"\..*-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\w{8}(\.[^.]*)?")
_DAY = 86_400.0  # seconds after which nobody writes a file any more

_hashing: dict[tuple[Any, ...], Future[str]] = {}  # by `_version`


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file that a user named, to be read; nothing is waited for at a pipe.

    Raises:
        UserError: it is a device, a pipe or a socket.
        OSError: it cannot be opened.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115, the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{printable(path)}: a device or pipe; give a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe nobody writes to is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    What an address (`storage.Url`) is to hold is written to this machine first, and then sent.

    Raises:
        UserError: the folder cannot be written.
    """
    if isinstance(path, Url):
        with _sent(path) as temporary:
            yield temporary
        return
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent,
            prefix=f".{path.stem[:32]}-{_MACHINE}-{os.getpid()}-",
            suffix=path.suffix[-16:],
        )
    except OSError as error:
        raise UserError(
            f"cannot write in {path.parent}: {error.strerror}; {elsewhere(path)}"
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
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; {elsewhere(path)}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _sent(url: Url) -> Iterator[Path]:
    """Yield a temporary path, and send the file there when the block ends well."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / f"file{url.suffix[-16:]}"
        temporary.touch()
        yield temporary
        try:
            url.upload(temporary)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {url}: {reason}; check the address") from error


def elsewhere(path: Path) -> str:
    """What a user can do where a file cannot be written."""
    if path.is_relative_to(cache_dir()):
        return "set STYLESR_CACHE to a folder that can be written and has room"
    return "choose another folder"


def remove_leftovers(folder: Path, *, depth: int = 0) -> None:
    """Remove temporary files of processes that were killed, in a folder and `depth` below it.

    Files of other machines go when they are a day old.
    """
    for pattern in (f"{'*/' * level}.*" for level in range(depth + 1)):
        for path in folder.glob(pattern):
            match = _TEMPORARY.fullmatch(path.name)
            with suppress(OSError):  # others may remove it too
                if match and _is_left_over(path, match["machine"], int(match["process"])):
                    path.unlink()


def _is_left_over(path: Path, machine: str, process: int) -> bool:
    if machine == _MACHINE and os.name == "posix" and not _is_alive(process):
        return True
    return time.time() - path.stat().st_mtime > _DAY


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    return True


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
    _hashing[_version(path)] = in_background(_sha256, path)


def _version(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """What changes with a file."""
    status = os.stat(path)
    return (os.fspath(path), status.st_ino, status.st_size, status.st_mtime_ns)


def _sha256(path: str | os.PathLike[str]) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """The user's cache folder: $STYLESR_CACHE, else $XDG_CACHE_HOME or ~/.cache/stylesr_jax."""
    if chosen := os.environ.get("STYLESR_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "stylesr_jax"
