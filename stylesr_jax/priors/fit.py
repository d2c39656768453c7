"""Fit the flow prior of a generator's mapping network: python -m stylesr_jax.fit_prior."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Key

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.priors import flow
from stylesr_jax.priors.autoregressive import FlowConfig, init_flow
from stylesr_jax.priors.flow import FitConfig, FitState, Prior
from stylesr_jax.priors.whitening import fit_whitening
from stylesr_jax.runtime import weights

HELD_OUT = 2000


class Progress(NamedTuple):
    """How a fit stands: step counts, mean loss since the last report, held-out figure, seconds."""

    step: int
    steps: int
    loss: float  # nats, of the running weights
    held_out: float  # nats, of the averaged weights
    seconds_left: float


def _save_checkpoint(
    path: Path, state: FitState, whitening: dict[str, Any], settings: dict[str, Any]
) -> None:
    leaves = {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    weights.save(
        path,
        {"state": leaves, "whitening": whitening},
        {"kind": "prior-checkpoint", "settings": settings},
    )


def _load_checkpoint(
    path: Path, like: FitState, settings: dict[str, Any]
) -> tuple[FitState, dict[str, Any]]:
    tensors, header = weights.load(path)
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


def fit(
    key: Key[Array, ""],
    generator: Generator,
    *,
    flow_config: FlowConfig,
    fit_config: FitConfig,
    start: Prior | None = None,
    whitening_draws: int = 100_000,
    checkpoint: Path | None = None,
    checkpoint_every: int = 256,
    resume: bool = False,
    report_every: int = 64,
    report: Callable[[Progress], None] | None = None,
) -> Prior:
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
    settings = {
        "flow": dataclasses.asdict(flow_config),
        "fit": dataclasses.asdict(fit_config),
        "whitening_draws": whitening_draws,
        "start": None if start is None else flow.flow_sha256(start),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "mapping_sha256": flow.mapping_sha256(generator),
    }
    whitening_key, init_key, held_out_key, draw_key = jax.random.split(key, 4)
    weights = init_flow(init_key, flow_config)
    if start is not None:
        if jax.tree.map(jnp.shape, start.flow) != jax.tree.map(jnp.shape, weights):
            raise UserError(
                "the prior to start from has other sizes; give --blocks and --width as then"
            )
        weights = start.flow
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
                seconds_left = spent / (step - first) * max(fit_config.steps - step, 0)
                test = float(held_out_loss(state.average, held_out))
                mean_loss = sum(losses) / len(losses)
                report(Progress(step, fit_config.steps, mean_loss, test, seconds_left))
                losses = []
            due = before // checkpoint_every < step // checkpoint_every
            if checkpoint is not None and (due or done):
                _save_checkpoint(checkpoint, state, whitening, settings)
    except KeyboardInterrupt:
        if checkpoint is not None:
            _save_checkpoint(checkpoint, state, whitening, settings)
        raise
    return flow.Prior(whitening, state.average, flow_config)
