"""NumPy's files that people bring: nothing in them is executed, and memory stays in bounds."""

import zipfile
from pathlib import Path

import numpy as np

from stylesr_jax.errors import UserError, printable
from stylesr_jax.runtime.files import open_file

ROOM = 1 << 26  # bytes that the arrays of any archive may take
MOST_UNPACKED = 64  # times an archive's own size that its arrays may take
WHOLE = ""  # the name of the array that an .npy is


def read_arrays(path: Path, advice: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, or the one of an .npy under the name WHOLE.

    Args:
        advice: for messages, what file to give.

    Raises:
        UserError: the file is missing, damaged, of objects, or unpacks to far more than its size.
    """
    shown = printable(path)
    try:
        return _read(path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file; {advice}") from None
    except Exception as error:  # NumPy and zipfile raise whatever they meet in a damaged file
        why = printable(str(error))[:100]
        raise UserError(f"{shown}: damaged, or no file of arrays ({why}); {advice}") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    with open_file(path) as handle:
        if zipfile.is_zipfile(handle):
            _check_size(handle.seek(0, 2), zipfile.ZipFile(handle).infolist())
        handle.seek(0)
        loaded = np.load(handle, allow_pickle=False)
        arrays = {WHOLE: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{strange[0]} is no array")
    return arrays


def _check_size(packed: int, members: list[zipfile.ZipInfo]) -> None:
    if sum(member.file_size for member in members) > ROOM + MOST_UNPACKED * packed:
        raise ValueError("it unpacks to far more than its size")
