"""How image heads are fitted, by distillation of the full generator.

A head learns what the shrunken full image looks like from early features and the styles still to
come. Pictures are rendered in full once, and kept until the heads are written, so that a killed run
goes on.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.degradations import resize
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.generators.mobile.layers import ImageHead
from stylesr_jax.runtime import weights

SIZES = (32,)  # px of the features that get a head
PICTURE = 128  # px of the kept pictures; heads make smaller ones
HELD_OUT = 64  # pictures for the figures
KEEP_EVERY = 100  # pictures between two saves
REPORT_EVERY = 250  # steps
BATCH = 8
CHUNK = 50  # steps in one compiled call
SLOWED = 32  # how much slower than the rest the modulations' weights are fitted
Say = Callable[[str], None]


# --- pictures -------------------------------------------------------------------------------


def render_pictures(
    generator: Generator,
    styles: Float[np.ndarray, "N num_ws w_dim"],
    *,
    size: int,
    keep: Path,
    say: Say,
) -> Float[np.ndarray, "N {size} {size} 3"]:
    """The pictures of styles, shrunken, in half precision.

    They are kept in the file `keep`, from where a killed run goes on.

    Raises:
        UserError: `keep` holds the pictures of other styles, or cannot be written.
    """
    facts = {"styles": hashlib.sha256(styles.tobytes()).hexdigest(), "size": size}
    pictures = _kept_pictures(keep, facts)
    began, first, count = time.monotonic(), len(pictures), len(styles)
    for done, ws in enumerate(styles[first:], first + 1):
        pictures.append(np.asarray(_render(generator, jnp.asarray(ws), size), np.float16))
        if done % KEEP_EVERY == 0 or done == count:
            weights.save(
                keep, {"pictures": np.stack(pictures)}, {"kind": "heads-pictures", "facts": facts}
            )
            seconds_left = (time.monotonic() - began) / (done - first) * (count - done)
            say(f"picture {done}/{count}  {seconds_left / 60:.1f} min left")
    return np.stack(pictures)


def _kept_pictures(keep: Path, facts: dict[str, Any]) -> list[np.ndarray]:
    """The pictures that an earlier run has kept; none if there is no such file."""
    kept = weights.load_kept(keep, facts, "pictures")
    return [] if kept is None else list(kept["pictures"])


@partial(jax.jit, static_argnames="size")
def _render(generator: Generator, ws: Array, size: int) -> Array:
    """The image of ws (num_ws, w_dim), shrunken to (size, size, 3)."""
    return resize(generator.synthesise(ws[None])[0], (size, size))


# --- heads ----------------------------------------------------------------------------------


class Examples(NamedTuple):
    """What a head learns from.

    Attributes:
        features: (N, R, R, C), float16.
        later: (N, styles, w_dim), the styles that follow, float16.
        targets: (N, 2R, 2R, 3), float32.
    """

    features: Array
    later: Array
    targets: Array


def fit_head(
    key: Key[Array, ""],
    generator: Generator,
    size: int,
    styles: Float[np.ndarray, "N num_ws w_dim"],
    pictures: Float[np.ndarray, "N s s 3"],
    *,
    steps: int,
    learning_rate: float,
    say: Say,
) -> tuple[Any, dict[str, float]]:
    """Fit the head on features of `size` px; the last `HELD_OUT` pictures give the figures.

    Args:
        pictures: of the styles, of at least 2 * `size` px.

    Returns:
        Its parameters and figures: mean absolute errors of held-out pictures on [-1, 1], as the
        head makes them and after shrinking to 16 px, and those of their mean as a guess.

    Raises:
        UserError: the loss became non-finite.
    """
    init_key, draw_key = jax.random.split(key)
    examples = _examples(generator, size, styles, pictures)
    params = _initial_params(init_key, examples)
    state, began = _optimiser(steps, learning_rate).init(params), time.monotonic()
    for first in range(0, steps, CHUNK):
        (params, state), losses = _train(
            params, state, jnp.asarray(first), draw_key, examples, steps, learning_rate
        )
        if not bool(jnp.isfinite(losses).all()):
            raise UserError(f"the loss became non-finite at step {first}; lower --learning-rate")
        done = first + CHUNK
        if done % REPORT_EVERY == 0 or done >= steps:
            minutes = (time.monotonic() - began) / done * max(steps - done, 0) / 60
            text = "  ".join(f"{k} {value:.4f}" for k, value in _figures(params, examples).items())
            say(f"head {size}: step {done}/{steps}  {text}  {minutes:.1f} min left")
    return params, _figures(params, examples)


def _examples(
    generator: Generator, size: int, styles: np.ndarray, pictures: np.ndarray
) -> Examples:
    """Features and styles for all steps: a megabyte for each picture at 32 px and 512 channels."""
    block = generator.config.block_resolutions.index(size) + 1
    features = [_features(generator, jnp.asarray(ws)[None], block) for ws in styles]
    shrunken = _shrink(jnp.asarray(pictures, jnp.float32), 2 * size)
    later = jnp.asarray(styles[:, 3 * block - 2 :], jnp.float16)
    return Examples(jnp.concatenate(features), later, shrunken)


@partial(jax.jit, static_argnames="block")
def _features(generator: Generator, ws: Array, block: int) -> Array:
    return generator.features(ws, block=block).astype(jnp.float16)


@partial(jax.jit, static_argnames="size")
def _shrink(images: Array, size: int) -> Array:
    """Images (N, s, s, 3) as (N, size, size, 3)."""
    return jax.vmap(partial(resize, size=(size, size)))(images)


def _initial_params(key: Array, examples: Examples) -> Any:
    """Modulations near 1, and hidden units of unit variance, whatever the features' scale."""
    features, later, _ = _some(examples, slice(BATCH))
    params: Any = ImageHead().init(key, features, later)["params"]
    for name in ("modulation1", "modulation2", "modulation3"):
        dense = params[name]
        params[name] = {"weight": 0.1 * dense["weight"], "bias": jnp.ones_like(dense["bias"])}
    params["into"] = params["into"] / jnp.sqrt(jnp.mean(jnp.square(features)))
    return params


def _some(examples: Examples, which: Any) -> Examples:
    """Those that an index selects, in float32."""
    return jax.tree.map(lambda x: x[which].astype(jnp.float32), examples)


def _optimiser(steps: int, learning_rate: float) -> optax.GradientTransformation:
    """Adam; a style has a thousand coordinates, so that modulations are fitted more slowly."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 100, steps)
    return optax.chain(
        optax.adam(schedule),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_slowed, updates)),
    )


def _slowed(path: Any, update: Array) -> Array:
    layer, *rest = [getattr(part, "key", "") for part in path]
    is_modulation = layer.startswith("modulation") and rest == ["weight"]
    return update / SLOWED if is_modulation else update


def _errors(params: Any, examples: Examples) -> tuple[Array, Array]:
    """Mean absolute errors, as the head makes its images and after shrinking to 16 px."""
    images: Any = ImageHead().apply({"params": params}, examples.features, examples.later)
    coarse = jnp.abs(_shrink(images, 16) - _shrink(examples.targets, 16))
    return jnp.mean(jnp.abs(images - examples.targets)), jnp.mean(coarse)


_held_out_errors = jax.jit(_errors)


@partial(jax.jit, static_argnames=("steps", "learning_rate"))
def _train(
    params: Any,
    state: Any,
    first: Array,
    draw_key: Array,
    examples: Examples,
    steps: int,
    learning_rate: float,
) -> tuple[tuple[Any, Any], Array]:
    """Steps `first` to `first` + CHUNK - 1; their losses (CHUNK,)."""
    optimiser = _optimiser(steps, learning_rate)

    def loss(params: Any, batch: Examples) -> Array:
        return sum(_errors(params, batch))  # type: ignore[return-value]

    def step(carry: Any, number: Array) -> tuple[Any, Array]:
        params, state = carry
        key = jax.random.fold_in(draw_key, number)
        which = jax.random.randint(key, (BATCH,), 0, len(examples.targets) - HELD_OUT)
        value, gradient = jax.value_and_grad(loss)(params, _some(examples, which))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
            updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, state), first + jnp.arange(CHUNK))


def _figures(params: Any, examples: Examples) -> dict[str, float]:
    """Errors of the held-out examples, and of their mean picture as a guess."""
    count, targets = len(examples.targets), examples.targets
    batches = (slice(i, i + BATCH) for i in range(count - HELD_OUT, count, BATCH))
    errors = np.array([_held_out_errors(params, _some(examples, batch)) for batch in batches])
    fine, coarse = errors.mean(axis=0)
    guess = jnp.mean(jnp.abs(targets[-HELD_OUT:] - targets[:-HELD_OUT].mean(axis=0)))
    return {
        "error": float(fine),
        "error_at_16px": float(coarse),
        "mean_picture_error": float(guess),
    }
