"""How long is one search step, and how near is that to what the machine can do?

    python -m benchmarks.step [--generator NAME|PATH ...] [--batch 1,2,4,8] [--out FILE.json]

A step is value, gradient with respect to W+ and Adam's update, run by the search engine inside
its compiled loop, against a low-resolution target. "stylegan2-256" stands for StyleGAN2 at 256 px
with random weights (channel_base 16384). Two cores need a quarter of an hour for the defaults.
"per start" is a start's share of a step, over the same in the generator's first row.

GFLOP count two operations for each multiplication in the convolutions and matrix products of the
forward pass, from their shapes, and as much again for the gradient; element-wise work (such as
MobileStyleGAN's depthwise convolutions) is not counted. The share is that rate over the rate of a
float32 matrix product measured just before and after. On CPUs a second share compares processor
seconds instead of wall time, which other programs on the machine disturb less. Each case runs in a
process of its own, so the peak memory is its own too, compilation included.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.common import (
    count_gflop,
    machine_line,
    matmul_rates,
    peak_bytes,
    run_apart,
    timed,
    write_report,
)
from convert.state_dict import prepare, random_state
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.loading import load_generator
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.weights import DEFAULT
from stylesr_jax.search.engine import Problem, advance, begin
from stylesr_jax.search.optimisers import ADAM

RANDOM = "stylegan2-256"
TARGET = 16  # px of the low-resolution image


def random_generator(*, resolution: int, channel_base: int) -> Generator:
    """StyleGAN2 with random weights; its arithmetic is that of a trained one."""
    state = random_state(seed=0, resolution=resolution, channel_base=channel_base)
    params, config = prepare(state, name=f"stylegan2-{resolution}")
    params = jax.tree.map(jnp.asarray, params)
    bare = Generator(params=params, statistics={}, label=None, config=config)
    statistics = measure_statistics(jax.random.key(0), bare, draws=1000)
    return bare.replace(statistics=statistics)  # type: ignore[attr-defined]


class BlockMeans(Problem):
    """L1 between the block means of an image and a target, both (TARGET, TARGET, 3); Adam."""

    rate: float = 0.02

    def loss(
        self, context: Generator, start: jax.Array, variables: jax.Array
    ) -> tuple[dict[str, jax.Array], None]:
        image = context.synthesise(variables[None])[0]
        block = image.shape[0] // TARGET
        small = image.reshape(TARGET, block, TARGET, block, 3).mean(axis=(1, 3))
        return {"l1": jnp.abs(small - start).mean()}, None

    def learning_rate(self, progress: jax.Array) -> jax.Array:
        return jnp.asarray(self.rate)

    def optimiser(self) -> optax.GradientTransformation:
        return ADAM


def measure(name: str, batch: int, *, steps: int, repeats: int) -> dict[str, Any]:
    """One case, in this process: seconds a step, GFLOP, shares, memory, compile times."""
    if name == RANDOM:
        generator = random_generator(resolution=256, channel_base=16384)
    else:
        generator = load_generator(name)
    if generator.label_dim:
        generator = generator.with_class(0, key=jax.random.key(0), draws=1000)
    ws = jnp.broadcast_to(
        generator.statistics["w_mean"], (batch, generator.num_ws, generator.w_dim)
    )
    targets = jax.random.uniform(jax.random.key(1), (batch, TARGET, TARGET, 3), minval=-1.0)
    keys = jax.random.split(jax.random.key(2), batch)
    problem = BlockMeans()
    state = begin(problem, generator, targets, ws)
    total = jnp.asarray(10**6, jnp.int32)
    arguments = (problem, generator, targets, keys, total, state)

    def compiled() -> tuple[Callable[..., Any], float]:
        start = time.perf_counter()
        result = advance.lower(*arguments, length=steps).compile()
        return result, time.perf_counter() - start

    run, cold = compiled()
    jax.block_until_ready(run(*arguments))
    before = matmul_rates()
    seconds, busy = timed(lambda: run(*arguments), repeats)
    after = matmul_rates()
    peak = peak_bytes()
    jax.clear_caches()
    _, warm = compiled()

    rate, busy_rate = (max(pair) for pair in zip(before, after, strict=True))
    portable = generator.config.portable()  # in XLA alone: its products are all seen
    in_xla = generator.replace(config=portable)  # type: ignore[attr-defined]
    gflop = 2.0 * count_gflop(lambda g, ws: g.synthesise(ws), in_xla, ws)
    return {
        "generator": generator.name,
        "batch": batch,
        "seconds": seconds / steps,
        "gflop": gflop,
        "matmul_gflops": rate,
        "share": gflop / (seconds / steps) / rate,
        "share_of_processor_time": (
            gflop / (busy / steps) / busy_rate if jax.default_backend() == "cpu" else None
        ),
        "peak_bytes": peak,
        "compile_seconds": cold,
        "compile_seconds_cached": warm,
        "machine": describe_machine(),
    }


def _run_apart(name: str, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """`measure` in a fresh process with an empty compilation cache."""
    arguments = ["--generator", name, "--batch", str(batch)]
    arguments += ["--steps", str(steps), "--repeats", str(repeats)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return run_apart("benchmarks.step", arguments, environment)


HEADER = (
    "generator             batch  s/step  per start  GFLOP  matmul GFLOP/s  share  (by CPU time)  "
    "peak GB  compile s  cached s"
)


def per_start(case: dict[str, Any], cases: list[dict[str, Any]]) -> float:
    """Seconds a start needs for a step, over those of the generator's first case."""
    first = next(c for c in cases if c["generator"] == case["generator"])
    return (case["seconds"] / case["batch"]) / (first["seconds"] / first["batch"])


def _row(case: dict[str, Any]) -> str:
    by_processor = case["share_of_processor_time"]
    text = "-" if by_processor is None else f"{by_processor:.0%}"
    return (
        f"{case['generator']:<22}{case['batch']:>4}{case['seconds']:>9.3f}{case['per_start']:>10.2f}x"
        f"{case['gflop']:>7.0f}"
        f"{case['matmul_gflops']:>16.0f}{case['share']:>7.0%}{text:>15}"
        f"{case['peak_bytes'] / 1e9:>9.2f}{case['compile_seconds']:>11.1f}"
        f"{case['compile_seconds_cached']:>10.1f}"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--generator", nargs="+", default=[DEFAULT, RANDOM], metavar="NAME|PATH")
    parser.add_argument("--batch", default="1,2,4,8", help="numbers of starts, separated by commas")
    parser.add_argument("--steps", type=int, default=10, help="steps in one compiled call")
    parser.add_argument("--repeats", type=int, default=3, help="calls, whose median counts")
    parser.add_argument("--out", type=Path, help="write the measurements here as JSON")
    parser.add_argument("--single", type=Path, help=argparse.SUPPRESS)  # one case, this process
    options = parser.parse_args(argv)
    batches = [int(text) for text in options.batch.split(",")]
    if options.single:
        case = measure(
            options.generator[0], batches[0], steps=options.steps, repeats=options.repeats
        )
        options.single.write_text(json.dumps(case))
        return 0
    cases = []
    for name in options.generator:
        for batch in batches:
            case = _run_apart(name, batch, options.steps, options.repeats)
            if not cases:
                print(machine_line(case["machine"]), HEADER, sep="\n")
            cases.append(case)
            case["per_start"] = per_start(case, cases)
            print(_row(case), flush=True)
    write_report(options.out, {"benchmark": "step", "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
