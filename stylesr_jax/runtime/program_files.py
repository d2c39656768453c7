"""Files of traced programs: a line of JSON, then what `jax.export` writes."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax.export

from stylesr_jax.runtime import files

UNREAD_SECONDS = 30 * 24 * 3600  # files that nobody has read for so long are deleted
_log = logging.getLogger(__name__)


class Program(NamedTuple):
    """A program of flat arguments and flat results.

    Attributes:
        exported: the lowered program.
        result: the structure of the results, as `program_names.describe` gives it.
        modules: the modules of the dependencies that are called.
        run: the compiled program, if that is made; not in files.
    """

    exported: jax.export.Exported
    result: Any
    modules: list[str]
    run: Callable[..., list[Any]] | None = None


def write_program(path: Path, program: Program) -> None:
    """Write a program, and delete the folder's files that nobody reads.

    Raises:
        UserError: the folder cannot be written.
    """
    header = json.dumps([program.result, program.modules]).encode()
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(header + b"\n" + program.exported.serialize())
    for other in path.parent.iterdir():
        with suppress(OSError):  # another process may delete it too
            if other.stat().st_mtime < time.time() - UNREAD_SECONDS:
                other.unlink()


def read_program(path: Path) -> Program | None:
    """The program in a file, or None if there is none that can be read."""
    try:
        header, _, data = _read(path).partition(b"\n")
        result, modules = json.loads(header)
        return Program(jax.export.deserialize(bytearray(data)), result, modules)
    except OSError:
        return None
    except Exception as error:  # whatever is wrong with it, it is made again
        _log.warning("%s cannot be read (%s); it is made again", path, error)
        return None


def write_notes(path: Path, notes: dict[str, list[str]]) -> None:
    """Write keys of programs, with each one's modules.

    Raises:
        UserError: the folder cannot be written.
    """
    with files.atomic_path(path) as temporary:
        temporary.write_text(json.dumps(notes))


def read_notes(path: Path) -> dict[str, list[str]]:
    """What `write_notes` wrote; nothing if the file holds something else."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        notes = json.loads(_read(path)).items()
        return {str(key): [*map(str, modules)] for key, modules in notes}
    return {}


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    with suppress(OSError):  # a folder that cannot be written
        os.utime(path)
    return data
