"""Joining a Ray cluster.

Ray waits for minutes at an address where no cluster answers, and may end the process then. An
address is therefore tried before, by a process of its own that has a time limit; so is the cluster
that Ray would find on this machine. Clusters may ask for a token, which Ray sends to an address
only if RAY_AUTH_MODE says so.
"""

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stylesr_jax.errors import UserError, in_a_line, pip_install, printable

AUTO = "auto"  # instead of an address
CONNECT = 5.0  # s, until the port of an address is open
ANSWER = 30.0  # s, until Ray answers there
# What Ray's own processes print and send; a user's settings come first.
QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # every line that would come between ours
}
# Attempts of a second each; what the storage of the cluster's state answers is shown.
TRIED = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_BACKEND_LOG_LEVEL": "warning"}
AUTH_MODE = "RAY_AUTH_MODE"
MISSING = f"--cluster needs Ray on every machine: {pip_install('stylesr-jax[cluster]')}"
_HERE = ("", AUTO, "local")  # in RAY_ADDRESS, no address either
_PLACE = re.compile(r"\[?([^/\[\]]+)\]?:([0-9]{1,5})")
_TRY = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except Exception as error:
    print(" ".join(str(error).split()))
    sys.exit(1)
"""


@contextmanager
def joined(address: str) -> Iterator[list[Mapping[str, float]]]:
    """Belong to a cluster; the resources of its machines.

    Args:
        address: HOST:PORT, or "auto": that of RAY_ADDRESS, else the cluster that this machine
            belongs to, else a new one of this machine alone.

    Raises:
        UserError: there is none at the address, it does not answer, refuses, or cannot be started.
    """
    if find_spec("ray") is None:
        raise UserError(MISSING)
    given = address if address != AUTO else os.environ.get("RAY_ADDRESS", "")
    noted = "" if given else noted_here()
    if given not in _HERE:
        check_answers(given)
    elif noted:
        check_answers(noted, noted=True)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    ray = imported()
    try:
        with _without_stderr():  # it says there that RAY_BACKEND_LOG_LEVEL is set
            ray.init(
                address=None if address == AUTO else address,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises plain ones too
        if given in ("", "local") and not noted:
            raise _not_started(in_a_line(error)) from error
        raise _none_at(noted or given, in_a_line(error), bool(noted)) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def noted_here() -> str:
    """The address of the cluster that this machine belongs to, as `ray start` notes it; or ""."""
    default = os.environ.get("TMPDIR", "/tmp") if sys.platform == "linux" else "/tmp"
    note = Path(os.environ.get("RAY_TMPDIR", default)) / "ray" / "ray_current_cluster"
    try:
        return note.read_text(errors="replace").strip()
    except OSError:
        return ""


def check_answers(address: str, *, noted: bool = False) -> None:
    """Try to join a cluster; sets RAY_AUTH_MODE, unless it is set, if the cluster asks for a token.

    Args:
        address: HOST:PORT.
        noted: whether it is what `noted_here` found, and no address that the user gave.

    Raises:
        UserError: there is none at the address, it does not answer, or refuses.
    """
    _check_port(address, noted)
    said = _tried(address)
    if "InvalidAuthToken" in said and AUTH_MODE not in os.environ:
        os.environ[AUTH_MODE] = "token"
        said = _tried(address)
    if "InvalidAuthToken" in said or "no authentication token was found" in said:
        instead = ", or start a cluster apart with RAY_ADDRESS=local" if noted else ""
        raise UserError(
            f"{_named(address, noted)}: the cluster asks for a token that is not here; copy "
            f"~/.ray/auth_token from its head, or put the token into RAY_AUTH_TOKEN{instead}"
        )
    if said:
        raise _none_at(address, said.splitlines()[-1], noted)


def host_and_port(address: str) -> tuple[str, int] | None:
    """The two parts of HOST:PORT; None if that is not how an address is written."""
    place = _PLACE.fullmatch(address)
    if place is None or not place[1].strip() or not 0 < int(place[2]) < 1 << 16:
        return None
    return place[1], int(place[2])


def _check_port(address: str, noted: bool) -> None:
    """Raise UserError unless a process listens at an address."""
    place = host_and_port(address)
    if place is None:
        problem = f"{printable(_named(address, noted))}: that is not HOST:PORT"
        raise UserError(f"{problem}; " + ("ray stop forgets it" if noted else "write it so"))
    try:
        socket.create_connection(place, timeout=CONNECT).close()
    except (OSError, UnicodeError) as error:
        raise _none_at(address, in_a_line(error), noted) from error


def _tried(address: str) -> str:
    """What is said where a process cannot join; nothing where it can."""
    environment = {**os.environ, **QUIET, **TRIED}
    command = [sys.executable, "-c", _TRY, address]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ANSWER
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER:.0f} seconds"
    if done.returncode == 0:
        return ""
    said = done.stderr + done.stdout
    return said.strip() or f"Ray ended with code {done.returncode}"


def _none_at(address: str, why: str, noted: bool = False) -> UserError:
    if noted:
        advice = "ray stop forgets it, and RAY_ADDRESS=local starts a cluster apart"
    else:
        advice = "start one with ray start --head, here or there, and give its HOST:PORT"
    return UserError(f"{_named(address, noted)}: no Ray cluster answers ({why}); {advice}")


def _not_started(why: str) -> UserError:
    return UserError(
        f"--cluster auto: Ray could not start a cluster here ({why}); leave out --cluster, or try "
        "again when the machine is less busy"
    )


def _named(address: str, noted: bool) -> str:
    """How an address is spoken of."""
    return f"--cluster auto: this machine's cluster, {address}" if noted else f"--cluster {address}"


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Let what is written to the process's standard error go nowhere."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def imported() -> Any:
    """The package ray, with its parts.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
        import ray.util.scheduling_strategies  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(MISSING) from error
    return ray
