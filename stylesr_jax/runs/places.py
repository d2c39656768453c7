"""Where results go: names that depend on an input alone, whatever it is called."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from stylesr_jax.runtime import files
from stylesr_jax.runtime.storage import Url

LONGEST = 200  # bytes of a name: file systems take 255, and names grow by endings
SUMMARY = "summary.json"  # what else lies in the folder of results
_RESERVED = re.compile(r"summary(-\d+-of-\d+)?\.json", re.IGNORECASE)  # and what shards write


def safe_stem(path: Path) -> str:
    """The stem of a file's name as the name of a folder: not hidden, not a way out, not too long.

    Bytes that are not UTF-8 stay as they are.
    """
    return _cut(path.stem.strip(". ") or "image")


def short_name(name: str) -> str:
    """A name that can be a file's with an ending, is no other's and not hidden.

    Most stay as they are.
    """
    cut = _cut(name.lstrip(".") or "image")
    if cut == name:
        return name
    return f"{cut}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def is_reserved(name: str) -> bool:
    """Whether the folder of results holds something else under this name."""
    return _RESERVED.fullmatch(name) is not None


def _cut(name: str) -> str:
    while len(os.fsencode(name)) > LONGEST:
        name = name[:-1]
    return name


def same_name(name: str) -> str:
    """A text that is the same for names that some file systems do not tell apart."""
    return unicodedata.normalize("NFC", name).casefold()


def candidates(path: Path, content: str, run: str) -> Iterator[str]:
    """Names for an input's result, the best first: the stem, the content, and the run as well.

    Args:
        content, run: hexadecimal hashes.
    """
    stem = safe_stem(path)
    yield stem
    yield f"{stem}-{content[:8]}"
    yield f"{stem}-{content[:8]}-{run[:8]}"


def distinct(paths: Sequence[Path]) -> list[Path]:
    """The paths without those of a file that was named before."""
    real = dict[str, Path]()
    for path in paths:
        real.setdefault(os.path.realpath(path), path)
    return list(real.values())


def firsts_of_stem(paths: Sequence[Path]) -> set[Path]:
    """The first path of each stem."""
    first = dict[str, Path]()
    for path in paths:
        first.setdefault(same_name(safe_stem(path)), path)
    return set(first.values())


def make_ready(out: Path, *, depth: int) -> None:
    """Remove what killed runs left in a folder and `depth` below it.

    Raises:
        UserError: files cannot be written there.
    """
    probe = out / ".stylesr-write-test"
    with files.atomic_path(probe):
        pass
    probe.unlink(missing_ok=True)  # of another process, perhaps
    if not isinstance(out, Url):
        files.remove_leftovers(out, depth=depth)
