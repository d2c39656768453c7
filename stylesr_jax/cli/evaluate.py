"""What `python -m stylesr_jax.evaluate` does."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stylesr_jax.cli.common import (
    images_named,
    on_cluster,
    plan_fields,
    say_notes,
    say_nothing,
)
from stylesr_jax.cli.console import Console
from stylesr_jax.cli.options import change
from stylesr_jax.errors import UserError
from stylesr_jax.metrics.scorer import Sizes
from stylesr_jax.runs.evaluation import EvaluationJob, EvaluationPlan, Say
from stylesr_jax.runs.evaluation import run as run_plan
from stylesr_jax.runs.plan import Variant, variant
from stylesr_jax.runs.tables import reference_features, write_report
from stylesr_jax.runs.worker import work
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.storage import Url

Do = Callable[[Sequence[Path], EvaluationJob], None]  # all that is left of a job


def evaluate(
    plan: EvaluationPlan,
    *,
    say: Say = print,
    do: Do = work,
) -> dict[str, Any]:
    """Run an evaluation, or what is left of it, and write its report; see `evaluation.run`.

    Raises:
        UserError: OUT cannot be written or the plan contradicts itself.
        KeyboardInterrupt: Ctrl-C, after the report of what was finished is written.
    """
    if plan.reference is not None and len(plan.images) > 1:
        reference_features(plan)  # what is wrong with it is said before anything is searched for
    outcome = run_plan(plan, say=say, do=do)
    summary = write_report(plan, outcome)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return summary


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate as the options say; the exit code."""
    paths, mistaken = images_named(args.images, console)
    plan = _plan(args, paths[: args.limit])
    say_notes(plan.weights_file, console)
    images = len(plan.part(plan.images))
    device = "a Ray cluster" if args.cluster else describe_machine()["device"]
    console.line(
        f"{device}; {plan.generator.name}; {images} image(s), "
        f"{plan.solutions} solution(s) each; generator evaluations for a solution: "
        + ", ".join(f"{v.label} {v.evaluations}" for v in plan.variants)
    )
    if plan.shard is not None:
        failed = _evaluate_part(plan, console)
    else:
        failed = _evaluate_all(plan, console, _doer(args, plan, console))
    for image, method, message in failed:
        console.error(f"{image}, {method}: {message}")
    return 2 if mistaken or failed else 0


def _doer(args: argparse.Namespace, plan: EvaluationPlan, console: Console) -> Do:
    """What does the work: the loop in this process, or a cluster."""
    if args.cluster is None:
        return work
    make_job = partial(_job_on_worker, args, plan.images)

    def do(paths: Sequence[Path], job: EvaluationJob) -> None:
        on_cluster(args, paths, job, make_job, console)

    return do


def _job_on_worker(args: argparse.Namespace, images: tuple[Path, ...]) -> EvaluationJob:
    """The command's job in a worker of a cluster, which sees to what is said."""
    return EvaluationJob(_plan(args, images), say_nothing)


def _evaluate_all(plan: EvaluationPlan, console: Console, do: Do) -> Sequence[tuple[str, str, str]]:
    """Evaluate and print the table; (image, label, message) of what failed."""
    summary = evaluate(plan, say=console.line, do=do)
    console.line("\n" + (plan.out / "table.md").read_text(encoding="utf-8"))
    return [
        (failure["image"], failure["method"], failure["message"]) for failure in summary["failed"]
    ]


def _evaluate_part(plan: EvaluationPlan, console: Console) -> Sequence[tuple[str, str, str]]:
    """Evaluate a shard, of which there is no table; (image, label, message) of what failed."""
    outcome = run_plan(plan, say=console.line)
    if outcome.interrupted:
        raise KeyboardInterrupt
    console.line("this part is done; after all parts, the command without --shard writes the table")
    return outcome.failed


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
        settings = changes.get(plain.method.name)
        if settings:
            plain = variant(text, preset=args.preset, changes=settings, evaluations=budget)
        plain = _with_share(plain, text, args.fidelity.share)
        variants.append(plain)
    unused = set(changes) - {v.method.name for v in variants}
    if unused:
        raise UserError(f"--set {sorted(unused)[0]}.…: that method is not among --methods")
    _check_preset(args.preset, variants)
    return tuple(variants)


def _with_share(plain: Variant, text: str, share: float | None) -> Variant:
    """With --fidelity, unless the variant says its own."""
    if share is None or "fidelity" not in plain.settings or "fidelity=" in text:
        return plain
    return replace(plain, method=plain.method.changed({"fidelity": share}))


def _check_preset(preset: str, variants: Sequence[Variant]) -> None:
    """Raise UserError unless a preset for all methods is one that some method has."""
    names = {"balanced", *(name for v in variants for name in v.method.presets)}
    if preset not in names:
        raise UserError(
            f"--preset {preset}: no method among --methods has it; they have "
            f"{', '.join(sorted(names))}"
        )


def _plan(args: argparse.Namespace, images: tuple[Path, ...]) -> EvaluationPlan:
    variants = _variants(args)
    if args.reference is not None and not os.path.exists(args.reference):
        raise UserError(f"--reference {args.reference}: no such file or folder; check the path")
    fields = plan_fields(args, variants)
    in_bucket = isinstance(fields["out"], Url)
    return EvaluationPlan(
        images=images,
        sizes=Sizes(args.score_size, args.niqe_size, args.frechet_size),
        reference=Path(args.reference) if args.reference else None,
        reference_tile=args.reference_tile,
        inception=args.inception,
        figure_images=args.figure_images,
        apart=args.shard is not None or args.cluster is not None or in_bucket,
        **fields,
    )
