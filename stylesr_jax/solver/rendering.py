"""From latents to pictures: drawn, corrected, degraded again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from stylesr_jax.degradations import Degradation
from stylesr_jax.generators.base import Generator
from stylesr_jax.methods.base import render
from stylesr_jax.methods.view import Latents
from stylesr_jax.runtime.program_cache import kept_jit
from stylesr_jax.solver.consistency import corrected, correction
from stylesr_jax.solver.observation import Observation

_render = kept_jit(render, static_argnames=("block", "stop"))
correction_of = kept_jit(correction)
_corrected = kept_jit(corrected)


@jax.jit
def _degrade(degradation: Degradation, image: Array) -> Array:
    return degradation(image)


def redraw(generator: Generator, latents: Latents, *, block: int = 0) -> Float[np.ndarray, "H W 3"]:
    """The image that a generator draws from latents, clipped to [-1, 1].

    One compiled function for one image: the same latents give the same pixels, whatever they
    were searched together with.
    """
    return np.clip(np.asarray(_render(generator, latents, block=block)), -1.0, 1.0)


def redraw_direct(
    method: Any, observation: Observation, resolution: int
) -> Float[np.ndarray, "{resolution} {resolution} 3"]:
    """What a method without a search makes of an observation, clipped to [-1, 1]."""
    image = method.direct(jnp.asarray(observation.target), resolution)
    return np.clip(np.asarray(image), -1.0, 1.0)


def add_correction(
    image: Float[np.ndarray, "H W 3"], correction: np.ndarray | None
) -> Float[np.ndarray, "H W 3"]:
    """What was generated with its correction, clipped; without one, as it is."""
    if correction is None:
        return image
    return np.asarray(_corrected(jnp.asarray(image), jnp.asarray(correction)))


def degrade(
    degradation: Degradation, image: Float[np.ndarray, "H W C"]
) -> Float[np.ndarray, "h w c"]:
    """A(image), not clipped."""
    return np.asarray(_degrade(degradation, image))


def residuals(
    low: Float[np.ndarray, "h w c"],
    reference: Float[np.ndarray, "h w c"],
    known: Float[np.ndarray, "h w 1"] | float = 1.0,
) -> tuple[float, float]:
    """Mean |A(x) - y| and the PSNR in dB, data range 2, of the pixels that are known."""
    weights = np.broadcast_to(known, low.shape)
    error = low - reference
    mse = float(np.average(np.square(error), weights=weights))
    l1 = float(np.average(np.abs(error), weights=weights))
    return l1, float(10 * np.log10(4.0 / max(mse, 1e-12)))
