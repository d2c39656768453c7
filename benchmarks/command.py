"""How long does the command take as a user runs it, with nothing cached and again?

    python -m benchmarks.command [--cases fast-1,balanced-4] [--lr-size 16] [--out FILE.json]

A case is a preset and a number of solutions. Each is launched twice in every round, by the same
command line in a process of its own: with an empty cache folder, then with what the first launch
left there. One low-resolution image is the input of all: the portrait of the demo unless --image
says otherwise, degraded once. "first steps" is when the first step event arrives, with
everything imported, loaded and compiled before it; the peak memory is the process's own, not the
device's. Medians over the rounds are shown; "of empty" divides the two launches of a round.

Only the project's own cache is emptied; Python's bytecode and the system's file cache stay warm.
What a user converted or fitted lies in that cache too, so a generator or prior other than the
embedded ones is given as a file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.common import machine_line, run_apart, write_report
from benchmarks.studies.common import PORTRAIT
from stylesr_jax.cli.options import whole
from stylesr_jax.degradations import Bicubic
from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.images.files import read_image, write_png
from stylesr_jax.runtime.machine import describe_machine

COMMAND = "stylesr_jax.upsample"
HELP_LAUNCHES = 5
RATIOS = ("seconds", "first_steps_seconds")  # that are given of the empty cache's
# These would move the compiled programs out of the cache folder, or keep none.
MOVERS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")

# A process counts the memory of whatever launched it as its own at first, so a small one, without
# JAX, stands between this one and the command. Ctrl-C reaches the command by itself.
LAUNCHER = """
import json, os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: None)
began = time.monotonic()
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
facts = {"began": began, "ended": time.monotonic(), "peak": usage.ru_maxrss}
with open(sys.argv[1], "w") as file:
    json.dump(facts, file)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""


class Launch(NamedTuple):
    """Seconds from launch to end, peak resident memory, and (seconds, line) of what it said."""

    seconds: float
    peak_bytes: int
    lines: list[tuple[float, str]]


def environment(cache: Path) -> dict[str, str]:
    """This process's environment, but all that the project caches is in this folder."""
    kept = {name: value for name, value in os.environ.items() if name not in MOVERS}
    return {**kept, "STYLESR_CACHE": str(cache)}


def launch(arguments: Sequence[str], cache: Path) -> Launch:
    """Run the command with these arguments to its end.

    Raises:
        UserError: its exit code is not 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        facts_file = Path(folder) / "facts.json"
        own = [sys.executable, "-m", COMMAND, *arguments]
        command = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(facts_file), *own]
        with subprocess.Popen(
            command, env=environment(cache), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                arrived = [(time.monotonic(), line) for line in process.stdout]
            finally:
                process.wait()  # after Ctrl-C too: it saves the best so far
        if process.returncode:
            raise UserError(f"{COMMAND} ended with exit code {process.returncode}")
        facts = json.loads(facts_file.read_text())
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    began = facts["began"]
    return Launch(
        facts["ended"] - began,
        facts["peak"] * unit,
        [(seconds - began, line) for seconds, line in arrived],
    )


def cases_of(text: str) -> list[tuple[str, int]]:
    """(preset, solutions) of each case in "fast-1,balanced-4".

    Raises:
        UserError: it is not written so.
    """
    found = []
    for case in text.split(","):
        preset, _, solutions = case.strip().rpartition("-")
        if not preset or not solutions.isdecimal() or int(solutions) < 1:
            raise UserError(f"--cases {case}: write PRESET-SOLUTIONS, e.g. fast-1")
        found.append((preset, int(solutions)))
    return found


def facts_of(one: Launch) -> dict[str, Any]:
    """A launch with --json: seconds until it was loaded, its first steps done, and its end."""
    events = [(seconds, json.loads(line)) for seconds, line in one.lines]

    def first(name: str) -> tuple[float, dict[str, Any]]:
        return next((seconds, event) for seconds, event in events if event["event"] == name)

    loaded, start = first("start")
    return {
        "seconds": one.seconds,
        "loaded_seconds": loaded,
        "first_steps_seconds": first("step")[0],
        "peak_bytes": one.peak_bytes,
        "generator": start["generator"],
        "steps": start["steps"],
    }


def measure(arguments: Sequence[str], repeats: int) -> dict[str, Any]:
    """Rounds of two launches with a cache folder of their own: "empty" and "filled"."""
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache, out = Path(folder) / "cache", Path(folder) / "out"
            own = [*arguments, "--out", str(out), "--json"]
            rounds.append((facts_of(launch(own, cache)), facts_of(launch(own, cache))))
    empty, filled = ([pair[i] for pair in rounds] for i in (0, 1))
    return {
        "generator": empty[0]["generator"],
        "steps": empty[0]["steps"],
        "empty": _medians(empty),
        "filled": _medians(filled),
        "filled_of_empty": {
            name: statistics.median(b[name] / a[name] for a, b in rounds) for name in RATIOS
        },
    }


def _medians(launches: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("seconds", "loaded_seconds", "first_steps_seconds")
    medians = {name: statistics.median(one[name] for one in launches) for name in names}
    return {
        **medians,
        "all_seconds": [one["seconds"] for one in launches],
        "peak_bytes": max(one["peak_bytes"] for one in launches),
    }


def measure_help() -> dict[str, Any]:
    """Seconds and memory of --help."""
    with tempfile.TemporaryDirectory() as folder:
        launches = [launch(["--help"], Path(folder)) for _ in range(HELP_LAUNCHES)]
    seconds = [one.seconds for one in launches]
    peak = max(one.peak_bytes for one in launches)
    return {"seconds": statistics.median(seconds), "all_seconds": seconds, "peak_bytes": peak}


def prepare(options: argparse.Namespace) -> None:
    """In a process of its own, which JAX makes large: the input's file, and the machine."""
    original = jnp.asarray(read_image(options.image))
    write_png(options.input, np.asarray(Bicubic(size=options.lr_size)(original)))
    options.single.write_text(json.dumps({"machine": describe_machine()}))


HEADER = "preset       solutions  steps  cache   seconds  of empty  first steps  of empty  peak GB"


def _rows(case: dict[str, Any]) -> str:
    rows = []
    head = f"{case['preset']:<13}{case['solutions']:>9}{case['steps']:>7}  "
    for cache in ("empty", "filled"):
        one = case[cache]
        ratio = case["filled_of_empty"] if cache == "filled" else dict.fromkeys(RATIOS, 1.0)
        rows.append(
            f"{head}{cache:<6}"
            f"{one['seconds']:>9.1f}{ratio['seconds']:>9.2f}x"
            f"{one['first_steps_seconds']:>13.1f}{ratio['first_steps_seconds']:>9.2f}x"
            f"{one['peak_bytes'] / 1e9:>9.2f}"
        )
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--image", type=Path, default=PORTRAIT, help="a high-resolution face, degraded first")
    add("--lr-size", type=whole(4, 256), default=16, metavar="N", help="default 16 px")
    add("--cases", default="fast-1,balanced-4", help="PRESET-SOLUTIONS, separated by commas")
    add("--generator", metavar="NAME|PATH")
    add("--prior", metavar="FILE")
    add("--steps", type=whole(1, 100_000), metavar="N", help="instead of the presets'")
    add("--repeats", type=whole(1, 1000), default=1, metavar="N", help="rounds, default 1")
    add("--out", type=Path, help="write the measurements here as JSON")
    add("--single", type=Path, help=argparse.SUPPRESS)  # prepares, in this process
    add("--input", type=Path, help=argparse.SUPPRESS)  # where the input is written then
    return parser


def _passed_on(options: argparse.Namespace) -> list[str]:
    """The options that the command is given as they are."""
    values = ((name, getattr(options, name)) for name in ("generator", "prior", "steps"))
    return [text for name, value in values if value for text in (f"--{name}", str(value))]


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    cases = cases_of(options.cases)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "input.png"
        machine = run_apart("benchmarks.command", [*arguments, "--input", str(image)])["machine"]
        report: dict[str, Any] = {
            "benchmark": "command",
            "machine": machine,
            "image": options.image.name,
            "lr_size": options.lr_size,
            "repeats": options.repeats,
            "help": measure_help(),
            "cases": [],
        }
        print(machine_line(machine))
        print(f"--help: {report['help']['seconds']:.2f} s")
        for preset, solutions in cases:
            own = [str(image), "--preset", preset, "--solutions", str(solutions)]
            case = measure([*own, *_passed_on(options)], options.repeats)
            if not report["cases"]:
                print(f"{case['generator']}, from {options.lr_size} px", HEADER, sep="\n")
            report["cases"].append({"preset": preset, "solutions": solutions, **case})
            print(_rows(report["cases"][-1]), flush=True)
            write_report(options.out, report)


def main(argv: list[str] | None = None) -> int:
    """Measure every case, print the table, write the JSON."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(arguments)
    if options.single:
        return exit_code(lambda: prepare(options))
    return exit_code(lambda: _run(options, arguments))


if __name__ == "__main__":
    sys.exit(main())
