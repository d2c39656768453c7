"""From latents to pictures: drawn, corrected, degraded again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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


def redraw(generator: Generator, latents: Latents, *, block: int = 0) -> np.ndarray:
    """The image (H, W, 3) that a generator draws from latents, clipped to [-1, 1].

    One compiled function for one image: the same latents give the same pixels, whatever they
    were searched together with.
    """
    return np.clip(np.asarray(_render(generator, latents, block=block)), -1.0, 1.0)


def redraw_direct(method: Any, observation: Observation, resolution: int) -> np.ndarray:
    """What a method without a search makes of an observation: (H, W, 3), clipped to [-1, 1]."""
    image = method.direct(jnp.asarray(observation.target), resolution)
    return np.clip(np.asarray(image), -1.0, 1.0)


def add_correction(image: np.ndarray, correction: np.ndarray | None) -> np.ndarray:
    """What was generated (H, W, 3) with its correction, clipped; without one, as it is."""
    return (
        image
        if correction is None
        else np.asarray(_corrected(jnp.asarray(image), jnp.asarray(correction)))
    )


def degrade(degradation: Degradation, image: np.ndarray) -> np.ndarray:
    """A(image), not clipped."""
    return np.asarray(_degrade(degradation, image))


def residuals(
    low: np.ndarray, reference: np.ndarray, known: np.ndarray | float = 1.0
) -> tuple[float, float]:
    """Mean |A(x) - y| and the PSNR in dB, data range 2, of the pixels that are known."""
    weights = np.broadcast_to(known, low.shape)
    error = low - reference
    mse = float(np.average(np.square(error), weights=weights))
    l1 = float(np.average(np.abs(error), weights=weights))
    return l1, float(10 * np.log10(4.0 / max(mse, 1e-12)))
