"""How many solutions an hour, against the number of starts that are searched together?

    python -m benchmarks.solutions [--preset NAME] [--generator NAME|PATH] [--out FILE.json]

One low-resolution image is given to the whole engine, with every number of starts and every batch
size (starts searched together) that divides it; the portrait of the demo unless --image says
otherwise. What is timed is everything from the observation to the solutions' images, compilation
and loading left out. "per solution" is the time of one solution over that of the first row's.

Each case runs in a process of its own, so its peak memory is that process's (or the device's,
where that can be told). --evaluations shortens the search for a quick look.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import machine_line, peak_bytes, run_apart, write_report
from benchmarks.studies.common import PORTRAIT
from stylesr_jax.degradations import Bicubic
from stylesr_jax.errors import exit_code
from stylesr_jax.images.files import read_image
from stylesr_jax.methods import Method
from stylesr_jax.runs.plan import load_parts, variant
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure
from stylesr_jax.solver.observation import place_on_canvas
from stylesr_jax.solver.solve import solve

SEED = 0


def pairs(starts: list[int], batches: list[int] | None) -> list[tuple[int, int]]:
    """(starts, batch) of every case: batch 1 and all at once, or the given sizes that divide."""
    found = []
    for n in starts:
        sizes = sorted({1, n}) if batches is None else [b for b in batches if n % b == 0]
        found += [(n, b) for b in sizes]
    return found


def measure(options: argparse.Namespace, starts: int, batch: int) -> dict[str, Any]:
    """One case, in this process: the median seconds of a search, memory."""
    configure()
    one = variant(options.method, preset=options.preset, evaluations=options.evaluations)
    parts = load_parts([one], generator=options.generator, prior=options.prior)
    original = jax.numpy.asarray(read_image(options.image))
    size = options.lr_size
    observation = place_on_canvas(np.clip(np.asarray(Bicubic(size=size)(original)), -1.0, 1.0))

    def run(method: Method, count: int) -> float:
        began = time.perf_counter()
        solve(
            [observation],
            [jax.random.key(SEED)],
            generator=parts["generator"],
            prior=parts.get("prior"),
            perceptual=parts.get("perceptual"),
            method=method,
            solutions=count,
            batch=batch,
        )
        return time.perf_counter() - began

    run(one.method.with_budget(len(one.stages)), max(batch, 2))  # compiles
    seconds = sorted(run(one.method, starts) for _ in range(options.repeats))
    median = float(np.median(seconds))
    return {
        "method": one.method.name,
        "preset": one.preset,
        "generator": parts["generator"].name,
        "lr_size": size,
        "evaluations": one.evaluations,
        "starts": starts,
        "batch": batch,
        "seconds": median,
        "all_seconds": seconds,
        "solutions_per_hour": 3600.0 * starts / median,
        "peak_bytes": peak_bytes(),
        "machine": describe_machine(),
    }


def per_solution(case: dict[str, Any], cases: list[dict[str, Any]]) -> float:
    """Seconds of one solution, over those of the first case's."""
    first = cases[0]
    return (case["seconds"] / case["starts"]) / (first["seconds"] / first["starts"])


HEADER = "starts  batch  seconds  solutions/hour  per solution  peak GB"


def _row(case: dict[str, Any]) -> str:
    return (
        f"{case['starts']:>6}{case['batch']:>7}{case['seconds']:>9.1f}"
        f"{case['solutions_per_hour']:>16.1f}{case['per_solution']:>13.2f}x"
        f"{case['peak_bytes'] / 1e9:>9.2f}"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--method", default="rls", metavar="NAME", help="default rls")
    add("--preset", default="balanced", metavar="NAME", help="default balanced")
    add("--generator", metavar="NAME|PATH")
    add("--prior", metavar="FILE")
    add("--image", type=Path, default=PORTRAIT, help="a high-resolution face, degraded first")
    add("--lr-size", type=int, default=16, metavar="N", help="default 16 px")
    add("--starts", default="1,2,4,8", help="numbers of starts, separated by commas")
    add("--batch", help="batch sizes, separated by commas (default: 1, and all at once)")
    add("--evaluations", type=int, metavar="N", help="steps of a solution instead of the preset's")
    add("--repeats", type=int, default=3, help="searches, whose median counts")
    add("--out", type=Path, help="write the measurements here as JSON")
    add("--single", type=Path, help=argparse.SUPPRESS)  # one case, in this process
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    starts = [int(text) for text in options.starts.split(",")]
    batches = [int(text) for text in options.batch.split(",")] if options.batch else None
    if options.single:

        def work() -> None:
            case = measure(options, starts[0], (batches or [1])[0])
            options.single.write_text(json.dumps(case))

        return exit_code(work)
    cases: list[dict[str, Any]] = []
    for n, batch in pairs(starts, batches):
        own = [*arguments, "--starts", str(n), "--batch", str(batch)]
        case = run_apart("benchmarks.solutions", own)
        if not cases:
            print(machine_line(case["machine"]))
            print(
                f"{case['method']}, preset {case['preset']}, {case['evaluations']} steps, "
                f"{case['generator']}, from {case['lr_size']} px"
            )
            print(HEADER)
        cases.append(case)
        case["per_solution"] = per_solution(case, cases)
        print(_row(case), flush=True)
        write_report(options.out, {"benchmark": "solutions", "cases": cases})
    most = max(case["starts"] for case in cases)
    best = min((c for c in cases if c["starts"] == most), key=lambda c: c["per_solution"])
    print(
        f"a solution of {most} starts takes {best['per_solution']:.2f}x of one of "
        f"{cases[0]['starts']}, at batch {best['batch']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
