"""What command lines share: their head, their number parsers, and the options of many machines."""

import argparse
from collections.abc import Callable

from stylesr_jax.errors import UserError

PRESETS = ("fast", "balanced", "best", "paper")


def parser_of(name: str, document: str | None) -> argparse.ArgumentParser:
    """A parser that shows paragraph 2 of a module's docstring before its options, 3 after."""
    parts = (document or "").split("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m stylesr_jax.{name}",
        description=parts[1].replace("\n", " "),
        epilog=parts[2].replace("\n", " "),
    )


def whole(low: int, high: int) -> Callable[[str], int]:
    """Parses whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {low} to {high}")
        return value

    return parse


def batch(text: str) -> int | None:
    """Parses --batch: a number of starts, or None for "auto"."""
    return None if text == "auto" else whole(1, 1024)(text)


def change(text: str) -> tuple[str, str, str]:
    """(method, setting, value) of --set METHOD.SETTING=VALUE.

    Raises:
        UserError: it is not written so.
    """
    name, equals, value = text.partition("=")
    method, dot, setting = name.strip().partition(".")
    if not equals or not dot:
        raise UserError(f"--set {text}: write METHOD.SETTING=VALUE, e.g. rls.lambda_w=0.1")
    return method, setting, value.strip()


def add_scale(parser: argparse.ArgumentParser) -> None:
    """The options that say how work is spread over a device, devices and processes."""
    add = parser.add_argument
    add(
        "--batch",
        type=batch,
        metavar="N|auto",
        help="starts searched together on a device (auto: what fits its memory; 1 on CPUs)",
    )
    add("--devices", type=whole(1, 1024), metavar="N", help="devices to use; default: all")
    add("--share", action="store_true", help="divide the inputs with other runs into the same DIR")
    add("--stale", type=whole(1, 10**6), default=60, metavar="S", help="seconds to a dead claim")
    add("--distributed", action="store_true", help="--share, as one process of a cluster's job")
    add("--coordinator", metavar="HOST:PORT", help="of --distributed, where none is found")
    add("--processes", type=whole(1, 10**6), metavar="N", help="of --distributed: how many")
    add("--process", type=whole(0, 10**6), metavar="I", help="of --distributed: this one's number")


def join(args: argparse.Namespace) -> tuple[int, int]:
    """(this process's number, how many there are); --distributed turns --share on.

    Raises:
        UserError: the processes do not meet.
    """
    if not args.distributed:
        return 0, 1
    from pathlib import Path

    from stylesr_jax.runs.claims import join_processes

    args.share = True
    met = Path(args.out) / ".claims" / "met"
    return join_processes(args.coordinator, args.processes, args.process, met=met)
