"""The style that a low-resolution image suggests: a linear estimate, from which searches begin.

It is the best linear estimate of leaky_relu(w, 5), undone as in PULSE, from the image at 32 px,
by ridge regression on the generator's own draws (Hoerl & Kennard, "Ridge Regression", 1970):
the normal equations are summed over the draws, and solved once. `python -m
stylesr_jax.fit_estimate` fits it.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.degradations import resize
from stylesr_jax.generators.base import PULSE_SLOPE, Generator
from stylesr_jax.generators.layers import leaky_relu
from stylesr_jax.priors.whitening import draw_w
from stylesr_jax.runtime import files, weights
from stylesr_jax.runtime.pytrees import network_sha256

EMBEDDED = ("estimate-mobile-ffhq-1024.safetensors",)
SIZE = 32  # px of the images that it reads
RIDGE = 0.05  # variance of what else is in an image, on [-1, 1]: photographs are not draws
BATCH = 32  # draws in one compiled call
KEEP_EVERY = 2000  # draws between two saves
HELD_OUT = 512  # draws for the figures
Say = Callable[[str], None]
Params = Mapping[str, Array]  # "image" (SIZE, SIZE, 3), "matrix" (SIZE * SIZE * 3, dim), "mean"


def estimated_style(
    params: Params, target: Float[Array, "s s c"], mask: Float[Array, "s s 1"]
) -> Float[Array, " w_dim"]:
    """w (w_dim,) that an image (s, s, c) in [-1, 1] suggests; nothing where `mask` is 0."""
    size = (SIZE, SIZE)
    surprise = (resize(target, size) - params["image"]) * jnp.clip(resize(mask, size), 0.0, 1.0)
    linear = params["mean"] + surprise.reshape(-1) @ params["matrix"]
    return leaky_relu(linear, 1.0 / PULSE_SLOPE)


# --- The fit --------------------------------------------------------------------------------


def fit_estimate(
    key: Key[Array, ""],
    generator: Generator,
    *,
    draws: int,
    keep: Path,
    say: Say,
) -> tuple[dict[str, Float[np.ndarray, "..."]], dict[str, float]]:
    """Fit the estimate on a generator's draws.

    Sums are kept in the file `keep`, from where a killed run goes on.

    Returns:
        What `estimated_style` reads, and figures: of held-out draws the mean squared error of
        leaky_relu(w, 5), and that of its mean as a guess.

    Raises:
        UserError: `keep` holds the sums of another fit, or cannot be written.
    """
    facts = {"generator": generator_sha256(generator), "key": str(jax.random.key_data(key))}
    sums = _kept_sums(keep, facts, generator.w_dim)
    for number in range(int(sums["draws"]) // BATCH, -(-draws // BATCH)):
        images, linear = _draws(jax.random.fold_in(key, number), generator)
        design = np.concatenate([images, np.ones((BATCH, 1))], axis=1)  # and the constant
        sums["products"] += design.T @ design
        sums["answers"] += design.T @ np.asarray(linear, np.float64)
        sums["draws"] += BATCH
        if sums["draws"] % KEEP_EVERY < BATCH or sums["draws"] >= draws:
            weights.save(keep, sums, {"kind": "estimate-sums", "facts": facts})
            say(f"draw {int(sums['draws'])}/{draws}")
    params = _solved(sums)
    return params, _figures(jax.random.fold_in(key, 2**31), generator, params)


def _kept_sums(keep: Path, facts: Mapping[str, Any], dim: int) -> dict[str, np.ndarray]:
    """The sums that an earlier run has kept, or zeros."""
    kept = weights.load_kept(keep, facts, "the sums")
    if kept is not None:
        return kept
    count = SIZE * SIZE * 3 + 1
    return {
        "products": np.zeros((count, count)),
        "answers": np.zeros((count, dim)),
        "draws": np.zeros((), np.int64),
    }


@jax.jit
def _draws(key: Array, generator: Generator) -> tuple[Array, Array]:
    """Images (BATCH, SIZE * SIZE * 3) and leaky_relu(w, 5) (BATCH, dim) of fresh latents.

    They are shrunk to SIZE, from the generator's small images if it makes them.
    """
    sizes = generator.config.image_resolutions
    stop = min((size for size in sizes if size >= 2 * SIZE), default=generator.resolution)

    def image(w: Array) -> Array:
        ws = jnp.broadcast_to(w, (1, generator.num_ws, generator.w_dim))
        return resize(generator.synthesise(ws, stop=stop)[0], (SIZE, SIZE))

    w = draw_w(key, generator, BATCH)
    at_once = 8 if stop <= 4 * SIZE else 1  # full images take memory
    images = jax.lax.map(image, w, batch_size=at_once)
    return images.reshape(BATCH, -1), leaky_relu(w, PULSE_SLOPE)


def _solved(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The estimate, from the sums of its normal equations."""
    count = int(sums["draws"])
    products, answers = sums["products"] / count, sums["answers"] / count
    image, mean = products[-1, :-1], answers[-1]
    covariance = products[:-1, :-1] - np.outer(image, image)
    covariance[np.diag_indices_from(covariance)] += RIDGE
    matrix = np.linalg.solve(covariance, answers[:-1] - np.outer(image, mean))
    parts = {"image": image.reshape(SIZE, SIZE, 3), "matrix": matrix, "mean": mean}
    return {name: np.asarray(part, np.float32) for name, part in parts.items()}


def _figures(key: Array, generator: Generator, params: Mapping[str, np.ndarray]) -> dict:
    """Errors of held-out draws."""
    errors, guesses = [], []
    for number in range(HELD_OUT // BATCH):
        images, linear = _draws(jax.random.fold_in(key, number), generator)
        predicted = params["mean"] + (images - params["image"].reshape(-1)) @ params["matrix"]
        errors.append(np.mean(np.square(predicted - linear)))
        guesses.append(np.mean(np.square(params["mean"] - linear)))
    return {"error": float(np.mean(errors)), "mean_error": float(np.mean(guesses))}


# --- Files ----------------------------------------------------------------------------------


def generator_sha256(generator: Generator) -> str:
    """Which generator it is, by both of its networks."""
    return network_sha256({name: generator.params[name] for name in ("mapping", "synthesis")})


def estimates_folder() -> Path:
    """Where estimates that the user fitted are kept."""
    return files.cache_dir() / "estimates"


def save_estimate(
    path: str | os.PathLike[str],
    generator: Generator,
    params: Mapping[str, np.ndarray],
    header: Mapping[str, Any],
) -> None:
    """Write an estimate in half precision, with the generator that it was fitted for."""
    facts = {
        **header,
        "kind": "estimate",
        "generator": generator.name,
        "generator_sha256": generator_sha256(generator),
    }
    half = {name: np.asarray(part, np.float16) for name, part in params.items()}
    weights.save(path, half, facts)


def with_known_estimate(generator: Generator) -> Generator:
    """The generator with the estimate that was fitted for it, embedded or by the user, if any.

    It is then `statistics["estimate"]`.
    """
    fact = {"generator_sha256": generator_sha256(generator)}
    params = weights.load_fitted(fact, EMBEDDED, estimates_folder())
    if params is None:
        return generator
    statistics = {**generator.statistics, "estimate": jax.device_put(params)}
    return generator.replace(statistics=statistics)  # type: ignore[attr-defined]
