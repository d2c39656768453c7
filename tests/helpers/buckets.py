"""A local S3 server, and what it was asked."""

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

_REQUEST = re.compile(r'"([A-Z]+) /([^ ?]*)([^ ]*) HTTP')


@dataclass(frozen=True)
class Server:
    """A server of moto's with an empty bucket "faces".

    Attributes:
        log: the file of its requests.
        environment: variables by which clients find it.
    """

    log: Path
    environment: dict[str, str]

    def asked(self, method: str) -> list[str]:
        """BUCKET/KEY of all requests of this kind, in their order."""
        found = _REQUEST.findall(self.log.read_text())
        return [unquote(key) for kind, key, _ in found if kind == method]


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Run a server; its log is kept in the folder."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    environment = {**keys, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    log = folder / "requests.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        _make_bucket(address)
        yield Server(log, environment)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _make_bucket(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(f"{address}/faces", method="PUT")
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
