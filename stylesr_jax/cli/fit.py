"""What `fit_prior`, `fit_heads` and `fit_estimate` do: fit what guides a generator's search."""

import argparse
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from stylesr_jax.cli.common import say_notes
from stylesr_jax.cli.console import Console
from stylesr_jax.errors import UserError
from stylesr_jax.generators.mobile.heads import heads_folder, save_heads, synthesis_sha256
from stylesr_jax.generators.mobile.network import MobileConfig
from stylesr_jax.loading import generator_from_file, generator_path
from stylesr_jax.priors import estimate, flow
from stylesr_jax.priors.autoregressive import FlowConfig
from stylesr_jax.priors.fit import Progress, fit
from stylesr_jax.priors.fit_heads import (
    HELD_OUT,
    PICTURE,
    SIZES,
    Say,
    fit_head,
    render_pictures,
)
from stylesr_jax.priors.styles import draw_styles
from stylesr_jax.priors.whitening import draw_w
from stylesr_jax.runtime import weights
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _print_progress(progress: Progress) -> None:
    line = (
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.2f}  "
        f"held out {progress.held_out:.2f} nats  {_duration(progress.seconds_left)} left"
    )
    if sys.stderr.isatty():
        end = "\n" if progress.step >= progress.steps else ""
        print(f"\r\033[K{line}", end=end, file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def fit_prior(options: argparse.Namespace) -> Path:
    """Fit a prior and write it; returns its file.

    Raises:
        UserError: the options do not fit the generator, or a file cannot be read or written.
    """
    configure()
    weights_file = generator_path(options.generator)
    generator = generator_from_file(weights_file)
    key = jax.random.key(options.seed)
    class_key, fit_key, figure_key = jax.random.split(key, 3)
    radial_key = jax.random.fold_in(key, 3)
    name = generator.name
    if options.label is not None:
        generator = generator.with_class(options.label, key=class_key)
        name = f"{name}-class-{options.label}"
    elif generator.label_dim:
        raise UserError(
            f"{name} is conditional: choose a class from 0 to {generator.label_dim - 1} (--class)"
        )
    folder = flow.priors_folder()
    mapping = flow.mapping_sha256(generator)[:12]
    out = options.out or folder / f"prior-{name}-{mapping}.safetensors"
    checkpoint = out.with_name(out.name + ".checkpoint")
    flow_config = FlowConfig(
        dim=generator.w_dim,
        blocks=options.blocks,
        width=options.width,
        log_scale_bound=options.log_scale_bound,
        input_bound=options.input_bound,
        noise=options.noise,
        tail=options.tail,
        reach=options.reach,
        floor=options.floor,
    )
    fit_config = flow.FitConfig(
        steps=options.steps, batch=options.batch, learning_rate=options.learning_rate
    )
    start = None
    if options.start is not None:
        start = flow.without_radial(flow.load_prior(generator, options.start))
        flow_config = dataclasses.replace(flow_config, floor=start.config.floor)
    say_notes(weights_file, Console(quiet=options.quiet))
    begin = time.monotonic()
    try:
        exact = fit(
            fit_key,
            generator,
            flow_config=flow_config,
            fit_config=fit_config,
            start=start,
            whitening_draws=options.whitening_draws,
            checkpoint=checkpoint,
            checkpoint_every=options.checkpoint_every,
            resume=options.resume,
            report=None if options.quiet else _print_progress,
        )
    except KeyboardInterrupt:
        print(f"\nstopped; {checkpoint} is kept: continue with --resume", file=sys.stderr)
        raise
    if options.radial:
        exact = flow.with_radial(radial_key, exact, generator)
    prior = flow.stored_precision(exact)
    figures = jax.tree.map(float, flow.prior_figures(figure_key, prior, generator))
    w = draw_w(figure_key, generator, 1000)
    change = np.abs(np.asarray(prior.log_prob(w) - exact.log_prob(w)))
    figures["rounding_max"] = float(change.max())
    flow.save_prior(
        out,
        prior,
        generator,
        header={
            "noise": options.noise,
            "floor": flow_config.floor,
            "start": None if options.start is None else weights.read_header(options.start),
            "fit": dataclasses.asdict(fit_config),
            "seed": options.seed,
            "figures": figures,
            "seconds": round(time.monotonic() - begin),
            **describe_machine(),
        },
    )
    checkpoint.unlink(missing_ok=True)
    if not options.quiet:
        print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return out


def fit_heads(options: argparse.Namespace) -> Path:
    """Fit the heads of a generator and write them; returns their file.

    Raises:
        UserError: the generator needs none, or the options make no sense.
    """
    configure()
    weights_file = generator_path(options.generator)
    generator = generator_from_file(weights_file)
    if not isinstance(generator.config, MobileConfig):
        raise UserError(f"{generator.name} is no MobileStyleGAN; only those need heads")
    if options.draws < 2 * HELD_OUT:
        raise UserError(f"--draws must be at least {2 * HELD_OUT}, not {options.draws}")
    if options.steps < 1 or not options.learning_rate > 0:
        raise UserError("--steps and --learning-rate must be positive")
    sizes = [size for size in SIZES if 4 * size <= generator.resolution]
    if not sizes:
        raise UserError(f"{generator.name} is too small to gain from heads")
    say_notes(weights_file, Console(quiet=options.quiet))
    say: Say = (lambda text: None) if options.quiet else partial(print, flush=True)
    default = heads_folder() / f"{synthesis_sha256(generator)[:12]}.safetensors"
    out = options.out or default
    keep = out.with_name(out.name + ".pictures")
    draw_key, *head_keys = jax.random.split(jax.random.key(options.seed), 1 + len(sizes))
    styles = draw_styles(draw_key, generator, options.draws)
    pictures = render_pictures(generator, styles, size=PICTURE, keep=keep, say=say)
    heads, figures = {}, {}
    for size, key in zip(sizes, head_keys, strict=True):
        heads[size], figures[str(size)] = fit_head(
            key,
            generator,
            size,
            styles,
            pictures,
            steps=options.steps,
            learning_rate=options.learning_rate,
            say=say,
        )
    header = {
        "fit": {name: getattr(options, name) for name in ("draws", "steps", "learning_rate")},
        "seed": options.seed,
        "figures": figures,
        **describe_machine(),
    }
    save_heads(out, generator, heads, header)
    keep.unlink(missing_ok=True)
    return out


def fit_estimate(options: argparse.Namespace) -> Path:
    """Fit the estimate of a generator and write it; returns its file.

    Raises:
        UserError: the generator is conditional, or a file cannot be read or written.
    """
    configure()
    weights_file = generator_path(options.generator)
    generator = generator_from_file(weights_file)
    if generator.label_dim:
        raise UserError(f"{generator.name} is conditional; only others have an estimate")
    say_notes(weights_file, Console(quiet=options.quiet))
    digest = estimate.generator_sha256(generator)[:12]
    out = options.out or estimate.estimates_folder() / f"{digest}.safetensors"
    keep = out.with_name(out.name + ".sums")
    params, figures = estimate.fit_estimate(
        jax.random.key(options.seed),
        generator,
        draws=options.draws,
        keep=keep,
        say=(lambda text: None) if options.quiet else partial(print, file=sys.stderr, flush=True),
    )
    facts = {"draws": options.draws, "ridge": estimate.RIDGE}
    header = {"fit": facts, "seed": options.seed, "figures": figures, **describe_machine()}
    estimate.save_estimate(out, generator, params, header)
    keep.unlink(missing_ok=True)
    if not options.quiet:
        print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return out
