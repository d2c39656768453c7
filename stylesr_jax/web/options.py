"""The page's options. Nothing here needs JAX or Gradio."""

import argparse
import os
from collections.abc import Callable, Sequence

DESCRIPTION = (
    "A page in the browser: drop a photo, pick a face, search, compare, paste back. Nothing leaves "
    "this machine. The pictures show faces that the generator imagines: never use them to identify "
    "a person."
)


def _between(low: int, high: int) -> Callable[[str], int]:
    """Parses whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {low} to {high}")
        return int(text)

    return parse


def parser() -> argparse.ArgumentParser:
    """Of `python -m stylesr_jax.web`."""
    made = argparse.ArgumentParser(
        prog="python -m stylesr_jax.web", description=DESCRIPTION, allow_abbrev=False
    )
    add = made.add_argument
    add(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine)"
    )
    add("--port", type=_between(0, 65535), default=7860, help="default 7860; 0: any that is free")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name under which browsers reach the page, e.g. a proxy's",
    )
    add("--generator", type=os.path.expanduser, metavar="NAME|PATH", help="see upsample --help")
    add(
        "--class", dest="label", type=_between(0, 10**6), metavar="K", help="of a conditional model"
    )
    add("--prior", type=os.path.expanduser, metavar="FILE", help="flow prior of the generator")
    return made


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; wrong ones end the process with code 2."""
    return parser().parse_args(argv)
