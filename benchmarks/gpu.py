"""What does one GPU do? The most valuable answers first, until a deadline.

    python -m benchmarks.gpu --out OUT [--seconds 360]

1. agreement: images, gradients and a short search on the GPU against those on the host's CPU.
2. steps: steps a second and memory for 1, 4, 16 and 64 starts on the default generator, float32.
3. solutions: solutions a minute of the presets, one start at a time and as many as memory takes.
4. roofline: the least time that a step of the default generator can take, see below.
5. stylegan2: steps of a full-size StyleGAN2 with random weights, float32 and half precision.
6. torch: 3x3 convolutions of StyleGAN2's sizes with their gradients, here and in PyTorch, if that
   is installed (whole steps against PyTorch: benchmarks.against).

Each row is printed, and written to OUT with everything before it, as soon as it is there:
table.md, gpu.json and gpu.png. A part is left where the last row's time would pass the deadline.

The roofline is the least time that a step can take at the device's published rates: its operations
over the rate of products, or its bytes over the memory's, whichever is longer. Operations are
counted as in benchmarks.step; bytes are XLA's own account of what it compiled here for one start.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import count_gflop, load_pyplot, machine_line, peak_bytes, timed
from benchmarks.step import TARGET, BlockMeans, random_generator
from benchmarks.studies.common import PORTRAIT
from stylesr_jax.degradations import Bicubic
from stylesr_jax.errors import UserError, exit_code, in_a_line
from stylesr_jax.generators.base import Generator
from stylesr_jax.images.files import read_image
from stylesr_jax.loading import load_generator
from stylesr_jax.runs.plan import load_parts, variant
from stylesr_jax.runs.records import write_json
from stylesr_jax.runtime import files
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure
from stylesr_jax.search.engine import advance, begin, evaluate
from stylesr_jax.solver.observation import place_on_canvas
from stylesr_jax.solver.solve import solve

SEED = 0
SEARCH_STEPS = 20  # of the short search of the first part
LR_SIZE = 16  # px of the input of the presets' searches
CONVOLUTIONS = ((64, 512), (256, 128), (1024, 32))  # (side, channels) of StyleGAN2 at 1024 px
DTYPES = ("float32", "bfloat16", "float16")  # of StyleGAN2's half-precision blocks
GOAL = 64, 4.0  # so many starts in the time of so many single ones

Row = dict[str, Any]


# --- Published rates ------------------------------------------------------------------------


class Rates(NamedTuple):
    """Peak rates of a device, without sparsity.

    Attributes:
        tflops: float32 outside of the tensor cores.
        tf32: of products in TF32 on tensor cores; equal to `tflops` where there are none.
        half: of products in bfloat16 or float16.
        terabytes: of memory traffic, a second.
    """

    tflops: float
    tf32: float
    half: float
    terabytes: float


# NVIDIA's data sheets of the SXM (H200, H100, A100, V100) and PCIe (L4, T4) boards; half of what
# is printed there "with sparsity". The RTX 4090's are those of the Ada architecture's white paper.
PUBLISHED = {
    "H200": Rates(67.0, 494.5, 989.5, 4.8),
    "H100": Rates(67.0, 494.5, 989.5, 3.35),
    "A100": Rates(19.5, 156.0, 312.0, 2.039),
    "L4": Rates(30.3, 60.0, 121.0, 0.3),
    "T4": Rates(8.1, 8.1, 65.0, 0.32),
    "V100": Rates(15.7, 15.7, 125.0, 0.9),
    "4090": Rates(82.6, 82.6, 165.2, 1.008),
}


def rates_of(kind: str) -> Rates | None:
    """The published rates of a device by its name, or None."""
    words = kind.replace("-", " ").split()
    return next((rates for name, rates in PUBLISHED.items() if name in words), None)


def roofline(gflop: float, gigabytes: float, rates: Rates, *, tensor_cores: bool) -> float:
    """The least seconds of some work at a device's peak rates."""
    peak = rates.tf32 if tensor_cores else rates.tflops
    return max(gflop / 1e3 / peak, gigabytes / 1e3 / rates.terabytes)


# --- One step -------------------------------------------------------------------------------


def step_arguments(generator: Generator, batch: int) -> tuple[Any, ...]:
    """What `engine.advance` takes for `batch` starts near the mean style."""
    mean = generator.statistics["w_mean"]
    noise = jax.random.normal(jax.random.key(SEED), (batch, generator.num_ws, generator.w_dim))
    targets = jax.random.uniform(jax.random.key(1), (batch, TARGET, TARGET, 3), minval=-1.0)
    keys = jax.random.split(jax.random.key(2), batch)
    problem = BlockMeans()
    state = begin(problem, generator, targets, mean + 0.1 * noise)
    return problem, generator, targets, keys, jnp.asarray(10**6, jnp.int32), state


def gradient(problem: Any, generator: Generator, targets: jax.Array, ws: jax.Array) -> jax.Array:
    """Of a step's loss, with respect to styles (batch, num_ws, w_dim)."""
    return jax.grad(lambda ws: evaluate(problem, generator, targets, ws)[0].sum())(ws)


def cost(generator: Generator) -> tuple[float, float]:
    """(GFLOP, gigabytes) of a gradient of one start: products by shapes, bytes by XLA's account."""
    portable = generator.replace(config=generator.config.portable())  # type: ignore[attr-defined]
    problem, _, targets, _, _, state = step_arguments(generator, 1)
    gflop = 2.0 * count_gflop(lambda g, ws: g.synthesise(ws), portable, state.variables)
    compiled = jax.jit(gradient).lower(problem, portable, targets, state.variables).compile()
    found: Any = compiled.cost_analysis() or {}
    return gflop, found.get("bytes accessed", 0.0) / 1e9


def time_steps(generator: Generator, batch: int, *, steps: int, repeats: int) -> Row:
    """Seconds a step in the engine's compiled loop, and memory; "memory" says that it is short."""
    try:
        arguments = step_arguments(generator, batch)
        compiled = advance.lower(*arguments, length=steps).compile()
        jax.block_until_ready(compiled(*arguments))
        seconds, _ = timed(lambda: compiled(*arguments), repeats)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"starts": batch, "memory": "too little"}
    return {
        "starts": batch,
        "steps_a_second": steps / seconds,
        "start_steps_a_second": batch * steps / seconds,
        "peak_gigabytes": peak_bytes() / 1e9,
    }


def step_rows(generator: Generator, starts: Sequence[int], options: Any) -> Iterator[Row]:
    """A row for each number of starts until memory is too little."""
    for batch in starts:
        row = time_steps(generator, batch, steps=options.steps, repeats=options.repeats)
        yield {"generator": generator.name, **row}
        if "memory" in row:
            return


# --- Parts ----------------------------------------------------------------------------------


def difference(what: str, ours: Any, reference: Any) -> Row:
    """The largest absolute difference of two arrays, beside the reference's largest value."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    most = float(np.abs(ours - reference).max())
    return {"what": what, "max_difference": most, "max": float(np.abs(reference).max())}


def agreement(options: Any) -> Iterator[Row]:
    """The first device against XLA on the CPU: an image, a gradient, losses of a short search."""
    here, host = jax.devices()[0], jax.devices("cpu")[0]
    generator = load_generator(options.generator)
    portable = generator.replace(config=generator.config.portable())  # type: ignore[attr-defined]
    problem, _, targets, keys, total, state = step_arguments(generator, 1)

    def on_both(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
        ours = function(*jax.device_put((generator, *arguments), here))
        return ours, function(*jax.device_put((portable, *arguments), host))

    image = jax.jit(lambda generator, ws: generator.synthesise(ws))
    yield difference("image", *on_both(image, state.variables))
    slope = jax.jit(lambda generator, targets, ws: gradient(problem, generator, targets, ws))
    yield difference("gradient", *on_both(slope, targets, state.variables))

    def losses(generator: Generator, *rest: Any) -> jax.Array:
        return advance(problem, generator, *rest, length=SEARCH_STEPS)[1]["l1"]

    yield difference("losses of a search", *on_both(losses, targets, keys, total, state))


def steps(options: Any) -> Iterator[Row]:
    """Steps of the default generator."""
    yield from step_rows(load_generator(options.generator), options.starts, options)


def rooflines(options: Any) -> Iterator[Row]:
    """What the device's rates would allow; on a device without published ones, those of all."""
    generator = load_generator(options.generator)
    gflop, gigabytes = cost(generator)
    own = rates_of(jax.devices()[0].device_kind)
    devices = PUBLISHED if own is None else {jax.devices()[0].device_kind: own}
    for name, rates in devices.items():
        bound = partial(roofline, gflop, gigabytes, rates)
        yield {
            "generator": generator.name,
            "device": name,
            "gflop": gflop,
            "gigabytes": gigabytes,
            "roofline_start_steps_a_second": 1.0 / bound(tensor_cores=False),
            "roofline_with_tf32": 1.0 / bound(tensor_cores=True),
        }


def solutions(options: Any) -> Iterator[Row]:
    """Whole searches of the presets from one input: one start, and the most together."""
    original = jnp.asarray(read_image(PORTRAIT))
    low = np.clip(np.asarray(Bicubic(size=LR_SIZE)(original)), -1.0, 1.0)
    observation = place_on_canvas(low)
    for preset in options.presets:
        one = variant("rls", preset=preset, evaluations=options.evaluations)
        parts = load_parts([one], generator=options.generator, prior=options.prior)
        del parts["weights_file"], parts["identity"]
        seconds: dict[int, float] = {}
        for count in (1, max(options.starts)):
            call = partial(solve, [observation], [jax.random.key(SEED)], **parts)
            call = partial(call, solutions=count, batch=count)
            try:
                call(method=one.method.with_budget(len(one.stages)))  # compiles
                began = time.perf_counter()
                call(method=one.method)
            except jax.errors.JaxRuntimeError as error:
                yield {"preset": preset, "starts": count, "memory": in_a_line(error)[:80]}
                continue
            seconds[count] = time.perf_counter() - began
            yield {
                "preset": preset,
                "starts": count,
                "evaluations": one.evaluations,
                "seconds": seconds[count],
                "solutions_a_minute": 60.0 * count / seconds[count],
                "of_one_start": seconds[count] / seconds[1] if 1 in seconds else None,
            }


def stylegan2(options: Any) -> Iterator[Row]:
    """Steps of a full-size StyleGAN2 with random weights, float32 and half precision."""
    generator = random_generator(
        resolution=options.resolution, channel_base=32 * options.resolution
    )
    for dtype in DTYPES:
        config = dataclasses.replace(generator.config, compute_dtype=dtype)  # type: ignore[call-arg]
        own = generator.replace(config=config)  # type: ignore[attr-defined]
        for row in step_rows(own, [n for n in options.starts if n <= 16], options):
            yield {**row, "blocks": dtype}


def torch(options: Any) -> Iterator[Row]:
    """Convolutions and their gradients, float32: milliseconds here and in PyTorch."""
    try:
        import torch as framework  # pyright: ignore[reportMissingImports]
    except ImportError:
        yield {"left_out": "PyTorch is not installed"}
        return
    for side, channels in CONVOLUTIONS:
        side = min(side, options.resolution)
        ours = 1e3 * _our_convolution(side, channels, options.repeats)
        theirs = 1e3 * _torch_convolution(framework, side, channels, options.repeats)
        shape = f"{side}x{side}x{channels}"
        yield {"convolution": shape, "ms": ours, "torch_ms": theirs, "ratio": theirs / ours}


def _our_convolution(side: int, channels: int, repeats: int) -> float:
    """Seconds of a 3x3 convolution, forward and back."""
    x = jax.random.normal(jax.random.key(0), (1, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
    dimensions = ("NHWC", "HWIO", "NHWC")

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        return (out * out).sum()

    call = jax.jit(jax.grad(loss))
    jax.block_until_ready(call(x, kernel))
    return timed(lambda: call(x, kernel), repeats)[0]


def _torch_convolution(torch: Any, side: int, channels: int, repeats: int) -> float:
    """Seconds of the same in PyTorch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(1, channels, side, side, device=device, requires_grad=True)
    kernel = torch.randn(channels, channels, 3, 3, device=device)

    def call() -> np.ndarray:
        out = torch.nn.functional.conv2d(x, kernel, padding=1)
        (slope,) = torch.autograd.grad((out * out).sum(), x)
        return slope[0, 0, 0].cpu().numpy()  # waits for the device

    call()
    return timed(call, repeats)[0]


PARTS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "agreement": agreement,
    "steps": steps,
    "solutions": solutions,
    "roofline": rooflines,
    "stylegan2": stylegan2,
    "torch": torch,
}


# --- The run --------------------------------------------------------------------------------


class Report(NamedTuple):
    """What was found so far.

    Attributes:
        out: folder of the files.
        machine: see `describe_machine`.
        parts: name -> rows.
    """

    out: Path
    machine: dict[str, Any]
    parts: dict[str, list[Row]]

    def add(self, part: str, row: Row) -> None:
        """Print a row and write all files."""
        self.parts.setdefault(part, []).append(row)
        print(f"{part}: {_in_words(row)}", flush=True)
        content = {"benchmark": "gpu", "machine": self.machine, "parts": self.parts}
        write_json(self.out / "gpu.json", content)
        with files.atomic_path(self.out / "table.md") as path:
            path.write_text(table(self))
        if rates := _measured(self):
            _draw(self.out / "gpu.png", rates)


def _in_words(row: Row) -> str:
    return ", ".join(f"{name} {_cell(value)}" for name, value in row.items())


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def table(report: Report) -> str:
    """The rows of each part as a table, and whether the goal is reached."""
    lines = ["# One GPU", "", machine_line(report.machine)]
    for name, rows in report.parts.items():
        lines += ["", f"## {name}", ""]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for row in rows:
            lines.append("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    return "\n".join([*lines, *goal(report.parts.get("solutions", []))]) + "\n"


def goal(rows: Sequence[Row]) -> list[str]:
    """A line for each preset of which so many starts were searched together."""
    starts, most = GOAL
    return [
        f"\n{row['preset']}: {starts} starts take {row['of_one_start']:.1f} times as long as one; "
        f"the goal of at most {most:.0f} is {'' if row['of_one_start'] <= most else 'not '}reached."
        for row in rows
        if row.get("starts") == starts and row.get("of_one_start") is not None
    ]


def _measured(report: Report) -> dict[str, list[tuple[int, float]]]:
    """Name -> (starts, steps of a start a second), of what was measured."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in (*report.parts.get("steps", []), *report.parts.get("stylegan2", [])):
        if "start_steps_a_second" in row:
            name = f"{row['generator']} {row.get('blocks', '')}".strip()
            found.setdefault(name, []).append((row["starts"], row["start_steps_a_second"]))
    return found


def _draw(path: Path, rates: dict[str, list[tuple[int, float]]]) -> None:
    """Steps of a start a second against starts."""
    pyplot = load_pyplot()
    figure, axis = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    for name, points in rates.items():
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="starts", ylabel="steps x starts a second")
    axis.legend()
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary)
    pyplot.close(figure)


def run(options: Any) -> Report:
    """All parts, until the deadline."""
    end = time.monotonic() + options.seconds
    configure()
    report = Report(options.out, describe_machine(), {})
    print(machine_line(report.machine), flush=True)
    for name in options.parts:
        rows = PARTS[name](options)
        longest = 0.0  # seconds of a row of this part
        while time.monotonic() + longest < end:
            began = time.monotonic()
            try:
                row = next(rows)
            except StopIteration:
                break
            except Exception as error:  # what one part cannot do says nothing of the next
                report.add(name, {"failed": in_a_line(error)[:200]})
                break
            longest = max(longest, time.monotonic() - began)
            report.add(name, row)
        else:
            report.add(name, {"left_out": "no time is left for the next row"})
    return report


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(part) for part in text.split(",")})
    if numbers[0] < 1:
        raise ValueError(text)
    return numbers


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        raise UserError(f"--parts {unknown[0]}: there are {', '.join(PARTS)}")
    return names


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="OUT", help="folder of the files")
    add("--seconds", type=float, default=360.0, metavar="S", help="until the last row begins")
    add("--parts", default=",".join(PARTS), help="which, in their order; default: all")
    add("--generator", default="mobile-ffhq-1024", metavar="NAME|PATH")
    add("--prior", metavar="FILE")
    add("--starts", type=_numbers, default="1,4,16,64", help="separated by commas")
    add("--presets", default="balanced,fast", help="separated by commas")
    add("--evaluations", type=int, metavar="N", help="steps of a solution instead of the preset's")
    add("--steps", type=int, default=10, help="steps in one compiled call")
    add("--repeats", type=int, default=3, help="calls, whose median counts")
    add("--resolution", type=int, default=1024, metavar="N", help="px of the random StyleGAN2")
    options = parser.parse_args(argv)

    def work() -> None:
        options.parts, options.presets = _parts(options.parts), options.presets.split(",")
        run(options)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
