"""Fit image heads for a MobileStyleGAN generator: python -m stylesr_jax.fit_heads.

Each head learns, by distillation, what the shrunken full image looks like from early features and
the styles still to come. Pictures are drawn from styles like those that a search meets, rendered
in full once, and kept beside the result until it is written, so that a killed run goes on.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from stylesr_jax.degradations import resize
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.generators.mobile.network import ImageHead
from stylesr_jax.priors.whitening import fit_whitening, unwhiten, whiten
from stylesr_jax.runtime import weights

SIZES = (32,)  # px of the features that get a head
PICTURE = 128  # px of the kept pictures; heads make smaller ones
HELD_OUT = 64  # pictures for the figures
KEEP_EVERY = 100  # pictures between two saves
BATCH = 8
Say = Callable[[str], None]


def draw_styles(key: Array, generator: Generator, whitening: dict[str, Any]) -> Array:
    """Styles (num_ws, w_dim) as a search meets them, in whitened coordinates around the mean.

    A mapped latent moved 0.2 to 1.1 of the way from the mean w; in 70% of the draws every layer
    is jittered by 0.1 to 0.6 of a standard deviation.
    """
    z_key, psi_key, kind_key, jitter_key, layer_key = jax.random.split(key, 5)
    w: Any = generator.map_latents(jax.random.normal(z_key, (1, generator.z_dim)))[0]
    mean, _ = whiten(whitening, generator.statistics["w_mean"])
    drawn, _ = whiten(whitening, w)
    u = mean + jax.random.uniform(psi_key, (), minval=0.2, maxval=1.1) * (drawn - mean)
    jitter = jax.random.uniform(jitter_key, (), minval=0.1, maxval=0.6)
    jitter = jnp.where(jax.random.uniform(kind_key, ()) < 0.3, 0.0, jitter)
    us = u + jitter * jax.random.normal(layer_key, (generator.num_ws, generator.w_dim))
    return unwhiten(whitening, us)[0]


def draw_pictures(
    key: Array, generator: Generator, count: int, *, size: int, keep: Path, say: Say
) -> "tuple[np.ndarray, np.ndarray]":
    """`count` styles (count, num_ws, w_dim) and their pictures (count, size, size, 3), float16.

    They depend on the key alone and are kept in `keep`, from where a killed run goes on.
    """
    whitening_key, draw_key = jax.random.split(key)
    whitening = fit_whitening(whitening_key, generator, floor=1e-2)

    @jax.jit
    def draw(key: Any, generator: Any, whitening: Any) -> Any:
        ws = draw_styles(key, generator, whitening)
        return ws, resize(generator.synthesise(ws[None])[0], (size, size))

    facts = {"key": np.asarray(jax.random.key_data(key)).tolist(), "size": size}
    styles: list[np.ndarray] = []
    pictures: list[np.ndarray] = []
    if keep.is_file():
        tensors, header = weights.load(keep)
        if header.get("facts") != facts:
            raise UserError(f"{keep} holds pictures of another fit; delete it")
        styles, pictures = list(tensors["styles"][:count]), list(tensors["pictures"][:count])
    began, first = time.monotonic(), len(styles)
    for i in range(first, count):
        ws, picture = draw(jax.random.fold_in(draw_key, i), generator, whitening)
        styles.append(np.asarray(ws))
        pictures.append(np.asarray(picture, np.float16))
        done = i + 1
        if done % KEEP_EVERY == 0 or done == count:
            both = {"styles": np.stack(styles), "pictures": np.stack(pictures)}
            weights.save(keep, both, {"kind": "heads-pictures", "facts": facts})
            left = (time.monotonic() - began) / (done - first) * (count - done)
            say(f"picture {done}/{count}  {left / 60:.1f} min left")
    return np.stack(styles), np.stack(pictures)


def fit_head(
    key: Array,
    generator: Generator,
    size: int,
    styles: np.ndarray,
    pictures: np.ndarray,
    *,
    steps: int,
    learning_rate: float,
    say: Say,
) -> tuple[Any, dict[str, float]]:
    """Fit the head on features of `size` px; the last `HELD_OUT` pictures give the figures.

    Returns:
        Its parameters and figures: mean absolute errors of held-out pictures on [-1, 1], as the
        head makes them and after shrinking to 16 px, and those of their mean as a guess.
    """
    block = generator.config.block_resolutions.index(size) + 1
    head, chunk = ImageHead(), 50
    shrink = jax.vmap(partial(resize, size=(2 * size, 2 * size)))
    small = jax.vmap(partial(resize, size=(16, 16)))
    targets = jax.jit(shrink)(jnp.asarray(pictures, jnp.float32))
    init_key, draw_key = jax.random.split(key)

    def entering(generator: Any, ws: Any) -> Any:
        return generator.features(ws, block=block), ws[:, 3 * block - 2 :]

    def half(generator: Any, ws: Any) -> Any:
        return tuple(x.astype(jnp.float16) for x in entering(generator, ws))

    # Once for all steps: a megabyte for each picture at 32 px and 512 channels.
    enter = jax.jit(half)
    parts = [enter(generator, jnp.asarray(ws)[None]) for ws in styles]
    inputs: Any = tuple(jnp.concatenate(part) for part in zip(*parts, strict=True))
    del parts
    features, later = (x[:BATCH].astype(jnp.float32) for x in inputs)
    params: Any = head.init(init_key, features, later)["params"]
    # Modulations near 1, and hidden units of unit variance, whatever the features' scale.
    for name in ("modulation1", "modulation2", "modulation3"):
        dense = params[name]
        params[name] = {"weight": 0.1 * dense["weight"], "bias": jnp.ones_like(dense["bias"])}
    params["into"] = params["into"] / jnp.sqrt(jnp.mean(jnp.square(features)))
    optimiser = optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, 100, steps))

    def slowed(path: Any, change: Any) -> Any:
        # A style has a thousand coordinates: at Adam's full rate one step turns a modulation over.
        layer, *rest = [getattr(part, "key", "") for part in path]
        is_slow = layer.startswith("modulation") and rest == ["weight"]
        return change / 32 if is_slow else change

    def errors(params: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        made: Any = head.apply({"params": params}, *(x.astype(jnp.float32) for x in inputs))
        fine = jnp.mean(jnp.abs(made - targets))
        return fine, jnp.mean(jnp.abs(small(made) - small(targets)))

    def loss(params: Any, *args: Any) -> Any:
        fine, coarse = errors(params, *args)
        return fine + coarse

    @jax.jit
    def train(params: Any, state: Any, first: Any, inputs: Any, targets: Any) -> Any:
        def step(carry: Any, number: Any) -> Any:
            params, state = carry
            picked = jax.random.randint(
                jax.random.fold_in(draw_key, number), (BATCH,), 0, targets.shape[0] - HELD_OUT
            )
            some = tuple(x[picked] for x in inputs)
            value, gradient = jax.value_and_grad(loss)(params, some, targets[picked])
            with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
                change, state = optimiser.update(gradient, state, params)
            change = jax.tree_util.tree_map_with_path(slowed, change)
            return (optax.apply_updates(params, change), state), value

        return jax.lax.scan(step, (params, state), first + jnp.arange(chunk))

    held_out = jax.jit(errors)

    def figures(params: Any) -> dict[str, float]:
        values = []
        for i in range(len(targets) - HELD_OUT, len(targets), BATCH):
            some = tuple(x[i : i + BATCH] for x in inputs)
            values.append(held_out(params, some, targets[i : i + BATCH]))
        fine, coarse = (sum(map(float, part)) / len(values) for part in zip(*values, strict=True))
        guess = jnp.mean(jnp.abs(targets[-HELD_OUT:] - targets[:-HELD_OUT].mean(axis=0)))
        return {"error": fine, "error_at_16px": coarse, "mean_picture_error": float(guess)}

    state, began = optimiser.init(params), time.monotonic()
    for first in range(0, steps, chunk):
        (params, state), losses = train(params, state, jnp.asarray(first), inputs, targets)
        if not bool(jnp.isfinite(losses).all()):
            raise UserError(f"the loss became non-finite at step {first}; lower --learning-rate")
        done = first + chunk
        if done % 250 == 0 or done >= steps:
            left = (time.monotonic() - began) / done * max(steps - done, 0)
            text = "  ".join(f"{name} {value:.4f}" for name, value in figures(params).items())
            say(f"head {size}: step {done}/{steps}  {text}  {left / 60:.1f} min left")
    return params, figures(params)
