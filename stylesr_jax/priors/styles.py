"""Styles like those that a search meets, in whitened coordinates."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.generators.base import Generator
from stylesr_jax.priors.whitening import fit_whitening, unwhiten, whiten


def draw_styles(
    key: Key[Array, ""], generator: Generator, count: int
) -> Float[np.ndarray, "{count} num_ws w_dim"]:
    """Styles (count, num_ws, w_dim) as a search meets them, float32.

    A mapped latent moved 0.2 to 1.1 of the way from the mean w; in 70% of the draws every layer
    is jittered by 0.1 to 0.6 of a standard deviation.
    """
    whitening_key, draw_key = jax.random.split(key)
    whitening = fit_whitening(whitening_key, generator, floor=1e-2)
    keys = (jax.random.fold_in(draw_key, i) for i in range(count))
    return np.stack([np.asarray(_draw(key, generator, whitening)) for key in keys])


@jax.jit
def _draw(key: Array, generator: Generator, whitening: Mapping[str, Array]) -> Array:
    """Styles (num_ws, w_dim) of one image."""
    z_key, psi_key, kind_key, jitter_key, layer_key = jax.random.split(key, 5)
    w = generator.map_latents(jax.random.normal(z_key, (1, generator.z_dim)))[0]
    mean, _ = whiten(whitening, generator.statistics["w_mean"])
    drawn, _ = whiten(whitening, w)
    u = mean + jax.random.uniform(psi_key, (), minval=0.2, maxval=1.1) * (drawn - mean)
    jitter = jax.random.uniform(jitter_key, (), minval=0.1, maxval=0.6)
    jitter = jnp.where(jax.random.uniform(kind_key, ()) < 0.3, 0.0, jitter)
    us = u + jitter * jax.random.normal(layer_key, (generator.num_ws, generator.w_dim))
    return unwhiten(whitening, us)[0]
