"""RLS, regularised latent search: a maximum a posteriori estimate of the styles.

Source: Gheisari & Genovesio, "Super-Resolution through StyleGAN Regularized Latent Search",
NeurIPS 2022 workshop. The default searches in phases, first one style for all layers and then one
for each: Poirier-Ginter & Lalonde, "Robust Unsupervised StyleGAN Image Restoration", CVPR 2023; at
first with small images. The last phase searches an activation too: Daras et al., "Intermediate
Layer Optimization for Inverse Problems using Deep Generative Models", ICML 2021.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.base import Generator
from stylesr_jax.methods.base import (
    Rate,
    Search,
    Stage,
    Value,
    activation_entering,
    small_size,
    static,
)
from stylesr_jax.methods.terms import (
    cross,
    gaussian_norm,
    l1_mean,
    l1_sum,
    negative_log_prior,
    whitened_norm,
    whitened_spread,
)
from stylesr_jax.methods.view import Beginning, Context, Latents, View
from stylesr_jax.priors.estimate import estimated_style
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.optimisers import ADAM, NORMALISED
from stylesr_jax.search.projections import l1_norm, near
from stylesr_jax.search.schedules import schedule

Space = Literal["w+", "w"]

LARGEST_ACTIVATION = 32  # px; larger ones fit inputs of 128 px too closely
UNIT_SIDE = 32  # px of inputs; the activation's ball of larger ones, which say more, is larger

# Section 4: Adam, 500 steps at 0.5 in w, from the mean; L1 as a sum makes the weights of one
# order. Several solutions start from mapped latents. The published flow was fitted without noise,
# so that f(w) has a squared norm near 512; under the embedded one it is 312, for which P_gauss
# charges the generator's own latents (benchmarks/results/gaussianization).
PAPER: Mapping[str, Value] = {
    "style_steps": 0,
    "steps": 500,
    "learning_rate": 0.5,
    "optimiser": "adam",
    "rate": "constant",
    "coarse": False,
    "coarse_steps": 0,
    "space": "w+",
    "coordinates": "raw",
    "reduction": "sum",
    "lambda_l1": 1.0,
    "lambda_w": 1e-4,
    "lambda_g": 2e-4,
    "lambda_c": 0.01,
    "lambda_n": 0.0,
    "lambda_s": 0.0,
    "tries": 1,
    "noise": "stored",
    "spread": 1.0,
    "spread_first": 0.0,
    "estimate": 0.0,
    "fidelity": 0.0,
}


class StyleSearch(Search):
    """RLS's objective, and its phases that search styles."""

    step_fields = ("style_steps", "coarse_steps", "steps")
    needs_prior = True
    presets: ClassVar = {
        "fast": {"style_steps": 100, "coarse_steps": 100, "steps": 10},
        "best": {"style_steps": 200, "coarse_steps": 300, "steps": 200},
    }

    coarse: bool = static(True)  # phases with small images, if the generator makes them
    style_steps: int = 150  # in W, from where each layer has a style of its own
    coarse_steps: int = 200  # in the space of the last phase
    steps: int = 60
    learning_rate: float = 0.05
    optimiser: Literal["normalised", "adam"] = static("adam")
    rate: Rate = static("cosine")
    space: Space = static("w+")
    coordinates: Literal["raw", "whitened"] = static("whitened")
    reduction: Literal["sum", "mean"] = static("mean")
    lambda_l1: float = 1.0
    lambda_w: float = 0.0
    lambda_g: float = 0.0
    lambda_c: float = 0.0
    lambda_n: float = 0.02  # of the mean square of whitened styles
    lambda_s: float = 0.05  # of that of their differences from their mean
    tries: int = static(32)  # starts drawn for a solution; the nearest to the input is searched
    estimate: float = 0.5  # how far from the mean style to that which the input suggests
    spread: float = 0.5  # and how far from there to a drawn style solutions begin
    spread_first: float = 0.0  # the same for an image's first solution
    noise: Literal["own", "stored"] = static("own")  # of further solutions: their own maps, or not

    def objective(self, view: View) -> dict[str, Float[Array, ""]]:
        """Equation 4: ||y - A(G(w))||_1 - [lambda_w P_w + lambda_g P_gauss + lambda_c P_cross].

        In the default, P_w is a Gaussian's, and P_cross of whitened styles.
        """
        return {
            "l1": self.lambda_l1 * self.distance(view),
            "prior": self.lambda_w * negative_log_prior(view),
            "gauss": self.lambda_g * gaussian_norm(view),
            "cross": self.lambda_c * cross(view),
            "norm": self.lambda_n * whitened_norm(view),
            "spread": self.lambda_s * whitened_spread(view),
        }

    def distance(self, view: View) -> Float[Array, ""]:
        """||y - A(G(w))||_1, as a sum over the observed values or as their mean."""
        return l1_sum(view) if self.reduction == "sum" else l1_mean(view)

    def from_styles(self) -> Self:
        """Without the phase in W, in which the layers' styles would be one."""
        return self.replace(style_steps=0)

    def fitted(self, generator: Generator, side: int) -> Self:
        """Without small images, and with fewer steps in W, where the generator makes none."""
        if small_size(generator) is not None:
            return self
        return self.replace(coarse=False, style_steps=min(self.style_steps, self.full_steps))

    @property
    def used_step_fields(self) -> tuple[str, ...]:
        """All, or those of phases with full images."""
        return tuple(name for name in self.step_fields if self.coarse or name != "coarse_steps")

    def make_stages(self) -> Iterator[Stage]:
        """Steps in W, then in the space that was chosen, at last with full images."""
        if self.style_steps:
            yield self.stage(self.style_steps, space="w", coarse=self.coarse)
        if self.coarse and self.coarse_steps:
            yield self.stage(self.coarse_steps, space=self.space, coarse=True)
        yield self.stage(self.steps, space=self.space, coarse=False)

    @property
    def full_steps(self) -> int:
        """With full images, without those in W."""
        return self.steps

    def stage(self, steps: int, *, space: Space, coarse: bool) -> "StyleStage":
        """A phase."""
        return StyleStage(
            method=self,
            steps=steps,
            rate=self.learning_rate,
            schedule=schedule(self.rate),
            space=space,
            coarse=coarse,
            whitened=self.coordinates == "whitened",
            normalised=self.optimiser == "normalised",
        )


STYLES_ALONE: Mapping[str, Value] = {**PAPER, "activation_steps": 0}


class RLS(StyleSearch):
    """Regularised latent search (Gheisari & Genovesio 2022)."""

    name = "rls"
    summary = "regularised latent search: L1 likelihood and a prior on W+"
    source = "Gheisari & Genovesio, NeurIPS 2022 workshop (RLS)"
    step_fields = (*StyleSearch.step_fields, "activation_steps")
    presets: ClassVar = {
        "fast": {
            "style_steps": 15,
            "coarse_steps": 80,
            "steps": 0,
            "activation_steps": 10,
            "activation_rate": 0.12,
        },
        "best": {"steps": 20, "activation_steps": 100, "activation_rate": 0.05},
        "diverse": {"spread": 1.0},  # starts further from the mean
        "paper": STYLES_ALONE,
        # The ablations of the published method.
        "paper-no-gauss": {**STYLES_ALONE, "lambda_g": 0.0},
        "paper-no-prior": {**STYLES_ALONE, "lambda_w": 0.0},
        "paper-no-cross": {**STYLES_ALONE, "lambda_c": 0.0},
        "paper-w": {**STYLES_ALONE, "space": "w"},
    }

    steps: int = 5
    activation_steps: int = 60  # with the activation that enters a block too
    activation_rate: float = 0.07
    activation_block: int = static(0)  # which; 0: where features have half the input's size
    activation_radius: float = 0.1  # of the l1 ball for it at 32 px, in l1 norms of its centre

    @property
    def full_steps(self) -> int:
        """With full images, without those in W."""
        return self.steps + self.activation_steps

    def fitted(self, generator: Generator, side: int) -> "RLS":
        """With a block that the generator has, and a ball for an input of `side` px."""
        sizes = generator.config.block_resolutions
        half = sum(size <= min(side // 2, LARGEST_ACTIVATION) for size in sizes)
        fitted = super().fitted(generator, side)
        if len(sizes) == 1:  # no activation enters a block: styles get its steps
            return fitted.replace(steps=self.full_steps, activation_steps=0)
        return fitted.replace(
            activation_block=min(self.activation_block or max(half, 1), len(sizes) - 1),
            activation_radius=self.activation_radius * max(side / UNIT_SIDE, 1.0),
        )

    def make_stages(self) -> Iterator[Stage]:
        """Styles, then the activation too."""
        *early, styles = super().make_stages()
        yield from early
        if self.steps or not self.activation_steps:
            yield styles
        if self.activation_steps:
            yield ActivationStage(
                method=self,
                steps=self.activation_steps,
                rate=self.activation_rate,
                schedule=schedule(self.rate),
                block=self.activation_block,
                styles=styles,
            )


class StyleStage(Stage):
    """A search for styles: one for all layers in W, one for each layer in W+."""

    space: Space = static("w+")
    whitened: bool = static(False)
    normalised: bool = static(False)

    def optimiser(self) -> optax.GradientTransformation:
        """Descent along gradients of unit length, each style's by itself; or Adam."""
        return NORMALISED if self.normalised else ADAM

    def start(self, given: Beginning) -> Variables:
        """A style, or those that the stage before ended with."""
        context, given_style = given.context, given.start.styles
        if given.previous is not None:
            point = given.previous["latent"]
        else:
            style = self.first_style(given) if given_style is None else given_style
            point = context.prior.whiten(style) if self.whitened else style
        rows = context.generator.num_ws if self.space == "w+" else 1
        return {"latent": jnp.broadcast_to(point, (rows, point.shape[-1]))}

    def first_style(self, given: Beginning) -> Float[Array, " w_dim"]:
        """w that the first stage begins from: (w_dim,).

        An image's first solution begins between the mean w and the estimate of w from the input,
        if the generator has one, and every other one `spread` of the way from there to a mapped
        latent of its own, in whitened coordinates.
        """
        generator, method, prior = given.context.generator, self.method, given.context.prior
        mean, estimate = generator.statistics["w_mean"], generator.statistics.get("estimate")
        if estimate is not None:
            suggested = estimated_style(estimate, given.start.target, given.start.mask)
            mean = between(prior, mean, suggested, method.estimate)
        drawn = generator.map_latents(jax.random.normal(given.key, (1, generator.z_dim)))[0]
        share = jnp.where(given.index == 0, method.spread_first, method.spread)
        return between(prior, mean, drawn, share)

    def decode(self, context: Context, variables: Variables) -> Latents:
        """Styles (num_ws, w_dim)."""
        point = variables["latent"]
        ws = context.prior.unwhiten(point) if self.whitened else point
        num_ws, w_dim = context.generator.num_ws, context.generator.w_dim
        return Latents(ws=jnp.broadcast_to(ws, (num_ws, w_dim)))


class ActivationStage(Stage):
    """A search for styles and for the activation that enters a block.

    The activation stays in an l1 ball around what the styles make there (Daras et al. 2021,
    section 3), in units of its own deviation, so that one rate is right for it and for styles.

    Attributes:
        styles: the stage that would search styles alone.
    """

    styles: Any = None

    def start(self, given: Beginning) -> Variables:
        """The styles that were found, and what they make there."""
        styles = self.styles.start(given)
        latents = self.styles.latents(given.context, given.start, styles)
        activation = activation_entering(given.context.generator, latents, block=self.block)
        scale = jax.tree.map(lambda x: jnp.maximum(jnp.std(x), 1e-6), activation)
        scaled = jax.tree.map(jnp.divide, activation, scale)
        return {"styles": styles, "activation": scaled, "scale": scale}

    def decode(self, context: Context, variables: Variables) -> Latents:
        """Styles and the activation."""
        latents = self.styles.decode(context, variables["styles"])
        scale = jax.lax.stop_gradient(variables["scale"])
        activation = jax.tree.map(jnp.multiply, variables["activation"], scale)
        return latents._replace(activation=activation)

    def project(self, variables: Variables, anchor: Variables) -> Variables:
        """The activation in its ball."""
        centre = anchor["activation"]
        radius = self.method.activation_radius * l1_norm(centre)
        return {**variables, "activation": near(variables["activation"], centre, radius)}


def between(
    prior: Any, a: Float[Array, " w_dim"], b: Float[Array, " w_dim"], share: Any
) -> Float[Array, " w_dim"]:
    """w that lies `share` of the way from a to b in whitened coordinates, exact at its ends."""
    blend = prior.whiten(a) + share * (prior.whiten(b) - prior.whiten(a))
    return jnp.where(share == 0.0, a, jnp.where(share == 1.0, b, prior.unwhiten(blend)))
