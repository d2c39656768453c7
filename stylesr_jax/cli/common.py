"""What the searching commands share once JAX is there."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stylesr_jax.cli.console import Console
from stylesr_jax.degradations import parse
from stylesr_jax.errors import UserError
from stylesr_jax.images.files import find_pictures, read_mask
from stylesr_jax.loading import notes_of
from stylesr_jax.runs import cluster
from stylesr_jax.runs.places import distinct
from stylesr_jax.runs.plan import Shard, Variant, load_parts
from stylesr_jax.runs.worker import Job
from stylesr_jax.runtime.storage import path_of
from stylesr_jax.solver.solve import device_mesh


def plan_fields(args: argparse.Namespace, variants: Sequence[Variant]) -> dict[str, Any]:
    """The fields of `Plan` that options of both commands say, with what is loaded for them."""
    return {
        "variants": tuple(variants),
        "out": path_of(args.out),
        "lr_size": args.lr_size,
        "degradation": parse(args.degradation) if args.degradation else None,
        "truth": args.search_degradation == "truth",
        "solutions": args.solutions,
        "seed": args.seed,
        "batch": args.batch,
        "mesh": device_mesh(args.devices),
        "shard": None if args.shard is None else Shard(*args.shard),
        "noise_std": args.fidelity.std,
        "noise_mask": read_mask(args.noise_mask) if args.noise_mask else None,
        **load_parts(variants, generator=args.generator, label=args.label, prior=args.prior),
    }


def say_notes(weights_file: str | os.PathLike[str] | None, console: Console) -> None:
    """Tell what the converter had to say of the generator's file."""
    if weights_file is not None:
        for note in notes_of(weights_file):
            console.note(note)


def say_nothing(*_: Any, **__: Any) -> None:
    """Instead of what tells the user something."""


def on_cluster(
    args: argparse.Namespace,
    paths: Sequence[Path],
    job: Job[Any],
    make_job: Callable[[], Job[Any]],
    console: Console,
) -> None:
    """Do a job's work on the cluster that --cluster names."""

    def show(done: int, total: int) -> None:
        console.progress("inputs", done, total, {})

    cluster.work(paths, job, make_job, address=args.cluster, workers=args.workers, on_progress=show)


def images_named(
    texts: Sequence[str], console: Console, *, recursive: bool = False
) -> tuple[tuple[Path, ...], int]:
    """The images of all inputs, each once, and how many inputs named none, which are reported.

    Files that look like pictures and cannot be read are named.

    Raises:
        UserError: there is no image at all; the message is the first input's.
    """
    paths: list[Path] = []
    errors: list[tuple[str, UserError]] = []
    skipped: list[str] = []
    for text in texts:
        try:
            pictures = find_pictures([os.path.expanduser(text)], recursive=recursive)
            paths += pictures.paths
            skipped += pictures.skipped
        except UserError as error:
            errors.append((text, error))
    for line in skipped:
        console.say("warning", f"warning: {line}")
    for text, error in errors if paths else errors[1:]:
        console.error(str(error), input=text)
    if not paths:
        raise errors[0][1]
    return tuple(distinct(paths)), len(errors)
