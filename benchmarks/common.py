"""What the timing benchmarks share: GFLOP, matrix-product rates, memory, machine, files."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stylesr_jax.errors import UserError, pip_install


def _inner(equation: Any) -> Iterator[tuple[Any, int]]:
    """The programs inside an equation, and how often each is run; of branches the largest."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        branches = [branch.jaxpr for branch in params["branches"]]
        yield max(branches, key=_flop), 1
        return
    for value in params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner, params["length"] if name == "scan" else 1


def _flop(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        total += sum(times * _flop(inner) for inner, times in _inner(equation))
        name = equation.primitive.name
        if name not in ("conv_general_dilated", "dot_general"):
            continue
        left, right = (variable.aval.shape for variable in equation.invars)
        out = equation.outvars[0].aval.shape
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = np.prod([left[axis] for axis in contracted])
        else:
            kernel = equation.params["dimension_numbers"].rhs_spec  # out, in, then space
            terms = np.prod(right) / right[kernel[0]]
        total += 2.0 * float(np.prod(out)) * float(terms)
    return total


def count_gflop(function: Callable[..., Any], *args: Any) -> float:
    """GFLOP of the convolutions and matrix products in a function, from their shapes."""
    return _flop(jax.make_jaxpr(function)(*args).jaxpr) / 1e9


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median wall seconds and least processor seconds of a call."""
    wall, processor = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    return statistics.median(wall), min(processor)


class Timing(NamedTuple):
    """Wall seconds, and processor seconds of all threads together."""

    seconds: float
    processor: float


class Stopwatch:
    """Times a block: `with Stopwatch() as watch: ...`, then `watch.per(steps)`."""

    def __enter__(self) -> "Stopwatch":
        self._wall, self._busy = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._wall = time.perf_counter() - self._wall
        self._busy = time.process_time() - self._busy

    def per(self, steps: int) -> Timing:
        return Timing(self._wall / steps, self._busy / steps)


def interleaved(calls: dict[str, Callable[[], Timing]], rounds: int) -> dict[str, list[Timing]]:
    """What each call returns in each round; all take their turn in every round."""
    found: dict[str, list[Timing]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(call())
    return found


def ratios(timings: dict[str, list[Timing]], base: str) -> dict[str, Timing]:
    """Each call's times over those of `base`: the median over rounds of the rounds' ratios."""

    def ratio(name: str, part: int) -> float:
        pairs = zip(timings[name], timings[base], strict=True)
        return statistics.median(a[part] / max(b[part], 1e-9) for a, b in pairs)

    return {name: Timing(ratio(name, 0), ratio(name, 1)) for name in timings}


def matmul_rates(size: int = 2048, repeats: int = 5) -> tuple[float, float]:
    """GFLOP per second, and per processor second, of a float32 matrix product."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(partial(jnp.dot, precision=jax.lax.Precision.HIGHEST))
    jax.block_until_ready(product(a, a))
    wall, processor = timed(lambda: product(a, a), repeats)
    gflop = 2.0 * size**3 / 1e9
    return gflop / wall, gflop / max(processor, 1e-9)


def peak_bytes() -> int:
    """Peak memory so far: the device's where it tells, else this whole process's."""
    memory = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return memory.get("peak_bytes_in_use", used)


def machine_line(machine: dict[str, Any]) -> str:
    """Date, device, processor and versions, from `describe_machine`, on one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['date']}; {machine['device']}; {machine['machine']}; {versions}"


def write_report(out: Path | None, report: dict[str, Any]) -> None:
    """Write the measurements as JSON, if a file was asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


def run_apart(
    module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a benchmark writes for its option --single FILE, run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", module, *arguments, "--single", str(result)]
        done = subprocess.run(command, env={**os.environ, **(environment or {})})
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
        return json.loads(result.read_text())


def load_pyplot() -> Any:
    """matplotlib's pyplot, drawing to files only.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(f"pictures need matplotlib: {pip_install('matplotlib>=3.9')}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
