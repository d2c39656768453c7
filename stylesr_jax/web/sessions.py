"""What the server keeps for each open page, in memory and in a folder of its own."""

import shutil
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from stylesr_jax.errors import UserError
from stylesr_jax.solver.observation import Observation
from stylesr_jax.solver.result import Result
from stylesr_jax.web.photos import Photo, observe
from stylesr_jax.web.request import Request

MOST = 8  # pages with a photo; the one that was used longest ago is forgotten


@dataclass(frozen=True, eq=False)
class Found:
    """A result, and what it is of."""

    photo: Photo
    choice: str
    request: Request
    result: Result


@dataclass
class Session:
    """An open page.

    Attributes:
        folder: of the files that it is offered.
        photo: the one that was brought last.
        choice: of `photo.choices`.
        side: px of the observation's longer side; None for as many as the photo holds.
        found: the last result.
        number: the solution that is looked at.
        stop: set to end the search that runs.
    """

    folder: Path
    photo: Photo | None = None
    choice: str = ""
    side: int | None = None
    found: Found | None = None
    number: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def observation(self) -> Observation:
        """What is super-resolved. Raises UserError before there is a photo."""
        return observe(self.brought, self.choice, self.side)

    @property
    def brought(self) -> Photo:
        """The photo. Raises UserError before there is one."""
        if self.photo is None:
            raise UserError("bring a photo first")
        return self.photo

    @property
    def finding(self) -> Found:
        """The last result. Raises UserError before there is one."""
        if self.found is None:
            raise UserError("there are no solutions yet; search first")
        return self.found


class Sessions:
    """Those of all open pages, by the name that the browser gave each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, name: str) -> Session:
        """The session of a name, new if need be."""
        with self._lock:
            if name not in self._sessions:
                folder = Path(tempfile.mkdtemp(prefix="session-", dir=self._folder))
                self._sessions[name] = Session(folder)
            self._sessions.move_to_end(name)
            while len(self._sessions) > MOST:
                self._forget(next(iter(self._sessions)))
            return self._sessions[name]

    def forget(self, name: str) -> None:
        """End a session's search and delete what is kept for it; no such session: nothing."""
        with self._lock:
            if name in self._sessions:
                self._forget(name)

    def forget_all(self) -> None:
        """End all searches and delete what is kept."""
        with self._lock:
            for name in list(self._sessions):
                self._forget(name)

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name)
        session.stop.set()
        shutil.rmtree(session.folder, ignore_errors=True)
