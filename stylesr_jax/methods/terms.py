"""What a search minimises: one term is one small function of one start's `View`.

A term returns an unweighted scalar; a method multiplies it by one of its settings and adds up.
Signs are such that less is better: log p enters with a minus sign inside its term.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from stylesr_jax.degradations import Bicubic, Compose, Degradation
from stylesr_jax.generators.base import Generator, Noise
from stylesr_jax.metrics.lpips import lpips


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
    injected: Noise | None = None  # added to the noise maps, see `levers.injected_noise`
    correction: Array | None = None  # (h, w, c) added to what a sketch degrades to


class Latents(NamedTuple):
    """What a method's variables decode to: all that the generator needs for one image."""

    ws: Array  # (num_ws, w_dim)
    noise: Noise | None = None  # None: the stored maps
    activation: Any = None  # entering the method's block, or None to begin at the input
    synthesis: Any = None  # changed synthesis weights, or None for the generator's own


class View:
    """One start as the terms see it; expensive parts are computed once, when first asked for."""

    def __init__(
        self, shared: Shared, example: Example, latents: Latents, image: Array, variables: Any
    ) -> None:
        self.shared = shared
        self.example = example
        self.latents = latents
        self.image = image  # G(ws, noise): (H, W, 3), or a sketch of it
        self.variables = variables  # what the latents were decoded from

    @cached_property
    def low(self) -> Array:
        """A(G(ws)): (h, w, c)."""
        low = degraded(self.shared, self.image)
        return low if self.example.correction is None else low + self.example.correction

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


def degraded(shared: Shared, image: Array) -> Array:
    """A(image), of a sketch too: one is enlarged first, so that A sees the pixels it expects."""
    resolution, degradation = shared.generator.resolution, shared.degradation
    if image.shape[0] != resolution:
        stages = degradation.stages if isinstance(degradation, Compose) else (degradation,)
        degradation = Compose((Bicubic(size=resolution), *stages))
    return degradation(image)


def l1_sum(view: View) -> Array:
    """||y - A(G(w))||_1, the Laplace likelihood of RLS; images in [-1, 1]."""
    return jnp.sum(jnp.abs(view.residual))


def l1_mean(view: View) -> Array:
    """The same divided by the number of observed values, whatever the size of y."""
    return l1_sum(view) / view.observed


def prior(view: View) -> Array:
    """-P_w = -(1/L) sum_i log p_F(w_i). Source: RLS, equation 5."""
    return -jnp.mean(view.flow[1])


def prior_whitened(view: View) -> Array:
    """The same with the density of u = whiten(w), for what moves in u and compares densities."""
    whitened = view.shared.prior.whiten(view.latents.ws)
    return -jnp.mean(view.shared.prior.log_prob_whitened(whitened))


def gaussian_norm(view: View) -> Array:
    """-P_gauss = (1/L) sum_i (||F(w_i)||_2 - sqrt(d))^2. Source: RLS, equation 6."""
    norms = jnp.sqrt(jnp.sum(jnp.square(view.flow[0]), axis=-1) + 1e-12)
    return jnp.mean(jnp.square(norms - jnp.sqrt(float(view.latents.ws.shape[-1]))))


def cross(view: View) -> Array:
    """-P_cross = sum_{i<j} ||w_i - w_j||_2^2, as L times the spread around the mean style."""
    ws = view.latents.ws
    return ws.shape[0] * jnp.sum(jnp.square(ws - jnp.mean(ws, axis=0)))


# --- Squared errors -------------------------------------------------------------------------


def l2_sum(view: View) -> Array:
    """||y - A(G)||_2^2; images in [-1, 1]. Source: Bora et al. 2017, equation 3."""
    return jnp.sum(jnp.square(view.residual))


def mse(view: View) -> Array:
    """Mean squared error over the observed values; images in [-1, 1]."""
    return l2_sum(view) / view.observed


def floored_mse(view: View) -> Array:
    """max(mean squared error, the setting "eps"); images in [0, 1]. Source: PULSE's code."""
    return jnp.maximum(0.25 * mse(view), view.shared.settings["eps"])


def mse_255(view: View) -> Array:
    """Mean squared error on the scale of 8 bits. Source: BRGM's code."""
    return 127.5**2 * mse(view)


# --- Perception -----------------------------------------------------------------------------

SMALLEST = 16  # px that VGG16 needs


def perceptual(view: View) -> Array:
    """LPIPS-VGG of A(G) and y; what was not observed is taken from y for both.

    Images of less than 16 px are enlarged to that.
    """
    target, mask = view.example.target, view.example.mask
    pair = (target, view.low * mask + target * (1.0 - mask))
    height, width, channels = target.shape
    if min(height, width) < SMALLEST:
        shape = (max(height, SMALLEST), max(width, SMALLEST), channels)
        pair = tuple(jax.image.resize(image, shape, "linear") for image in pair)
    return lpips(pair[1], pair[0], net="vgg16", params=view.shared.perceptual)


# --- Styles ---------------------------------------------------------------------------------


def _pairwise_angles(rows: Array) -> Array:
    """2 atan2(||a - b||, ||a + b||) for all pairs of rows (n, d): (n, n), 0 to pi.

    The square roots' gradient is 0, not infinite, where two rows are equal or opposite.
    """

    def norm(difference: Array) -> Array:
        square = jnp.sum(jnp.square(difference), axis=-1)
        positive = square > 0.0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)

    return 2.0 * jnp.arctan2(norm(rows[:, None] - rows[None]), norm(rows[:, None] + rows[None]))


def geocross_of(rows: Array) -> Array:
    """Mean over all pairs of rows (n, d) of their angle squared, times d / 8.

    Source: PULSE, section 4.1 (GEOCROSS), with its code's constants.
    """
    return jnp.mean(jnp.square(_pairwise_angles(rows))) * rows.shape[-1] / 8.0


def geocross(view: View) -> Array:
    """GEOCROSS of the styles w_i, as PULSE has it."""
    return geocross_of(view.latents.ws)


@dataclass(frozen=True)
class GeocrossFrom:
    """GEOCROSS of the searched latents from row `first` on, in their own coordinates (ILO)."""

    first: int

    def __call__(self, view: View) -> Array:
        return geocross_of(view.variables["latent"][self.first :])


def mean_style(view: View) -> Array:
    """mean(((w - mean w) / sigma_w)^2) with the setting "w_std" as sigma_w. Source: BRGM."""
    offset = view.latents.ws - view.shared.generator.statistics["w_mean"]
    return jnp.mean(jnp.square(offset / view.shared.settings["w_std"]))


def collinear(view: View) -> Array:
    """mean over all pairs of |1 - cos(w_i, w_j)|. Source: BRGM."""
    ws = view.latents.ws
    unit = ws / jnp.sqrt(jnp.sum(jnp.square(ws), axis=-1, keepdims=True) + 1e-12)
    return jnp.mean(jnp.abs(1.0 - unit @ unit.T))


def latent_norm(view: View) -> Array:
    """||z||_2^2. Source: Bora et al. 2017, equation 3."""
    return jnp.sum(jnp.square(view.variables["z"]))
