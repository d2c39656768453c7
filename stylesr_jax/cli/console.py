"""What commands print: lines, a bar or JSON, and errors in one line."""

import _thread
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from stylesr_jax.errors import READER_GONE, exit_code, print_error, print_note, stop_printing
from stylesr_jax.runs.records import finite


class Console:
    """Progress as a bar, as JSON lines, or not at all; errors always.

    When nobody reads standard output any more, the command is interrupted, and nothing is said.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self._bar: Any = None
        self._shown = ("", 0)  # label and total of the bar
        self._pace = _Pace()
        self._reader_gone = False
        self._lock = threading.RLock()  # the search and the writing thread both speak
        for stream in (sys.stdout, sys.stderr):  # names of files may be of any bytes
            with suppress(AttributeError):  # replaced by something simpler
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def say(self, event: str, text: str, **values: Any) -> None:
        with self._lock:
            if self.as_json:
                values = values or {"text": text}
                self._print(json.dumps(finite({"event": event, **values})))
            elif not self.quiet:
                if self._bar is not None:
                    self._bar.clear()
                self._print(text)

    def line(self, text: str) -> None:
        """A line of text."""
        self.say("line", text)

    def note(self, text: str) -> None:
        """What a user should know and no program reads: a line on standard error."""
        with self._lock:
            if self.quiet or self._reader_gone:
                return
            self.close()
            print_note(text)

    def error(self, message: str, **values: Any) -> None:
        with self._lock:
            if self._reader_gone:
                return
            self.close()
            if self.as_json:
                self._print(json.dumps(finite({"event": "error", "message": message, **values})))
            print_error(message)

    def _print(self, text: str) -> None:
        if self._reader_gone:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self._reader_gone = True
            stop_printing()
            _thread.interrupt_main()

    def progress(self, label: str, done: int, total: int, terms: Mapping[str, float]) -> None:
        """How far a search is: a bar, or an event with the seconds left at the pace so far."""
        if self.as_json:
            seconds_left = self._pace.seconds_left(label, done, total)
            values = {name: round(value, 6) for name, value in terms.items()}
            self.say(
                "step",
                "",
                label=label,
                step=done,
                steps=total,
                terms=values,
                seconds_left=seconds_left,
            )
        elif not self.quiet:
            with self._lock:
                self._show(label, done, total, terms)

    def _show(self, label: str, done: int, total: int, terms: Mapping[str, float]) -> None:
        if self._bar is None or self._shown != (label, total):
            self.close()
            self._shown = (label, total)
            options: dict[str, Any] = {"unit": "step", "leave": False, "disable": None}
            self._bar = tqdm(total=total, desc=label, initial=done, **options)
        self._bar.n = done
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in terms.items()})
        if done >= total:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def run(self, work: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
        """Do a command's work; its exit code, see `exit_code`."""
        try:
            code = exit_code(work, interrupted=interrupted, error=self.error)
        finally:
            self.close()
        return READER_GONE if self._reader_gone else code


class _Pace:
    """Seconds a step takes, between the chunks of one search."""

    def __init__(self) -> None:
        self._label = ""
        self._first = (0.0, 0)  # time and step of the first chunk's end
        self._seconds: float | None = None  # a step, measured last

    def seconds_left(self, label: str, done: int, total: int) -> float | None:
        """Of the search `label`; None before two chunks were timed, of this one or another."""
        now = time.monotonic()
        if label != self._label or done <= self._first[1]:
            self._label, self._first = label, (now, done)
        else:
            self._seconds = (now - self._first[0]) / (done - self._first[1])
        return None if self._seconds is None else round(self._seconds * (total - done), 1)
