"""Records of finished work: JSON values, JSON files, and files of one JSON object a line."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from stylesr_jax.errors import UserError, printable
from stylesr_jax.runtime import files

Row = dict[str, Any]


def finite(values: Any) -> Any:
    """The values as JSON can say them: NaN and infinities become None."""
    if isinstance(values, Mapping):
        return {str(name): finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [finite(value) for value in values]
    if isinstance(values, (bool, Integral)):
        return values if isinstance(values, (bool, int)) else int(values)
    if isinstance(values, Real):
        return float(values) if isfinite(values) else None
    return values


def content_key(facts: Any) -> str:
    """Hexadecimal SHA-256 of what decides a result (JSON values, hashes of files among them)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinities become null."""
    with files.atomic_path(path) as temporary:
        temporary.write_text(json.dumps(finite(values), indent=2) + "\n")


def append_row(path: Path, row: Row) -> Row:
    """Append one JSON line with a single write, so that a kill leaves it whole or not at all.

    Returns:
        The row as it will be read again: values that are not finite are None.
    """
    row = finite(row)
    line = (json.dumps(row, sort_keys=True) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if os.fstat(handle).st_size and not _ends_with_newline(path):
            line = b"\n" + line  # after a line that the file system tore
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)
    return row


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read(1) == b"\n"


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a file; lines that are not whole are passed over.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{printable(path)} cannot be read ({reason}); move it away") from error
    return [row for row in map(_parse_row, lines) if row is not None]


def _parse_row(text: str) -> Row | None:
    with suppress(ValueError, RecursionError):
        row = json.loads(text)
        if isinstance(row, dict) and isinstance(row.get("fingerprint"), str):
            return row
    return None


def _is_ok(row: Row) -> bool:
    return row.get("status") == "ok"


class Rows:
    """The finished rows of a folder, by fingerprint.

    They are lines of rows.jsonl. Where several processes write, each row is a file rows/KEY.json
    instead: nobody appends to what another one writes, and buckets, which cannot append, will do.

    Attributes:
        folder: of the results.
        apart: whether this process writes files of their own.
    """

    def __init__(self, folder: Path, *, apart: bool = False) -> None:
        self.folder, self.apart = folder, apart
        self._path = folder / "rows.jsonl"
        self._finished = {row["fingerprint"]: row for row in read_rows(self._path) if _is_ok(row)}

    def get(self, fingerprint: str) -> Row | None:
        """The row of this fingerprint, or None if there is none that is whole."""
        if fingerprint not in self._finished:
            with suppress(OSError, ValueError):
                row = _parse_row(self._file(fingerprint).read_text())
                if row is not None and row["fingerprint"] == fingerprint and _is_ok(row):
                    self._finished[fingerprint] = row
        return self._finished.get(fingerprint)

    def append(self, row: Row) -> Row:
        """Keep a row; returns it as it will be read again."""
        if self.apart:
            row = finite(row)
            write_json(self._file(row["fingerprint"]), row)
        else:
            row = append_row(self._path, row)
        self._finished[row["fingerprint"]] = row
        return row

    def _file(self, fingerprint: str) -> Path:
        return self.folder / "rows" / f"{fingerprint}.json"
