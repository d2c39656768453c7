"""Fit the flow prior of a generator's mapping network: python -m stylesr_jax.fit_prior."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.priors.fit import Progress, fit


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


def _at_least(least: float, kind: type, *, exclusive: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
        if not (value > least or (value == least and not exclusive)) or value == float("inf"):
            bound = "more than" if exclusive else "at least"
            raise argparse.ArgumentTypeError(f"must be {bound} {least}, not {text}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stylesr_jax.fit_prior",
        description="Fit the flow prior that guides the search on a generator, from fresh latents "
        "of its mapping network. The search then finds the prior by itself.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    count = _at_least(1, int)
    add = parser.add_argument
    add("--generator", default="mobile-ffhq-1024", metavar="NAME|PATH", help="whose prior")
    add("--class", dest="label", type=_at_least(0, int), help="class of a conditional generator")
    add("--out", type=Path, help="file to write (default: in the user's cache)")
    add(
        "--noise",
        type=_at_least(0, float),
        default=0.5,
        help="standard deviation of the noise added in whitened coordinates; 0 fits the plain "
        "density, whose gradient is too steep to search with",
    )
    add("--tail", type=_at_least(0, float), default=0.1, help="share of draws with wider noise")
    add("--reach", type=_at_least(1, float), default=6.0, help="how much wider, at most")
    add("--steps", type=count, default=6000, help="optimiser steps")
    add("--batch", type=count, default=512, help="draws per step")
    add("--learning-rate", type=_at_least(0, float, exclusive=True), default=5e-3, help="peak")
    add("--blocks", type=count, default=5, help="autoregressive blocks")
    add("--width", type=count, default=1024, help="hidden units per block")
    add("--floor", type=_at_least(0, float, exclusive=True), default=1e-2, help="of eigenvalues")
    add(
        "--log-scale-bound",
        type=_at_least(0, float, exclusive=True),
        default=0.5,
        help="soft bound on each block's log-scales",
    )
    add(
        "--input-bound",
        type=_at_least(0, float, exclusive=True),
        default=3.0,
        help="soft bound on the coordinates that each block's network sees",
    )
    add(
        "--radial",
        action="store_true",
        help="scale F(w) by a power of its norm at the end, so that squared norms spread as they "
        "should; fitted in seconds after the rest",
    )
    add("--start", type=Path, metavar="PRIOR", help="go on from this prior's weights and whitening")
    add("--whitening-draws", type=_at_least(2, int), default=100_000, help="latents measured")
    add("--seed", type=_at_least(0, int), default=0, help="of all draws")
    add("--checkpoint-every", type=count, default=256, metavar="N", help="steps")
    add("--resume", action="store_true", help="continue from the checkpoint beside the result")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _run(options: argparse.Namespace) -> Path:
    import jax
    import numpy as np

    from stylesr_jax.loading import load_generator
    from stylesr_jax.priors import flow
    from stylesr_jax.priors.autoregressive import FlowConfig
    from stylesr_jax.priors.whitening import draw_w
    from stylesr_jax.runtime import weights
    from stylesr_jax.runtime.machine import describe_machine
    from stylesr_jax.runtime.startup import configure

    configure()
    generator = load_generator(options.generator)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the prior is written, 2 for a mistake that the user can mend."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: print(_run(options)))


if __name__ == "__main__":
    sys.exit(main())
