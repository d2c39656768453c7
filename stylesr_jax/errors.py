"""The one exception that means: the user can mend this; and what commands make of it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A problem with the input, the files or the options; its message says what to do about it."""


def in_a_line(error: Exception) -> str:
    """An error's first line, with its kind unless it is a UserError, which explains itself."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + (str(error).splitlines() or [""])[0]


def exit_code(work: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Do a command's work; what goes wrong is one line on stderr.

    Args:
        work: returns the exit code, None for 0.
        interrupted: what is said after Ctrl-C.

    Returns:
        What `work` returns, 2 for a UserError, 130 after Ctrl-C.
    """
    try:
        return work() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"error: {interrupted}", file=sys.stderr, flush=True)
        return 130
