"""One start as a method's terms see it: its latents, its image, and what the image degrades to."""

from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.degradations import Bicubic, Compose, Degradation, resize
from stylesr_jax.degradations.base import stages_in
from stylesr_jax.generators.base import Generator, Noise


class Context(NamedTuple):
    """What all starts of a search share; a pytree of compiled arguments."""

    generator: Generator
    prior: Any  # priors.flow.Prior, or None for methods without one
    degradation: Degradation  # A
    perceptual: Any  # parameters of the LPIPS network, or None


class Start(NamedTuple):
    """What belongs to one start; searches stack them along a leading axis."""

    target: Array  # y: (h, w, c) in [-1, 1]
    mask: Array  # (h, w, 1): 1 where y was observed, 0 where it is padding or unknown
    group: Array  # int32: which image of the batch it is a start for
    injected: Noise | None = None  # added to the noise maps, see `levers.injected_noise`
    styles: Array | None = None  # (num_ws, w_dim) to begin from, instead of the method's own


class Beginning(NamedTuple):
    """What a stage is given to begin one start's search from."""

    key: Array  # the start's
    index: Array  # int32: counts an image's solutions
    context: Context
    start: Start
    previous: Any  # variables that the stage before ended with, None in the first


class Latents(NamedTuple):
    """What a method's variables decode to: all that the generator needs for one image."""

    ws: Array  # (num_ws, w_dim)
    noise: Noise | None = None  # None: the stored maps
    activation: Any = None  # entering the stage's block, or None to begin at the input
    synthesis: Any = None  # changed synthesis weights, or None for the generator's own


class View:
    """One start as the terms see it; expensive parts are computed once, when first asked for.

    Attributes:
        image: G(ws, noise): (H, W, 3), or a small version of it.
        variables: the search's, which the latents were decoded from.
    """

    def __init__(
        self,
        context: Context,
        start: Start,
        latents: Latents,
        image: Float[Array, "H W 3"],
        variables: Any,
    ) -> None:
        self.context = context
        self.start = start
        self.latents = latents
        self.image = image
        self.variables = variables

    @cached_property
    def low(self) -> Float[Array, "h w c"]:
        """A(G(ws)): (h, w, c)."""
        return degraded(self.context, self.image)

    @cached_property
    def compared_size(self) -> int:
        """Pixels of a side at which A(G) and y are compared: fewer than y's by small images."""
        size, image = self.start.target.shape[0], self.image.shape[0]
        small = image < self.context.generator.resolution
        return min(size, image // 2) if small else size

    @cached_property
    def residual(self) -> Float[Array, "h w c"]:
        """A(G(ws)) - y where y was observed, else 0: (h, w, c), or shrunk to `compared_size`."""
        residual = (self.low - self.start.target) * self.start.mask
        size = self.compared_size
        return residual if size == residual.shape[0] else resize(residual, (size, size))

    @cached_property
    def observed(self) -> Float[Array, ""]:
        """How many of the compared numbers were observed."""
        height, _, channels = self.start.target.shape
        share = (self.compared_size / height) ** 2
        return jnp.sum(self.start.mask) * (channels * share)

    @cached_property
    def whitened(self) -> Float[Array, "num_ws w_dim"]:
        """u = whiten(w)."""
        return self.context.prior.whiten(self.latents.ws)

    @cached_property
    def flow(self) -> tuple[Float[Array, "num_ws w_dim"], Float[Array, " num_ws"]]:
        """(F(w_i), log p_F(w_i)): (num_ws, w_dim) and (num_ws,), in one pass."""
        return self.context.prior.gaussianize_and_log_prob(self.latents.ws)


def degraded(context: Context, image: Float[Array, "H W 3"]) -> Float[Array, "h w c"]:
    """A(image); a small image is enlarged first, so that A sees the pixels it expects."""
    resolution, degradation = context.generator.resolution, context.degradation
    if image.shape[0] != resolution:
        degradation = Compose((Bicubic(size=resolution), *stages_in(degradation)))
    return degradation(image)
