"""What `python -m stylesr_jax.upsample` does."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
from stylesr_jax.cli.options import ALIGNMENTS, change
from stylesr_jax.errors import UserError
from stylesr_jax.images.files import write_image
from stylesr_jax.images.kinds import printable
from stylesr_jax.loading import generator_from_file, generator_path
from stylesr_jax.methods import method_named
from stylesr_jax.methods.base import Method, Value
from stylesr_jax.methods.levers import layer_range
from stylesr_jax.runs import pace
from stylesr_jax.runs.alignment import Alignment, read_points
from stylesr_jax.runs.folder import read_solutions
from stylesr_jax.runs.latents import read_styles
from stylesr_jax.runs.photos import PhotosJob, PhotosPlan, device_line, duration
from stylesr_jax.runs.places import make_ready
from stylesr_jax.runs.plan import Variant
from stylesr_jax.runs.worker import work
from stylesr_jax.runtime import files
from stylesr_jax.runtime.memory import gc_paused
from stylesr_jax.runtime.storage import path_of
from stylesr_jax.runtime.weights import DEFAULT
from stylesr_jax.solver.rendering import add_correction, redraw, redraw_direct


def run(args: argparse.Namespace, console: Console) -> int:
    """Search for all inputs, or redraw; the exit code."""
    if args.source is not None:
        return _redraw(args, console)
    photos, mistaken = images_named(args.inputs, console, recursive=args.recursive)
    make_ready(path_of(args.out), depth=2)
    with gc_paused():
        plan = _plan(args, photos, console)
    say_notes(plan.weights_file, console)
    _announce(plan, console, device_line() if args.cluster is None else "a Ray cluster's")
    job = PhotosJob(plan, say=console.say, error=console.error)
    job.progress = partial(_show_progress, console, plan.solutions)
    if args.cluster is None:
        work(plan.part(photos), job)
    else:
        on_cluster(args, photos, job, partial(_job_on_worker, args, photos), console)
    if len(photos) > 1:
        job.write_summary()
    return 2 if mistaken or job.failed else 0


def _job_on_worker(args: argparse.Namespace, photos: tuple[Path, ...]) -> PhotosJob:
    """The command's job in a worker of a cluster, which sees to what is said."""
    plan = _plan(args, photos, Console(quiet=True))
    return PhotosJob(plan, say=say_nothing, error=say_nothing)


def _show_progress(
    console: Console, solutions: int, subject: Any, index: int, *values: Any
) -> None:
    console.progress(f"{subject.shown} {index + 1}/{solutions}", *values)


def _announce(plan: PhotosPlan, console: Console, device: str) -> None:
    steps, generator = plan.variant.evaluations, plan.generator
    inputs, seconds = len(plan.part(plan.photos)), pace.seconds_of_a_solution(plan)
    console.say(
        "start",
        f"device {device}; generator {generator.name} ({generator.resolution} px); "
        f"{plan.variant.label}, {plan.variant.preset}: {inputs} input(s) x "
        f"{plan.solutions} solution(s) x {steps} steps"
        + ("" if seconds is None else f", about {duration(seconds)} each"),
        device=device,
        generator=generator.name,
        method=plan.variant.label,
        preset=plan.variant.preset,
        inputs=inputs,
        solutions=plan.solutions,
        steps=steps,
        seconds_each=seconds,
    )


# --- From options to a plan -----------------------------------------------------------------


def _changes(args: argparse.Namespace) -> dict[str, Value]:
    """--set NAME=VALUE and the levers as changes to the method's settings."""
    changes: dict[str, Value] = {}
    for name in ("noise_std", "diversity"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    if args.inject_noise is not None:
        changes["inject_noise"], at, layers = args.inject_noise.partition("@")
        if at:
            changes["inject_layers"] = layers
    if args.fidelity.share is not None:
        changes["fidelity"] = args.fidelity.share
    for text in args.set:
        method, setting, value = change(text)
        if method != args.method:
            raise UserError(f"--set {text}: the method is {args.method}, not {method}")
        changes[setting] = value
    return changes


def _variant(args: argparse.Namespace, console: Console) -> Variant:
    method = method_named(args.method).resolve(args.preset, _changes(args))
    if args.steps is not None:
        if not method.steps_in_all:
            text = f"warning: --steps {args.steps} does nothing: {method.name} has no search"
            console.say("warning", text)
        method = method.with_budget(args.steps)
    return Variant(method.name, method, args.preset)


def _check(args: argparse.Namespace, method: Method) -> None:
    """Raise UserError for options that do not go together."""
    if args.noise_mask is not None and not method.settings.get("noise_std"):
        raise UserError("--noise-mask needs --noise-std, e.g. --noise-std 0.1")
    if args.start is not None:
        method.from_styles()
    if args.uncertainty and args.solutions < 2:
        raise UserError("a deviation over solutions needs two of them at least: --solutions 2")


def _alignment(args: argparse.Namespace, photos: Sequence[Path], console: Console) -> Alignment:
    if args.align in ALIGNMENTS:
        return Alignment(args.align, most=args.faces)
    alignment = Alignment(marked=read_points(args.align), most=args.faces)
    for name in alignment.unused(photos):
        where, named = printable(args.align), printable(name)
        console.say("warning", f"warning: {where} names {named}, which is not among the inputs")
    return alignment


def _plan(args: argparse.Namespace, photos: tuple[Path, ...], console: Console) -> PhotosPlan:
    variant = _variant(args, console)
    _check(args, variant.method)
    alignment = _alignment(args, photos, console)
    fields = plan_fields(args, [variant])
    generator, mask = fields["generator"], args.noise_mask
    layers = str(variant.settings.get("inject_layers", "all"))
    layer_range(layers, len(generator.noise_shapes))  # what is wrong with them is said at once
    start = None if args.start is None else read_styles(args.start, generator)
    return PhotosPlan(
        photos=photos,
        generator_name=args.generator or DEFAULT,
        alignment=alignment,
        paste_back=args.paste_back,
        scale=args.scale,
        noise_mask_sha256=files.sha256(mask) if mask else None,
        start=start,
        resume=args.resume or args.cluster is not None,
        uncertainty=args.uncertainty,
        only_images=args.only_images,
        format=args.format,
        flat=args.flat,
        **fields,
    )


# --- Redrawing ------------------------------------------------------------------------------


REDRAWN_BY = {"generator", "weights_sha256", "method", "block"}  # of a solutions.npz


def _redraw(args: argparse.Namespace, console: Console) -> int:
    """Draw the pictures of a solutions.npz again, beside it or in --out."""
    config = read_solutions(args.source).config
    if missing := REDRAWN_BY - config.keys():
        raise UserError(f"{args.source} does not say its {min(missing)}; search again")
    weights_file = _weights_of(config, args)
    generator = generator_from_file(weights_file)
    say_notes(weights_file, console)
    saved = read_solutions(args.source, generator)
    out = Path(args.out) if args.out else Path(args.source).parent
    for i, latents in enumerate(saved.latents):
        if latents is None:
            method = method_named(config["method"])()
            image = redraw_direct(method, saved.observation, generator.resolution)
        else:
            image = redraw(generator, latents, block=int(config["block"]))
        image = add_correction(saved.observation.crop(image), saved.corrections[i])
        file = out / f"solution_{i}.{args.format}"
        write_image(file, image, format=args.format)
        console.say("result", printable(file), file=str(file))
    return 0


def _weights_of(config: Mapping[str, Any], args: argparse.Namespace) -> Path:
    """The file of the generator that drew the saved solutions, recognised by its hash."""
    wanted = config["weights_sha256"]
    for path in _likely_weights(config, args.generator):
        if os.path.isfile(path) and files.sha256(path) == wanted:
            return path
    raise UserError(
        f"{args.source} was drawn with weights of sha256 {wanted[:12]}... that are not "
        f"{args.generator or 'here'}; give the file of {config['generator']} with --generator"
    )


def _likely_weights(config: Mapping[str, Any], generator: str | None) -> Iterator[Path]:
    """Where the weights may be: as given, else as named, where they were, embedded, cached."""
    if generator is not None:
        yield generator_path(generator)
        return
    with suppress(UserError):
        yield generator_path(config["generator"])
    if "generator_file" in config:
        yield Path(config["generator_file"])
    yield generator_path(DEFAULT)
    yield from sorted((files.cache_dir() / "generators").glob("*.safetensors"))
