"""What a search minimises: one term is one small function of one start's `View`.

A term returns an unweighted scalar; a method multiplies it by one of its settings and adds up.
Signs are such that less is better: log p enters with a minus sign inside its term.
"""

from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from stylesr_jax.degradations import Degradation
from stylesr_jax.generators.base import Generator, Noise


class Shared(NamedTuple):
    """What all starts of a run share; a pytree of compiled arguments."""

    generator: Generator
    prior: Any  # flow.Prior, or None for methods without one
    degradation: Degradation  # A
    perceptual: Any  # feature network of the LPIPS terms, or None
    settings: dict[str, Array]  # the method's numbers, float32 scalars


class Example(NamedTuple):
    """What belongs to one start; searches stack them along a leading axis."""

    target: Array  # y: (h, w, c) in [-1, 1]
    mask: Array  # (h, w, 1): 1 where y was observed, 0 where it is padding or unknown
    group: Array  # int32: which image of the batch it is a start for


class Latents(NamedTuple):
    """What a method's variables decode to: all that the generator needs for one image."""

    ws: Array  # (num_ws, w_dim)
    noise: Noise | None = None  # None: the stored maps
    activation: Any = None  # entering the method's block, or None to begin at the input
    synthesis: Any = None  # changed synthesis weights, or None for the generator's own


class View:
    """One start as the terms see it; expensive parts are computed once, when first asked for."""

    def __init__(self, shared: Shared, example: Example, latents: Latents, image: Array) -> None:
        self.shared = shared
        self.example = example
        self.latents = latents
        self.image = image  # G(ws, noise): (H, W, 3)

    @cached_property
    def low(self) -> Array:
        """A(G(ws)): (h, w, c)."""
        return self.shared.degradation(self.image)

    @cached_property
    def residual(self) -> Array:
        """A(G(ws)) - y where y was observed, else 0: (h, w, c)."""
        return (self.low - self.example.target) * self.example.mask

    @cached_property
    def observed(self) -> Array:
        """How many numbers were observed."""
        return jnp.sum(self.example.mask) * self.example.target.shape[-1]

    @cached_property
    def flow(self) -> tuple[Array, Array]:
        """(F(w_i), log p_F(w_i)): (num_ws, w_dim) and (num_ws,), in one pass."""
        return self.shared.prior.gaussianize_and_log_prob(self.latents.ws)


def l1_sum(view: View) -> Array:
    """||y - A(G(w))||_1, the Laplace likelihood of RLS; images in [-1, 1]."""
    return jnp.sum(jnp.abs(view.residual))


def l1_mean(view: View) -> Array:
    """The same divided by the number of observed values, whatever the size of y."""
    return l1_sum(view) / view.observed


def prior(view: View) -> Array:
    """-P_w = -(1/L) sum_i log p_F(w_i). Source: RLS, equation 5."""
    return -jnp.mean(view.flow[1])


def gaussian_norm(view: View) -> Array:
    """-P_gauss = (1/L) sum_i (||F(w_i)||_2 - sqrt(d))^2. Source: RLS, equation 6."""
    norms = jnp.sqrt(jnp.sum(jnp.square(view.flow[0]), axis=-1) + 1e-12)
    return jnp.mean(jnp.square(norms - jnp.sqrt(float(view.latents.ws.shape[-1]))))


def cross(view: View) -> Array:
    """-P_cross = sum_{i<j} ||w_i - w_j||_2^2, as L times the spread around the mean style."""
    ws = view.latents.ws
    return ws.shape[0] * jnp.sum(jnp.square(ws - jnp.mean(ws, axis=0)))
