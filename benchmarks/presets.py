"""Which settings should RLS's presets have? Candidates against each other on the same faces.

    python -m benchmarks.presets --images DIR --limit 8 --size 16 --out benchmarks/results/presets

Each candidate is RLS with some settings changed; all see the same degraded faces. The table says
how well the solution explains the input (low-resolution L1), how near it is to the original
(LPIPS-VGG and PSNR at 256 px), how natural (NIQE at 256 px, mean log p of the prior) and how far
the layers' styles spread.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stylesr_jax.degradations import Bicubic, resize
from stylesr_jax.images.files import find_images, read_image, write_png
from stylesr_jax.images.grid import draw_grid
from stylesr_jax.loading import load_generator
from stylesr_jax.methods import method_named
from stylesr_jax.metrics.image import niqe, psnr
from stylesr_jax.metrics.lpips import load_features, lpips
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.runs.records import write_json
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure
from stylesr_jax.solver.solve import key_of, upsample

SCORED = 256  # px at which solutions are compared with originals


def parse_candidate(text: str) -> tuple[str, dict[str, str]]:
    """The candidate `name:setting=value,setting=value`: (name, settings)."""
    name, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    return name, {key: value for key, _, value in pairs}


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Compare candidate settings of RLS."
    )
    parser.add_argument("candidates", nargs="+", help="NAME:SETTING=VALUE,...")
    parser.add_argument("--images", required=True, help="aligned faces larger than --size")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--generator", default="mobile-ffhq-1024")
    parser.add_argument("--prior")
    parser.add_argument("--solution", type=int, default=1, help="how many solutions each")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    configure()
    generator = load_generator(args.generator)
    prior = load_prior(generator, args.prior)
    network = load_features("vgg16")
    method = method_named("rls")
    distance = jax.jit(lambda a, b: lpips(a, b, net="vgg16", params=network))
    log_prob = jax.jit(lambda prior, w: prior.log_prob_whitened(prior.whiten(w)).mean())
    paths = find_images([args.images])[: args.limit]
    rows, pictures = [], []
    for path in paths:
        original = jnp.asarray(read_image(path))
        low = np.clip(np.asarray(Bicubic(size=args.size)(original)), -1.0, 1.0)
        reference = jnp.clip(resize(original, (SCORED, SCORED)), -1.0, 1.0)
        line = [("original", np.asarray(reference), True), ("input", low, False)]
        for text in args.candidates:
            name, changes = parse_candidate(text)
            preset = changes.pop("preset", "balanced")
            began = time.monotonic()
            result = upsample(
                low,
                generator=generator,
                prior=prior,
                solutions=args.solution,
                key=key_of(0, path.name),
                preset=preset,
                settings=changes,
            )
            for i, one in enumerate(result.solutions):
                small = jnp.clip(resize(jnp.asarray(one.image), (SCORED, SCORED)), -1.0, 1.0)
                assert one.latents is not None
                ws = jnp.asarray(one.latents.ws)
                u = prior.whiten(ws)
                rows.append(
                    {
                        "candidate": name,
                        "image": path.name,
                        "solution": i,
                        "steps": int(method.resolve(preset, changes)["steps"]),
                        "low_l1": one.residual_l1,
                        "lpips": float(distance(small, reference)),
                        "psnr": float(psnr(small, reference, data_range=2.0)),
                        "niqe": float(niqe(np.asarray(small))),
                        "log_p": float(log_prob(prior, ws)),
                        "spread": float(jnp.sqrt(jnp.mean(jnp.square(u - u.mean(axis=0))))),
                        "seconds": (time.monotonic() - began) / args.solution,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
                line.append((f"{name} {rows[-1]['lpips']:.3f}", np.asarray(small), True))
        pictures.append(line)
        names = list(dict.fromkeys(row["candidate"] for row in rows))
        columns = ["steps", "low_l1", "lpips", "psnr", "niqe", "log_p", "spread", "seconds"]
        table = ["| candidate | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        for name in names:
            own = [row for row in rows if row["candidate"] == name]
            means = [f"{np.mean([row[c] for row in own]):.4g}" for c in columns]
            table.append(f"| {name} | " + " | ".join(means) + " |")
        machine = describe_machine()
        args.out.mkdir(parents=True, exist_ok=True)
        heading = (
            f"Means over {len(pictures)} faces, {args.size}x{args.size} -> "
            f"{generator.resolution}; {machine['date']}, {machine['machine']}\n\n"
        )
        (args.out / "table.md").write_text(heading + "\n".join(table) + "\n")
        write_json(
            args.out / "table.json",
            {"machine": machine, "candidates": args.candidates, "rows": rows},
        )
        write_png(args.out / "faces.png", draw_grid(pictures))
    print((args.out / "table.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
