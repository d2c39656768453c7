"""The one exception that means: the user can mend this; and what commands make of it."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

READER_GONE = 141  # exit code, as of a process that SIGPIPE ends


class UserError(ValueError):
    """A problem with the input, the files or the options; its message says what to do about it."""


def printable(text: str | os.PathLike[str]) -> str:
    """A name or another file's text in one line; what is not printable is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in os.fspath(text))


def pip_install(*packages: str) -> str:
    """The command that installs packages where this process would find them."""
    return printable(shlex.join([sys.executable or "python", "-m", "pip", "install", *packages]))


def in_a_line(error: Exception) -> str:
    """An error's first line, with its kind unless it is a UserError, which explains itself."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + (str(error).splitlines() or [""])[0]


def print_error(message: str) -> None:
    """A line on stderr."""
    print(f"error: {printable(message)}", file=sys.stderr, flush=True)


def print_note(text: str) -> None:
    """A line on stderr of what a user should know though nothing is wrong."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


def stop_printing() -> None:
    """Let what is still to be printed go nowhere: nobody reads standard output any more."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def exit_code(
    work: Callable[[], int | None],
    *,
    interrupted: str = "interrupted",
    error: Callable[[str], None] = print_error,
) -> int:
    """Do a command's work; what goes wrong is one line. SIGTERM interrupts it as Ctrl-C does.

    Args:
        work: returns the exit code, None for 0.
        interrupted: what is said after an interruption.
        error: says it.

    Returns:
        What `work` returns, 2 for a UserError, 130 after Ctrl-C, 143 after SIGTERM, 141 when
        nobody reads what is printed.
    """
    with _sigterm_interrupts() as received:
        try:
            return work() or 0
        except UserError as problem:
            error(str(problem))
            return 2
        except KeyboardInterrupt:
            error(interrupted)
            return 128 + (received or [signal.SIGINT])[0]
        except BrokenPipeError:
            stop_printing()
            return READER_GONE


@contextmanager
def _sigterm_interrupts() -> Iterator[list[int]]:
    """SIGTERM raises KeyboardInterrupt in here, and is noted in the list."""
    received: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
