"""Compare methods on a folder of faces: python -m stylesr_jax.evaluate --images DIR --out OUT.

Every image is degraded, every method searches from the same low-resolution image with the same
number of generator evaluations (gradient steps, each one pass forward and back), and what it
finds is scored against the original. OUT receives table.md, table.json, rows.jsonl, rows.csv and
figures. A run that was killed goes on where it stopped when the same command is given again; a
failing image is listed and does not stop the rest. With --share several processes, on any machines
that see OUT, divide the work; each of them writes the whole table when all is done.

METHODS is a list of NAME, NAME@PRESET or NAME:SETTING=VALUE:SETTING=VALUE, each with LABEL= in
front if it shall be called otherwise: "bicubic,pulse@paper,rls,flat=rls:lambda_w=0".
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stylesr_jax.cli.options import PRESETS, add_scale, change, join, parser_of, whole
from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.metrics.scorer import Sizes
from stylesr_jax.runs.evaluation import EVALUATIONS, Plan, Say, Variant, load_parts, run, variant
from stylesr_jax.runs.tables import write_report


def evaluate(plan: Plan, *, say: Say = print) -> dict[str, Any]:
    """Run an evaluation, or what is left of it, and write its report.

    Raises:
        UserError: OUT cannot be written or the plan contradicts itself.
        KeyboardInterrupt: Ctrl-C, after the report of what was finished is written.
    """
    outcome = run(plan, say=say)
    summary = write_report(plan, outcome)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return summary


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("evaluate", __doc__)
    add = parser.add_argument
    add("--images", required=True, nargs="+", metavar="DIR", help="folders or files of originals")
    add("--out", required=True, metavar="OUT", help="where the results go")
    add("--methods", default="bicubic,pulse,brgm,rls", metavar="METHODS", help="see below")
    add("--limit", type=whole(1, 10**6), metavar="N", help="take the first N images only")
    add("--lr-size", type=whole(4, 256), default=16, metavar="N", help="default 16")
    add("--degradation", metavar="SPEC", help="of the data, e.g. 'motion(100)|bicubic(16)'")
    add(
        "--search-degradation",
        choices=("bicubic", "truth"),
        default="bicubic",
        help="what the search assumes of --degradation (default: plain bicubic)",
    )
    add("--noise-mask", metavar="FILE", help="white where the setting noise_std adds noise")
    add("--generator", metavar="NAME|PATH", help="default mobile-ffhq-1024")
    add("--prior", metavar="FILE", help="flow prior; default: the one that fits the generator")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--evaluations",
        "--steps",
        type=whole(1, 10**6),
        default=EVALUATIONS,
        metavar="N",
        help=f"generator evaluations for each solution of every method (default {EVALUATIONS})",
    )
    budget.add_argument(
        "--own-steps", action="store_true", help="as many steps as each preset says: not equal"
    )
    add("--preset", default="balanced", choices=PRESETS, help="of the methods that have it")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. rls.lambda_w=0.1")
    add("--solutions", type=whole(1, 1000), default=1, metavar="N", help="default 1")
    add("--seed", type=whole(0, 2**32 - 1), default=0, metavar="S", help="default 0")
    add("--score-size", type=whole(32, 4096), default=256, metavar="N", help="default 256 px")
    add("--niqe-size", type=whole(32, 4096), default=512, metavar="N", help="default 512 px")
    add("--frechet-size", type=whole(32, 4096), default=128, metavar="N", help="default 128 px")
    add("--reference", metavar="DIR|SHEET", help="pictures for the Fréchet distance")
    add("--reference-tile", type=whole(16, 4096), default=128, metavar="N", help="of a SHEET")
    add("--inception", metavar="FILE|URL", help="Inception weights: only with them there is FID")
    add("--figure-images", type=whole(1, 64), default=6, metavar="N", help="rows of the figure")
    add_scale(parser)
    add("--quiet", action="store_true", help="print errors only")
    return parser


def _changes(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """--set METHOD.SETTING=VALUE by method."""
    changes: dict[str, dict[str, str]] = {}
    for text in texts:
        method, setting, value = change(text)
        changes.setdefault(method, {})[setting] = value
    return changes


def _variants(args: argparse.Namespace) -> tuple[Variant, ...]:
    changes = _changes(args.set)
    budget = None if args.own_steps else args.evaluations
    variants = []
    for text in args.methods.split(","):
        plain = variant(text, preset=args.preset, evaluations=budget)
        own = changes.get(plain.method.name)
        if own:
            plain = variant(text, preset=args.preset, changes=own, evaluations=budget)
        variants.append(plain)
    unused = set(changes) - {one.method.name for one in variants}
    if unused:
        raise UserError(f"--set {sorted(unused)[0]}.…: that method is not among --methods")
    return tuple(variants)


def _plan(args: argparse.Namespace) -> Plan:
    from stylesr_jax.degradations import parse
    from stylesr_jax.images.files import find_images, read_mask
    from stylesr_jax.solver.solve import device_mesh

    place = join(args)  # before anything touches a device
    images = tuple(find_images(args.images)[: args.limit])
    variants = _variants(args)
    degradation = parse(args.degradation) if args.degradation else None
    if args.reference is not None and not Path(args.reference).exists():
        raise UserError(f"--reference {args.reference}: no such file or folder; check the path")
    return Plan(
        images=images,
        variants=variants,
        out=Path(args.out),
        lr_size=args.lr_size,
        degradation=degradation,
        truth=args.search_degradation == "truth",
        solutions=args.solutions,
        seed=args.seed,
        batch=args.batch,
        mesh=device_mesh(args.devices),
        share=args.share,
        stale=args.stale,
        place=place,
        sizes=Sizes(args.score_size, args.niqe_size, args.frechet_size),
        reference=Path(args.reference) if args.reference else None,
        reference_tile=args.reference_tile,
        inception=args.inception,
        noise_mask=read_mask(args.noise_mask) if args.noise_mask else None,
        figure_images=args.figure_images,
        **load_parts(variants, generator=args.generator, prior=args.prior),
    )


def _run(args: argparse.Namespace) -> int:
    from stylesr_jax.runtime.machine import describe_machine
    from stylesr_jax.runtime.startup import configure

    say: Say = (lambda _: None) if args.quiet else partial(print, flush=True)
    configure()
    plan = _plan(args)
    say(
        f"{describe_machine()['device']}; {plan.generator.name}; {len(plan.images)} image(s), "
        f"{plan.solutions} solution(s) each; generator evaluations for a solution: "
        + ", ".join(f"{one.label} {one.evaluations}" for one in plan.variants)
    )
    summary = evaluate(plan, say=say)
    say("\n" + (plan.out / "table.md").read_text(encoding="utf-8"))
    for one in summary["failed"]:
        print(f"error: {one['image']}, {one['method']}: {one['message']}", file=sys.stderr)
    return 2 if summary["failed"] else 0


def main(argv: list[str] | None = None) -> int:
    """The command line; exit code 0 well, 2 if anything failed, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    again = "interrupted; give the same command again to go on"
    return exit_code(partial(_run, args), interrupted=again)


if __name__ == "__main__":
    sys.exit(main())
