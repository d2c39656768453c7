"""Whitened coordinates u = (leaky_relu(w, 5) - mean) @ matrix of W, and their fit.

The matrix holds the covariance's eigenvectors, divided by the square roots of their eigenvalues
after flooring; the first coordinate has the largest eigenvalue. Source: Menon et al., "PULSE", 2020
(leaky ReLU with slope 5, which undoes the mapping network's last activation).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.generators.base import PULSE_SLOPE, Generator


def whiten(
    params: Mapping[str, Array], w: Float[Array, "*batch dim"]
) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
    """w (..., dim) -> u (..., dim), log|det du/dw| (...)."""
    negative = jnp.sum(w < 0.0, axis=-1).astype(w.dtype)
    linear = jnp.where(w < 0.0, PULSE_SLOPE * w, w)
    u = (linear - params["mean"]) @ params["matrix"]
    return u, params["log_det"] + negative * float(np.log(PULSE_SLOPE))


def unwhiten(
    params: Mapping[str, Array], u: Float[Array, "*batch dim"]
) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
    """u (..., dim) -> w (..., dim), log|det dw/du| (...)."""
    linear = u @ params["inverse"] + params["mean"]
    w = jnp.where(linear < 0.0, linear / PULSE_SLOPE, linear)
    negative = jnp.sum(w < 0.0, axis=-1).astype(w.dtype)
    return w, -params["log_det"] - negative * float(np.log(PULSE_SLOPE))


def draw_w(key: Key[Array, ""], generator: Generator, n: int) -> Float[Array, "{n} w_dim"]:
    """n fresh w = M(z): (n, w_dim)."""
    return generator.map_latents(jax.random.normal(key, (n, generator.z_dim)))


def fit_whitening(
    key: Key[Array, ""], generator: Generator, *, floor: float, draws: int = 100_000
) -> dict[str, Float[Array, "..."]]:
    """Whitening parameters of leaky_relu(w, 5) for a generator's mapping network.

    Moments are accumulated in float64 over `draws` latents, rounded up to full batches.

    Returns:
        {"mean": (dim,), "matrix": (dim, dim), "inverse": (dim, dim), "log_det": ()}, float32.
    """
    batch = min(draws, 10_000)

    @jax.jit
    def linear(key: Array, generator: Generator) -> Array:
        w = draw_w(key, generator, batch)
        return jnp.where(w < 0.0, PULSE_SLOPE * w, w)

    total = np.zeros(generator.w_dim)
    products = np.zeros((generator.w_dim, generator.w_dim))
    keys = jax.random.split(key, -(-draws // batch))
    for k in keys:
        x = np.asarray(linear(k, generator), np.float64)
        total += x.sum(axis=0)
        products += x.T @ x
    count = len(keys) * batch
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    deviations = np.sqrt(np.maximum(values[::-1], floor))
    vectors = vectors[:, ::-1]
    parts = {
        "mean": mean,
        "matrix": vectors / deviations,
        "inverse": (vectors * deviations).T,
        "log_det": -np.log(deviations).sum(),
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in parts.items()}
