"""Where searches begin: noise of references and layers, keys, and the nearest of several tries."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int, Key, UInt

from stylesr_jax.generators.base import Generator
from stylesr_jax.methods.base import Method, Stage
from stylesr_jax.methods.levers import injected_noise, layer_range, noisy_target
from stylesr_jax.methods.terms import l1_sum
from stylesr_jax.methods.view import Beginning, Context, Start
from stylesr_jax.runtime.program_cache import kept_jit
from stylesr_jax.search.engine import STARTS, spread

LEVERS_KEY = 2**20  # folded into a start's key for the levers' noise; stages fold in 0, 1, ...
TRIES_AT_ONCE = 8  # small images of tried starts


def draw_choices(method: Any, generator: Generator) -> dict[str, Any]:
    """The static arguments of `draw` for a method's levers.

    Raises:
        UserError: the layers to inject noise in are not the generator's.
    """
    return {
        "layers": layer_range(method.inject_layers, len(generator.noise_shapes)),
        "noisy": bool(method.noise_std),
        "inject": bool(method.inject_noise),
        "own_noise": getattr(method, "noise", "stored") == "own",
        "own_starts": method.starts == "own",
    }


def draw_starts(
    keys: Key[Array, " B"],
    indices: Int[Array, " B"],
    targets: Float[Array, "B h w c"],
    masks: Float[Array, "B h w 1"],
    groups: Int[Array, " B"],
    noise_masks: Float[Array, "B h w 1"],
    method: Any,
    generator: Generator,
    styles: Float[Array, "num_ws w_dim"] | None = None,
    *,
    layers: tuple[int, ...],
    noisy: bool,
    inject: bool,
    own_noise: bool,
    own_starts: bool,
    later: bool = True,
) -> tuple[Start, Key[Array, " B"], Key[Array, " B"]]:
    """Starts with the noise on their references and in their layers that a method asks for.

    Args:
        keys: the images'.
        indices: number an image's solutions.
        targets, masks, groups: the fields of `Start`.
        noise_masks: where references get noise.
        styles: that all begin from; None: each method's own start.
        later: whether there is a solution that is not its image's first.

    Returns:
        The starts, a key for each of them and one for each search.
    """

    def draw_start(
        key: Array, index: Array, target: Array, mask: Array, group: Array, noise_mask: Array
    ) -> tuple[Start, Array, Array]:
        start_key, search_key = jax.random.split(jax.random.fold_in(key, index))
        if not own_starts:
            start_key, _ = jax.random.split(jax.random.fold_in(key, 0))
        target_key, layer_key = jax.random.split(jax.random.fold_in(search_key, LEVERS_KEY))
        injected = None
        if noisy:
            target = noisy_target(target_key, target, noise_mask, method.noise_std)
        if inject:
            injected = injected_noise(layer_key, generator, layers, method.inject_noise)
        if own_noise:
            change = [jnp.zeros_like(noise) for noise in generator.stored_noise]
            if later:  # the first solution has the stored maps
                drawn = generator.random_noise(jax.random.fold_in(layer_key, 1))
                share = jnp.where(index == 0, 0.0, 1.0)
                pairs = zip(drawn, generator.stored_noise, strict=True)
                change = [share * (a - b) for a, b in pairs]
            injected = tuple(change if injected is None else map(jnp.add, injected, change))
        return Start(target, mask, group, injected, styles), start_key, search_key

    return jax.vmap(draw_start)(keys, indices, targets, masks, groups, noise_masks)


def begin_stage(
    stage: Stage,
    keys: Key[Array, " B"],
    indices: Int[Array, " B"],
    context: Context,
    starts: Start,
    previous: Any,
    search_keys: Key[Array, " B"],
    number: UInt[Array, ""],
) -> tuple[Any, Key[Array, " B"]]:
    """A batch's variables for a stage, leading axis B, and the keys of its search."""
    start = jax.vmap(stage.start, in_axes=(Beginning(0, 0, None, 0, 0),))  # type: ignore
    stage_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(search_keys, number)
    return start(Beginning(keys, indices, context, starts, previous)), stage_keys


def nearest(
    stage: Stage,
    keys: Key[Array, " B"],
    indices: Int[Array, " B"],
    context: Context,
    starts: Start,
    *,
    tries: int,
    mesh: Mesh | None = None,
) -> Key[Array, " B"]:
    """Of `tries` keys derived from each start's own, that whose start is nearest to the input."""
    parts = (P(), P(STARTS), P(STARTS), P(), P(STARTS))
    run = spread(partial(_by_distance, tries), mesh, parts, P(STARTS))
    return run(stage, keys, indices, context, starts)


def _by_distance(
    tries: int, stage: Stage, keys: Array, indices: Array, context: Context, starts: Start
) -> Array:
    def nearest_of(key: Array, index: Array, start: Start) -> Array:
        tried = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(tries))

        def distance(candidate: Array) -> Array:
            variables = stage.start(Beginning(candidate, index, context, start, None))
            return l1_sum(stage.view(context, start, variables))

        at_once = None if stage.stop is None else TRIES_AT_ONCE  # full images take memory
        distances = jax.lax.map(distance, tried, batch_size=at_once)
        return tried[jnp.argmin(jnp.where(jnp.isfinite(distances), distances, jnp.inf))]

    return jax.vmap(nearest_of)(keys, indices, starts)


CHOICES = ("layers", "noisy", "inject", "own_noise", "own_starts", "later")
draw = kept_jit(draw_starts, static_argnames=CHOICES)
begin = kept_jit(begin_stage)
nearest_keys = kept_jit(nearest, static_argnames=("tries", "mesh"))


def tries_of(method: Method) -> int:
    """Starts drawn for each further solution, of which the nearest is searched."""
    return int(getattr(method, "tries", 1))
