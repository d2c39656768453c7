"""Fit the flow prior of a generator's mapping network: python -m stylesr_jax.fit_prior."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stylesr_jax.errors import UserError, exit_code

if TYPE_CHECKING:  # jax and distrax take seconds to import, and --help needs neither
    from jax import Array

    from stylesr_jax.flow import FitConfig, FitState, Prior
    from stylesr_jax.generators import Generator
    from stylesr_jax.masks import FlowConfig

HELD_OUT = 2000


class Progress(NamedTuple):
    """How a fit stands: step counts, mean loss since the last report, held-out figure, seconds."""

    step: int
    steps: int
    loss: float  # nats, of the running weights
    held_out: float  # nats, of the averaged weights
    seconds_left: float


def _save_checkpoint(
    path: Path, state: "FitState", whitening: dict[str, Any], settings: dict[str, Any]
) -> None:
    import jax

    from stylesr_jax import store

    leaves = {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    store.save(
        path,
        {"state": leaves, "whitening": whitening},
        {"kind": "prior-checkpoint", "settings": settings},
    )


def _load_checkpoint(
    path: Path, like: "FitState", settings: dict[str, Any]
) -> tuple["FitState", dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from stylesr_jax import store

    tensors, header = store.load(path)
    if header.get("kind") != "prior-checkpoint":
        raise UserError(f"{path} is not a checkpoint of fit_prior; move it away")
    different = sorted(name for name in settings if header["settings"].get(name) != settings[name])
    if different:
        raise UserError(
            f"{path} is from a fit with another {', '.join(different)}; use the same options "
            "to resume, or delete it to begin anew"
        )
    leaves = [jnp.asarray(tensors["state"][name]) for name in sorted(tensors["state"])]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return state, jax.tree.map(jnp.asarray, tensors["whitening"])


def _shapes(key: "Array", flow_config: "FlowConfig") -> Any:
    import jax

    from stylesr_jax.masks import init_flow

    shapes = jax.eval_shape(lambda key: init_flow(key, flow_config), key)
    return jax.tree.map(lambda leaf: leaf.shape, shapes)


def fit(
    key: "Array",
    generator: "Generator",
    *,
    flow_config: "FlowConfig",
    fit_config: "FitConfig",
    start: "Prior | None" = None,
    whitening_draws: int = 100_000,
    checkpoint: Path | None = None,
    checkpoint_every: int = 256,
    resume: bool = False,
    report_every: int = 64,
    report: Callable[[Progress], None] | None = None,
) -> "Prior":
    """Fit a prior by maximum likelihood on fresh draws; the same key gives the same prior.

    Steps, reports and checkpoints are rounded up to whole chunks of `fit_config.chunk` steps.
    An interrupt (Ctrl-C) writes a checkpoint before it goes on up.

    Args:
        key: for the whitening, the initial weights and all draws.
        generator: whose mapping network is learnt.
        start: a fitted prior to go on from, with its whitening; None begins anew.
        checkpoint: file to continue from and to write to; None writes none.
        resume: continue from `checkpoint` if it exists; otherwise its existence is an error.
        report: is called with the progress every `report_every` steps and after the last.

    Raises:
        UserError: the checkpoint is of another fit, or in the way, or the loss became
            non-finite.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from stylesr_jax import flow
    from stylesr_jax.masks import init_flow
    from stylesr_jax.whitening import fit_whitening

    settings = {
        "flow": dataclasses.asdict(flow_config),
        "fit": dataclasses.asdict(fit_config),
        "whitening_draws": whitening_draws,
        "start": None if start is None else flow.flow_sha256(start),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "mapping_sha256": flow.mapping_sha256(generator),
    }
    whitening_key, init_key, held_out_key, draw_key = jax.random.split(key, 4)
    weights = init_flow(init_key, flow_config) if start is None else start.flow
    if jax.tree.map(jnp.shape, weights) != _shapes(init_key, flow_config):
        raise UserError(
            "the prior to start from has other sizes; give --blocks and --width as then"
        )
    state = flow.init_fit(weights, fit_config)
    if checkpoint is not None and checkpoint.exists():
        if not resume:
            raise UserError(
                f"{checkpoint} is left from an unfinished fit; add --resume to continue it, or "
                "delete it"
            )
        state, whitening = _load_checkpoint(checkpoint, state, settings)
    elif start is not None:
        whitening = start.whitening
    else:
        whitening = fit_whitening(
            whitening_key, generator, floor=flow_config.floor, draws=whitening_draws
        )

    @jax.jit
    def chunk(state: Any, key: Any, generator: Any, whitening: Any) -> Any:
        return flow.fit_chunk(
            state, key, generator, whitening, flow_config=flow_config, fit_config=fit_config
        )

    @jax.jit
    def held_out_loss(weights: Any, draws: Any) -> Any:
        return flow.negative_log_likelihood(weights, flow_config, draws)

    held_out = flow.noisy_draws(held_out_key, generator, whitening, flow_config.noise, HELD_OUT)
    step = first = int(state.step)
    begin, losses = time.monotonic(), []
    try:
        while step < fit_config.steps:
            advanced, loss = chunk(state, draw_key, generator, whitening)
            losses.append(float(loss.mean()))
            if not np.isfinite(losses[-1]):
                raise UserError(
                    f"the loss became non-finite at step {step}; fit with a lower --learning-rate"
                )
            state, before, step = advanced, step, int(advanced.step)
            done = step >= fit_config.steps
            if report is not None and (done or before // report_every < step // report_every):
                spent = time.monotonic() - begin
                left = spent / (step - first) * max(fit_config.steps - step, 0)
                test = float(held_out_loss(state.average, held_out))
                mean_loss = sum(losses) / len(losses)
                report(Progress(step, fit_config.steps, mean_loss, test, left))
                losses = []
            due = before // checkpoint_every < step // checkpoint_every
            if checkpoint is not None and (due or done):
                _save_checkpoint(checkpoint, state, whitening, settings)
    except KeyboardInterrupt:
        if checkpoint is not None:
            _save_checkpoint(checkpoint, state, whitening, settings)
        raise
    return flow.Prior(whitening, state.average, flow_config)


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

    from stylesr_jax import flow, store
    from stylesr_jax.generators import load_generator
    from stylesr_jax.masks import FlowConfig
    from stylesr_jax.runtime import configure, describe_machine
    from stylesr_jax.whitening import draw_w

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
            "start": None if options.start is None else store.read_header(options.start),
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
