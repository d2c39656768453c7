"""Optimisers that optax lacks, as optax transformations for the engine.

The engine multiplies what an optimiser returns by the learning rate of the step, and passes three
extra arguments to `update`: `rate` (that learning rate), `key` (a PRNG key of the start and the
step) and `loss` (the start's value at `params`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Shaped

ADAM = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999), optax.scale(-1.0))


# --- Normalised gradients -------------------------------------------------------------------


def _unit(gradient: Array) -> Array:
    norm = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=-1, keepdims=True))
    return gradient / jnp.maximum(norm, 1e-12)


# Each vector, a style of the latents, moves by the learning rate whatever its gradient's length.
# Source: Poirier-Ginter & Lalonde, "Robust Unsupervised StyleGAN Image Restoration", CVPR 2023.
NORMALISED = optax.chain(
    optax.stateless(lambda updates, _: jax.tree.map(_unit, updates)), optax.scale(-1.0)
)


# --- Ranger21 -------------------------------------------------------------------------------


class LookaheadState(NamedTuple):
    """The slow variables, and how many updates were made."""

    slow: Any
    count: Array


def lookahead(
    *, period: Array | int = 5, share: Array | float = 0.5
) -> optax.GradientTransformationExtraArgs:
    """Every `period` steps, go back to `share` of the way that was gone since the last time.

    Last in a chain. It works on the variables as the engine projected them, so that the slow
    ones lie on the method's sets too. Source: Zhang et al., "Lookahead Optimizer", NeurIPS 2019.
    """

    period = jnp.asarray(period, jnp.int32)

    def init(params: Any) -> LookaheadState:
        return LookaheadState(params, jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: LookaheadState,
        params: Any = None,
        *,
        rate: Array,
        key: Array,
        loss: Array,
    ) -> tuple[Any, LookaheadState]:
        first = state.count % period == 0
        slow = jax.tree.map(lambda s, p: jnp.where(first, p, s), state.slow, params)
        last = (state.count + 1) % period == 0

        def back(update: Array, value: Array, slow: Array) -> Array:
            target = slow + share * (value + rate * update - slow)
            return jnp.where(last, (target - value) / jnp.maximum(rate, 1e-12), update)

        return jax.tree.map(back, updates, params, slow), LookaheadState(slow, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def ranger21(
    *,
    weight_decay: Float[Array, ""] | float,
    clip: Array | float = 1e-2,
    period: Array | int = 5,
    share: Array | float = 0.5,
) -> optax.GradientTransformation:
    """Ranger21's ingredients: adaptive clipping, centralised gradients, RAdam, decay, lookahead.

    `clip` bounds a gradient's norm by its variable's; `period` and `share` are the lookahead's.
    Its warm-up and warm-down are a rate, see `schedules.WarmUpAndDown`.
    Source: Wright & Demeure, "Ranger21: a synergistic deep learning optimizer", 2021.
    """
    return optax.chain(
        optax.adaptive_grad_clip(clip),
        optax.centralize(),
        optax.scale_by_radam(b1=0.9, b2=0.999),
        optax.add_decayed_weights(weight_decay),  # type: ignore[arg-type]
        optax.scale(-1.0),
        lookahead(period=period, share=share),
    )


# --- Langevin -------------------------------------------------------------------------------

TARGET_ACCEPTANCE = 0.574  # Roberts & Rosenthal 1998: the best for MALA in high dimension


class LangevinState(NamedTuple):
    """A Metropolis-adjusted Langevin chain; `position` is where it stands."""

    position: Any
    gradient: Any  # of the energy at the position
    energy: Array
    step_size: Array  # variance of a proposal's noise
    accepted: Array  # float32: how many proposals were
    count: Array  # int32: steps made; the first evaluation is no proposal


def _dot(a: Any, b: Any) -> Array:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((jnp.sum(x * y) for x, y in pairs), start=jnp.zeros(()))


def langevin(*, temperature: Float[Array, ""] | float) -> optax.GradientTransformationExtraArgs:
    """Sample exp(-loss / temperature) by Langevin proposals that Metropolis-Hastings corrects.

    The engine evaluates the proposal, this accepts or refuses it and makes the next one. The
    learning rate is the first step size; it then follows the acceptance rate with a fading gain
    (Andrieu & Thoms 2008, algorithm 4). Coordinates of like scale are the preconditioner.
    Source: Roberts & Tweedie, "Exponential convergence of Langevin distributions", 1996.
    """

    def init(params: Any) -> LangevinState:
        zero = jnp.zeros(())
        return LangevinState(params, params, zero, zero, zero, jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: LangevinState,
        params: Any = None,
        *,
        rate: Array,
        key: Array,
        loss: Array,
    ) -> tuple[Any, LangevinState]:
        gradient = jax.tree.map(lambda g: g / temperature, updates)
        energy = loss / temperature
        accept_key, noise_key = jax.random.split(key)
        first = state.count == 0
        size = jnp.where(first, rate, state.step_size)

        def residual(end: Any, start: Any, gradient: Any) -> Array:
            """Squared distance of `end` from where the drift leads from `start`."""
            gap = jax.tree.map(lambda e, s, g: e - s + 0.5 * size * g, end, start, gradient)
            return _dot(gap, gap)

        forward = residual(params, state.position, state.gradient)
        backward = residual(state.position, params, gradient)
        log_ratio = state.energy - energy + (forward - backward) / (2.0 * size)
        chance = jnp.where(first, 1.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        accept = jax.random.uniform(accept_key) < chance

        def choose(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)

        position = choose(params, state.position)
        drift = choose(gradient, state.gradient)
        gain = 1.0 / jnp.maximum(state.count.astype(jnp.float32), 1.0) ** 0.6
        adapted = size * jnp.exp(gain * (chance - TARGET_ACCEPTANCE))
        size = jnp.where(first, size, adapted)

        leaves, structure = jax.tree.flatten(position)
        keys = jax.tree.unflatten(structure, list(jax.random.split(noise_key, len(leaves))))

        def propose(x: Array, g: Array, value: Array, key: Array) -> Array:
            proposal = x - 0.5 * size * g + jnp.sqrt(size) * jax.random.normal(key, x.shape)
            return (proposal - value) / rate

        direction = jax.tree.map(propose, position, drift, params, keys)
        accepted = state.accepted + jnp.where(first | ~accept, 0.0, 1.0)
        energy = jnp.where(accept, energy, state.energy)
        return direction, LangevinState(position, drift, energy, size, accepted, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def chain_position(state: LangevinState) -> Any:
    """Where a chain stands, which the engine's variables (a proposal) are not."""
    return state.position


def chain_diagnostics(state: LangevinState) -> dict[str, Shaped[Array, "..."]]:
    """Share of accepted proposals, the step size in the end and how many proposals were made."""
    proposals = jnp.maximum(state.count - 1, 0).astype(jnp.float32)
    return {
        "acceptance": state.accepted / jnp.maximum(proposals, 1.0),
        "step_size": state.step_size,
        "proposals": proposals,
    }
