"""Workers that share a folder: each input is claimed by one of them, a dead one's claim passes on.

A claim is a file KEY.0.claim that only one process can create, touched while its owner lives.
Whoever finds one that has not been touched for a while succeeds it by creating KEY.1.claim, and
so on: the highest number holds, every number is given once, and no file is ever replaced. An
owner removes its files lowest first, so that the highest is there until the end.

Times are those of the shared file system, so hosts' clocks need not agree. It must create files
exclusively (local disks, NFS from version 3, Lustre and the like do; buckets mounted as folders
may not). A worker may be killed, or join, at any moment, on any machine that sees the folder.
"""

import errno
import hashlib
import json
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax

from stylesr_jax.errors import UserError, in_a_line
from stylesr_jax.runtime import files

CONNECT_SECONDS = 120  # for the coordinator to come up

Item = TypeVar("Item")


def content_key(facts: Any) -> str:
    """Hexadecimal SHA-256 of what decides a result (JSON values, hashes of files among them)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Claim:
    """A claim that is held, and kept alive by a thread until it is released."""

    claims: "Claims"
    key: str
    number: int
    token: str
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> Path:
        return self.claims.path(self.key, self.number)

    def is_mine(self) -> bool:
        """Whether nobody took it over, as happens to a process that was stopped for long."""
        return self._is_own() and max(self.claims.numbers(self.key), default=-1) == self.number

    def release(self) -> None:
        """Free the key; what a successor holds by now is left alone."""
        self._stop.set()
        if not self.is_mine():
            if self._is_own():
                self.path.unlink(missing_ok=True)
            return
        for number in sorted(self.claims.numbers(self.key)):
            if number <= self.number:  # a higher one has come up since
                self.claims.path(self.key, number).unlink(missing_ok=True)

    def _is_own(self) -> bool:
        with suppress(OSError):
            return self.path.read_text() == self.token
        return False

    def _beat(self) -> None:
        while not self._stop.wait(self.claims.stale / 4):
            with suppress(OSError):
                os.utime(self.path)


@dataclass(frozen=True)
class Claims:
    """The claims of one folder, as one worker sees them.

    Attributes:
        folder: where claim files are kept; on a file system that all workers share.
        stale: seconds after which a claim that was not touched counts as a dead worker's.
    """

    folder: Path
    stale: float = 60.0

    def path(self, key: str, number: int) -> Path:
        return self.folder / f"{key}.{number}.claim"

    def numbers(self, key: str) -> list[int]:
        """The numbers under which a key is or was held."""
        return [int(path.name.split(".")[-2]) for path in self.folder.glob(f"{key}.*.claim")]

    def is_free(self, key: str) -> bool:
        """Whether `take` would probably succeed."""
        numbers = self.numbers(key)
        return not numbers or self._is_stale(self.path(key, max(numbers)))

    def take(self, key: str) -> Claim | None:
        """Claim `key`; None if a living worker holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = max(self.numbers(key), default=-1)
        if last >= 0 and not self._is_stale(self.path(key, last)):
            return None
        token = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}"
        claim = Claim(self, key, last + 1, token)
        if not _create(claim.path, token):
            return None
        # Its holder was dead when looked at, but it may have been succeeded, and freed, since.
        if last >= 0 and not self._is_stale(self.path(key, last)):
            claim.path.unlink(missing_ok=True)
            return None
        threading.Thread(target=claim._beat, daemon=True).start()
        return claim

    @contextmanager
    def hold(self, key: str) -> Iterator[bool]:
        """Claim `key` for a block; gives False if a living worker holds it."""
        claim = self.take(key)
        try:
            yield claim is not None
        finally:
            if claim is not None:
                claim.release()

    def _is_stale(self, path: Path) -> bool:
        """Whether a file exists and was not touched for long, by the file system's own clock.

        Files are opened, not just looked up: NFS asks the server then, not its cache.
        """
        probe = self.folder / f"now-{uuid.uuid4().hex}"
        try:
            with open(path, "rb") as file:
                touched = os.fstat(file.fileno()).st_mtime
            with open(probe, "xb") as file:
                return os.fstat(file.fileno()).st_mtime - touched > self.stale
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # it is gone
                raise
            return False
        finally:
            probe.unlink(missing_ok=True)


def repeat_until_free(
    work: Sequence[Item], attempt: Callable[[Sequence[Item]], list[Item]], claims: Claims | None
) -> None:
    """Repeat `attempt`, which returns what other workers hold, until they hold nothing."""
    left: Sequence[Item] = work
    while left:
        held = attempt(left)
        if held and claims is not None and len(held) == len(left):
            time.sleep(min(1.0, claims.stale / 4))
        left = held


def _create(path: Path, text: str) -> bool:
    """Create a file that does not exist yet; False if it does."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(text)
    return True


def join_processes(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    met: Path | None = None,
) -> tuple[int, int]:
    """Meet the other processes of a `jax.distributed` job: (this process's number, how many).

    All but the first one leave again at once: claims divide the work, so nobody needs to wait for
    anybody, and a process that dies takes no other with it. Processes that met once do not meet
    again: one that is started anew, the first one too, just goes on.

    Args:
        coordinator: HOST:PORT of the first process; None asks the cluster (Slurm, TPU, MPI).
        met: file of the shared folder that says that processes with these arguments have met.

    Raises:
        UserError: the arguments do not fit together, or there is no coordinator.
    """
    given = (coordinator, processes, process)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    if process is not None and processes is not None:
        if not 0 <= process < processes:
            raise UserError(f"--process {process}: it must be 0 to {processes - 1}")
        if _have_met(met, given[:2]):
            return process, processes
    if coordinator is not None and process:
        _await_coordinator(coordinator)
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not meet ({in_a_line(error)}); give --coordinator, "
            "--processes and --process, or use --share alone: it divides the folder without them"
        ) from error
    place = jax.process_index(), jax.process_count()
    if place[0]:
        jax.distributed.shutdown()
    elif met is not None and coordinator is not None:
        with files.atomic_path(met) as temporary:
            temporary.write_text(json.dumps(given[:2]))
    return place


def _have_met(met: Path | None, job: Sequence[Any]) -> bool:
    """Whether the file says so of this job."""
    with suppress(OSError, ValueError):
        return met is not None and json.loads(met.read_text()) == list(job)
    return False


def _await_coordinator(address: str) -> None:
    """Wait until something listens at HOST:PORT; a failed connection would end the process."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UserError(f"--coordinator {address}: write HOST:PORT")
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"there is no coordinator at {address}; start process 0 first, or use --share "
                    "alone: it divides the folder without one"
                ) from error
            time.sleep(0.5)
