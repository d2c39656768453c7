"""A server of the page and a browser, for tests."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from conftest import KEPT

from where import ROOT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
MISSING = "; ".join(
    text
    for text, there in {
        "pip install '.[web]'": find_spec("gradio"),
        "pip install playwright": find_spec("playwright"),
        "apt install chromium": CHROMIUM,
    }.items()
    if not there
)


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        address: of the page, without a slash at its end.
        folder: in which it makes its temporary ones.
        process: its own.
    """

    address: str
    folder: Path
    process: "subprocess.Popen[str]"

    @property
    def files(self) -> list[Path]:
        """All files that it keeps."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


@contextmanager
def running_server(folder: Path, *arguments: object) -> Iterator[Server]:
    """The page as a process of its own, ended as a service is."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "STYLESR_CACHE": str(KEPT),
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "stylesr_jax.web", "--port", "0", *map(str, arguments)]
    with (
        open(folder.parent / "errors.txt", "w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("The page is at http"), Path(errors.name).read_text()
            yield Server(line.split()[4].rstrip("/"), folder, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
