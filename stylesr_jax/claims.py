"""Workers that share a folder: each input is claimed by one of them, a dead one's claim passes on.

A claim is a file that only one process can create, touched while its owner lives. Whoever finds
one that has not been touched for a while takes it over. Times are those of the shared file
system, so hosts' clocks need not agree. Nothing else is shared: a worker may be killed, or join,
at any moment, on any machine that sees the folder.
"""

import hashlib
import json
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylesr_jax import store
from stylesr_jax.errors import UserError

CONNECT_SECONDS = 120  # for the coordinator to come up


def content_key(facts: Any) -> str:
    """Hexadecimal SHA-256 of what decides a result (JSON values, hashes of files among them)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Claims:
    """The claims of one folder, as one worker sees them.

    Attributes:
        folder: where claim files are kept; on a file system that all workers share.
        stale: seconds after which a claim that was not touched counts as a dead worker's.
    """

    folder: Path
    stale: float = 60.0

    @contextmanager
    def hold(self, key: str) -> Iterator[bool]:
        """Claim `key` and keep the claim alive; gives False if a living worker holds it."""
        token = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}"
        path = self.folder / f"{key}.claim"
        if not self._take(path, token):
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            with suppress(OSError):
                if path.read_text() == token:
                    path.unlink()

    def _beat(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(self.stale / 4):
            with suppress(OSError):
                os.utime(path)

    def _take(self, path: Path, token: str) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        if _create(path, token):
            return True
        if not self._is_stale(path):
            return False
        # One of those that see the same dead claim replaces it.
        lock = path.with_suffix(".takeover")
        if not _create(lock, token):
            if self._is_stale(lock):  # its maker died in between: the next attempt will succeed
                lock.unlink(missing_ok=True)
            return False
        try:
            if not self._is_stale(path):
                return False
            with store.atomic_path(path) as temporary:
                temporary.write_text(token)
            return True
        finally:
            lock.unlink(missing_ok=True)

    def _is_stale(self, path: Path) -> bool:
        """Whether a file exists and was not touched for long, by the file system's own clock."""
        probe = self.folder / f"now-{uuid.uuid4().hex}"
        try:
            touched = path.stat().st_mtime
            probe.touch()
            return probe.stat().st_mtime - touched > self.stale
        except FileNotFoundError:
            return False
        finally:
            probe.unlink(missing_ok=True)


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
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> tuple[int, int]:
    """Meet the other processes of a `jax.distributed` job: (this process's number, how many).

    All but the first one leave again at once: claims divide the work, so nobody needs to wait for
    anybody, and a process that dies takes no other with it. One that is started again may join
    for as long as the first one runs.

    Args:
        coordinator: HOST:PORT of the first process; None asks the cluster (Slurm, TPU, MPI).

    Raises:
        UserError: the arguments do not fit together, or there is no coordinator.
    """
    import jax

    given = (coordinator, processes, process)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise UserError(f"--process {process}: it must be 0 to {processes - 1}")
    if coordinator is not None and process:
        _await_coordinator(coordinator)
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not meet ({str(error).splitlines()[0]}); give --coordinator, "
            "--processes and --process, or use --share alone: it divides the folder without them"
        ) from error
    place = jax.process_index(), jax.process_count()
    if place[0]:
        jax.distributed.shutdown()
    return place


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
