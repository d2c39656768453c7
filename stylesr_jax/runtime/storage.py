"""Files behind addresses that fsspec opens, such as s3://BUCKET/faces: buckets, mostly.

An address is a `Url`, a path whose methods ask the storage, so that whoever reads, writes and names
files by paths need not know. Only the methods that this package calls are there.
"""

import errno
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, TypeVar

from stylesr_jax.errors import UserError, in_a_line, pip_install

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_FILE = "file://"  # an address of a file of this machine

Made = TypeVar("Made")


def path_of(text: str) -> "Path | Url":
    """The path or the address that a text names."""
    if text.startswith(_FILE):
        return Path(text.removeprefix(_FILE))
    return Url(text) if _SCHEME.match(text) else Path(text)


class Url(PosixPath):
    """An address as a path: SCHEME://BUCKET/FOLDER/NAME.

    Raises:
        UserError: by all methods that ask the storage, where fsspec cannot reach such addresses.
        OSError: there is no such file, or the storage refuses; whatever fsspec's error is.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # paths do not keep the double slash

    def __fspath__(self) -> str:
        return str(self)

    def _ask(self, question: Callable[[Any, str], Made]) -> Made:
        """question(file system, its name of this address)."""
        system, name = _open(str(self))
        try:
            return question(system, name)
        except OSError:
            raise
        except Exception as error:  # the libraries behind fsspec have errors of their own
            raise OSError(errno.EIO, in_a_line(error)) from error

    def _named(self, name: str) -> "Url":
        """The address of a name that the storage gave."""
        return self._ask(lambda system, _: Url(system.unstrip_protocol(name)))

    def read_bytes(self) -> bytes:
        return self._ask(lambda system, name: system.cat_file(name))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def size(self) -> int:
        """Bytes of the file; 0 where the storage does not say."""
        return self._ask(lambda system, name: system.info(name).get("size")) or 0

    def is_file(self) -> bool:
        return self._ask(lambda system, name: system.isfile(name))

    def is_dir(self) -> bool:
        return self._ask(lambda system, name: system.isdir(name))

    def upload(self, path: Path) -> None:
        """Replace the file by one of this machine; buckets show it whole or not at all."""
        self._ask(lambda system, name: system.put_file(str(path), name))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda system, name: system.rm_file(name))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Folders of buckets are gone when they are empty."""

    def glob(self, pattern: str) -> "Iterator[Url]":  # type: ignore[override]
        """The files in this folder whose names match."""
        try:
            names = self._ask(lambda system, name: system.ls(name, detail=False))
        except FileNotFoundError:
            return iter(())
        return (self._named(n) for n in names if fnmatchcase(PurePosixPath(n).name, pattern))

    def files(self, *, recursive: bool = False) -> "list[Url]":
        """The files in this folder, before those of its folders, by name; hidden ones left out."""
        depth = None if recursive else 1
        names = self._ask(lambda system, name: system.find(name, maxdepth=depth))
        depth = len(self.parts)
        urls = [self._named(name) for name in names]
        shown = [u for u in urls if not any(part.startswith(".") for part in u.parts[depth:])]
        return sorted(shown, key=lambda url: (url.parent.parts, url.name))

    def matches(self) -> "list[Url]":
        """The files that this address matches as a pattern, by name."""
        names = self._ask(lambda system, name: system.glob(name))
        return [url for url in map(self._named, sorted(names)) if url.is_file()]


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, and its name there."""
    try:
        import fsspec.core
    except ImportError as error:
        raise UserError(
            f"{address}: addresses need fsspec: {pip_install('stylesr-jax[cluster]')}"
        ) from error
    try:  # what others have written must be seen: nothing is remembered
        return fsspec.core.url_to_fs(address, use_listings_cache=False)
    except (ImportError, ValueError) as error:  # a library that is missing, or no such scheme
        raise UserError(f"{address}: {in_a_line(error)}") from error
