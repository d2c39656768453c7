"""Which settings should RLS's presets have? Candidates against each other on the same faces.

    python -m benchmarks.presets "balanced:" "adam:optimiser=adam" --images DIR --out OUT

A candidate is NAME:SETTING=VALUE,...: RLS with some settings changed, `preset` among them, and
`times=5` for five times the steps. All see the same degraded faces. The table has the objective
that was minimised, comparable where its weights are alike, the low-resolution L1 to the input,
LPIPS-VGG and PSNR to the original and NIQE, all at 256 px, the mean log p of the styles under the
prior, and the deviation of the layers' styles around their mean, in whitened coordinates.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stylesr_jax.degradations import Bicubic, resize
from stylesr_jax.errors import exit_code
from stylesr_jax.images.files import find_images, read_image, write_png
from stylesr_jax.images.grid import draw_grid
from stylesr_jax.loading import load_generator
from stylesr_jax.methods import Method, method_named
from stylesr_jax.metrics.image import niqe, psnr
from stylesr_jax.metrics.lpips import load_features, lpips
from stylesr_jax.priors.flow import Prior, load_prior
from stylesr_jax.runs.records import Row, write_json
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure
from stylesr_jax.runtime.weights import DEFAULT
from stylesr_jax.solver.observation import key_of
from stylesr_jax.solver.result import Solution
from stylesr_jax.solver.solve import upsample

SCORED = 256  # px at which solutions are compared with originals
SEED = 0
COLUMNS = ("steps", "objective", "low_l1", "lpips", "psnr", "niqe", "log_p", "spread", "seconds")


def parse_candidate(text: str) -> tuple[str, Method]:
    """The candidate NAME:SETTING=VALUE,...: (name, RLS with its settings)."""
    name, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    changes = {key: value for key, _, value in pairs}
    preset, times = changes.pop("preset", "balanced"), int(changes.pop("times", 1))
    method = method_named("rls").resolve(preset, changes)
    return name, method.with_budget(times * method.steps_in_all)


class Face(NamedTuple):
    """An image of the comparison: its file's name and key, what is seen of it, and at 256 px."""

    name: str
    key: jax.Array
    low: np.ndarray
    reference: jax.Array


def small(image: Any) -> jax.Array:
    """(SCORED, SCORED, 3), clipped to [-1, 1]."""
    return jnp.clip(resize(jnp.asarray(image), (SCORED, SCORED)), -1.0, 1.0)


def read_face(path: Path, size: int) -> Face:
    """Read an original and shrink it to `size` px."""
    original = jnp.asarray(read_image(path))
    low = np.clip(np.asarray(Bicubic(size=size)(original)), -1.0, 1.0)
    key = key_of(SEED, hashlib.sha256(path.read_bytes()).hexdigest())
    return Face(path.name, key, low, small(original))


class Judge:
    """Scores of solutions; the feature network is read once."""

    def __init__(self, prior: Prior) -> None:
        network = load_features("vgg16")
        self.prior = prior
        self._distance = jax.jit(lambda a, b: lpips(a, b, net="vgg16", params=network))
        self._log_prob = jax.jit(lambda prior, u: prior.log_prob_whitened(u).mean())

    def scores(self, solution: Solution, face: Face) -> dict[str, float]:
        """All scores of a solution by the table's columns."""
        assert solution.latents is not None
        image = small(solution.image)
        u = self.prior.whiten(jnp.asarray(solution.latents.ws))
        return {
            "objective": solution.loss,
            "low_l1": solution.residual_l1,
            "lpips": float(self._distance(image, face.reference)),
            "psnr": float(psnr(image, face.reference, data_range=2.0)),
            "niqe": float(niqe(np.asarray(image))),
            "log_p": float(self._log_prob(self.prior, u)),
            "spread": float(jnp.sqrt(jnp.mean(jnp.square(u - u.mean(axis=0))))),
        }


def compare(
    face: Face,
    candidates: dict[str, Method],
    judge: Judge,
    *,
    generator: Any,
    solutions: int,
) -> tuple[list[Row], list[Any]]:
    """Rows of all candidates' solutions for a face, and its line of pictures."""
    rows: list[Row] = []
    line = [("original", np.asarray(face.reference), True), ("input", face.low, False)]
    for name, method in candidates.items():
        began = time.monotonic()
        result = upsample(
            face.low,
            generator=generator,
            prior=judge.prior,
            solutions=solutions,
            key=face.key,
            method=method,
        )
        seconds = (time.monotonic() - began) / solutions
        for i, solution in enumerate(result.solutions):
            about = {"candidate": name, "image": face.name, "solution": i, "seconds": seconds}
            about["steps"] = method.steps_in_all
            rows.append({**about, **judge.scores(solution, face)})
            print(json.dumps(rows[-1]), flush=True)
            line.append(
                (f"{name} {rows[-1]['lpips']:.3f}", np.asarray(small(solution.image)), True)
            )
    return rows, line


def table(rows: Sequence[Row]) -> str:
    """Means of each candidate's rows as Markdown."""
    lines = ["| candidate | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name in dict.fromkeys(row["candidate"] for row in rows):
        own = [row for row in rows if row["candidate"] == name]
        means = [f"{np.mean([row[column] for row in own]):.4g}" for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    """Compare on face after face; OUT shows those that are done."""
    candidates = dict(parse_candidate(text) for text in args.candidates)
    paths = find_images([args.images])[: args.limit]
    generator = load_generator(args.generator)
    judge, machine = Judge(load_prior(generator, args.prior)), describe_machine()
    more = {"generator": generator, "solutions": args.solutions}
    rows: list[Row] = []
    pictures = []
    for path in paths:
        found, line = compare(read_face(path, args.size), candidates, judge, **more)
        rows += found
        pictures.append(line)
        heading = (
            f"Means over {len(pictures)} faces, {args.size} px -> {generator.resolution} px; "
            f"{machine['date']}, {machine['machine']}\n\n"
        )
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.md").write_text(heading + table(rows))
        report = {"machine": machine, "candidates": args.candidates, "rows": rows}
        write_json(args.out / "table.json", report)
        write_png(args.out / "faces.png", draw_grid(pictures))
    print((args.out / "table.md").read_text())


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Compare candidate settings of RLS."
    )
    add = parser.add_argument
    add("candidates", nargs="+", metavar="NAME:SETTING=VALUE,...")
    add("--images", required=True, metavar="DIR", help="aligned faces larger than --size")
    add("--limit", type=int, default=8, metavar="N", help="images at most (default 8)")
    add("--size", type=int, default=16, metavar="N", help="default 16 px")
    add("--generator", default=DEFAULT, metavar="NAME|PATH")
    add("--prior", metavar="FILE")
    add("--solutions", type=int, default=1, metavar="N", help="of each candidate")
    add("--out", type=Path, required=True, metavar="OUT")
    args = parser.parse_args(argv)
    configure()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
