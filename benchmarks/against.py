"""The search step against PyTorch's, with a reference checkout that you supply.

    python -m benchmarks.against --reference PATH [--batch 1,4] [--out FILE.json]

PATH is a checkout of stylegan2-ada-pytorch (random weights, 256 px and channel_base 16384 unless
said otherwise) or of MobileStyleGAN.pytorch (the embedded weights, 1024 px); PyTorch and what the
checkout imports must be installed. Both networks get the same weights, noise and styles; a step
is the mean absolute difference after shrinking the image to 16x16 block means, its gradient with
respect to W+ and Adam's update: ours as the engine runs it, the reference's in eager mode.

Images and gradients of such steps are compared before anything is timed: ours with each form of
the reference. Then all take turns, in every round one after another, so that a machine that drifts
drifts for all; seconds are medians over rounds, ratios medians of the rounds' ratios. "CPU s" are
processor seconds of all threads. Where ours are not nearly cores x seconds, something else was
running: discard that run. PyTorch's threads wait for one another, so that company slows PyTorch far
more than ours (seven times the time, once).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    Stopwatch,
    Timing,
    interleaved,
    machine_line,
    ratios,
    write_report,
)
from benchmarks.references import Reference, load_reference
from benchmarks.step import TARGET, BlockMeans
from stylesr_jax.errors import exit_code
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.search.engine import advance, begin, evaluate

OURS = "stylesr_jax"
PAUSE = 0.2  # seconds, for the other framework's threads to go to sleep


def draw_inputs(reference: Reference, batch: int) -> tuple[jax.Array, jax.Array]:
    """Styles (batch, num_ws, w_dim), all layers different, and targets (batch, 16, 16, 3)."""
    generator = reference.generator
    z = jax.random.normal(jax.random.key(0), (batch * generator.num_ws, generator.z_dim))
    ws = generator.map_latents(z).reshape(batch, generator.num_ws, generator.w_dim)
    targets = jax.random.uniform(jax.random.key(1), (batch, TARGET, TARGET, 3), minval=-1.0)
    return ws, targets


# --- one step of either ---------------------------------------------------------------------


def torch_step(
    reference: Reference, form: str, ws: jax.Array, targets: jax.Array
) -> tuple[Callable[[], Any], Any]:
    """(a step that updates the styles and returns the image, the styles' torch parameter)."""
    torch, network = reference.torch, reference.forms[form]
    styles = torch.tensor(np.asarray(ws), device=reference.device, requires_grad=True)
    target = torch.tensor(np.asarray(targets).transpose(0, 3, 1, 2), device=reference.device)
    optimiser = torch.optim.Adam([styles], lr=BlockMeans.rate)

    def step() -> Any:
        optimiser.zero_grad()
        image = network(styles)
        small = torch.nn.functional.avg_pool2d(image, image.shape[-1] // TARGET)
        (small - target).abs().mean(dim=(1, 2, 3)).sum().backward()
        optimiser.step()
        if reference.device != "cpu":
            torch.cuda.synchronize()
        return image

    return step, styles


def torch_call(step: Callable[[], Any], steps: int) -> Callable[[], Timing]:
    """Times a step, over `steps` of them."""

    def call() -> Timing:
        time.sleep(PAUSE)
        with Stopwatch() as watch:
            for _ in range(steps):
                step()
        return watch.per(steps)

    return call


def our_call(
    reference: Reference, ws: jax.Array, targets: jax.Array, steps: int
) -> Callable[[], Timing]:
    """Times a step of the engine's compiled loop of `steps`."""
    keys = jax.random.split(jax.random.key(2), len(ws))
    problem, total = BlockMeans(), jnp.asarray(10**6, jnp.int32)
    state = begin(problem, reference.generator, targets, ws)
    arguments = (problem, reference.generator, targets, keys, total, state)
    run = advance.lower(*arguments, length=steps).compile()

    def call() -> Timing:
        time.sleep(PAUSE)
        with Stopwatch() as watch:
            jax.block_until_ready(run(*arguments))
        return watch.per(steps)

    return call


# --- comparison -----------------------------------------------------------------------------


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Largest absolute difference, and the reference's largest value to compare it with."""
    return {
        "max_difference": float(np.abs(ours - theirs).max()),
        "max": float(np.abs(theirs).max()),
    }


def compare(
    reference: Reference, form: str, ws: jax.Array, targets: jax.Array
) -> dict[str, dict[str, float]]:
    """Differences of the images and of the gradients with respect to the styles."""

    @jax.jit
    def gradient(generator: Any, ws: jax.Array) -> jax.Array:
        def total(ws: jax.Array) -> jax.Array:
            return evaluate(BlockMeans(), generator, targets, ws)[0].sum()

        return jax.grad(total)(ws)

    image = jax.jit(lambda generator, ws: generator.synthesise(ws))(reference.generator, ws)
    step, styles = torch_step(reference, form, ws, targets)
    theirs = step().detach().cpu().numpy().transpose(0, 2, 3, 1)
    slope = styles.grad.detach().cpu().numpy()
    return {
        "image": difference(np.asarray(image), theirs),
        "gradient": difference(np.asarray(gradient(reference.generator, ws)), slope),
    }


def measure(
    reference: Reference, batch: int, *, steps: int, reference_steps: int, rounds: int
) -> dict[str, Any]:
    """One batch size: differences, seconds a step, ratios."""
    ws, targets = draw_inputs(reference, batch)
    agreement = {form: compare(reference, form, ws, targets) for form in reference.forms}
    calls = {OURS: our_call(reference, ws, targets, steps)}
    for form in reference.forms:
        step, _ = torch_step(reference, form, ws, targets)
        calls[form] = torch_call(step, reference_steps)
    interleaved(calls, 1)  # to warm up
    timings = interleaved(calls, rounds)
    found = ratios(timings, OURS)
    return {
        "batch": batch,
        "agreement": agreement,
        "seconds": {name: median(t.seconds for t in own) for name, own in timings.items()},
        "processor": {name: median(t.processor for t in own) for name, own in timings.items()},
        "ratios": {name: ratio.seconds for name, ratio in found.items()},
        "processor_ratios": {name: ratio.processor for name, ratio in found.items()},
        "rounds": timings,
    }


HEADER = (
    "batch  what                    s/step    ratio   CPU s    ratio  image differs by      "
    "gradient differs by"
)


def table(case: dict[str, Any]) -> str:
    """A case as lines of the printed table."""
    lines = []
    for name, seconds in case["seconds"].items():
        line = f"{case['batch']:>5}  {name:<22}{seconds:>8.3f}{case['ratios'][name]:>8.1f}x"
        line += f"{case['processor'][name]:>8.3f}{case['processor_ratios'][name]:>8.1f}x"
        if name in case["agreement"]:
            for part in ("image", "gradient"):
                found = case["agreement"][name][part]
                line += f"{found['max_difference']:>12.1e} of {found['max']:<8.2g}"
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    # Otherwise JAX takes most of a GPU's memory, and PyTorch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="PATH")
    parser.add_argument("--batch", default="1", help="numbers of starts, separated by commas")
    parser.add_argument("--resolution", type=int, default=256, help="px, of the random network")
    parser.add_argument("--channel-base", type=int, default=16384, help="of the random network")
    parser.add_argument("--steps", type=int, default=5, help="of ours in a round")
    parser.add_argument("--reference-steps", type=int, default=1, help="of the reference's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the measurements here as JSON")
    options = parser.parse_args(argv)
    return exit_code(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    """Measure every batch, print the table, write the JSON."""
    reference = load_reference(
        options.reference, resolution=options.resolution, channel_base=options.channel_base
    )
    machine = describe_machine()
    machine["versions"]["torch"] = reference.torch.__version__
    torch_device = f"{reference.device}, {reference.torch.get_num_threads()} threads"
    print(machine_line(machine))
    print(f"{reference.kind} on {torch_device}; {reference.generator.name}")
    print(HEADER)
    cases = []
    for batch in (int(text) for text in options.batch.split(",")):
        case = measure(
            reference,
            batch,
            steps=options.steps,
            reference_steps=options.reference_steps,
            rounds=options.rounds,
        )
        cases.append(case)
        print(table(case), flush=True)
        report = {
            "benchmark": "against",
            "reference": reference.kind,
            "generator": reference.generator.name,
            "reference_device": torch_device,
            "machine": machine,
            "cases": cases,
        }
        write_report(options.out, report)


if __name__ == "__main__":
    sys.exit(main())
