"""Robust unsupervised restoration: one style, one for each layer, one for each filter.

Source: Poirier-Ginter & Lalonde, "Robust Unsupervised StyleGAN Image Restoration", CVPR 2023,
arXiv 2302.06733.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.base import StyledLayer
from stylesr_jax.methods.base import Search, Stage
from stylesr_jax.methods.rls import Space, StyleStage
from stylesr_jax.methods.terms import l1_coarsest, perceptual_pyramid
from stylesr_jax.methods.view import Beginning, Context, Latents, View
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.optimisers import NORMALISED


class Robust(Search):
    """Three phases, W, W+, W++, along normalised gradients (Poirier-Ginter & Lalonde 2023)."""

    name = "robust"
    summary = "W, then W+, then a style for each filter; LPIPS at several sizes"
    source = "Poirier-Ginter & Lalonde, CVPR 2023"
    step_fields = ("style_steps", "layer_steps", "filter_steps")
    needs_perceptual = True
    presets: ClassVar = {
        "fast": {"style_steps": 20, "layer_steps": 20, "filter_steps": 5},
        "best": {"style_steps": 150, "layer_steps": 150, "filter_steps": 150},
        # Section 4.1: one setting for all tasks.
        "paper": {"style_steps": 150, "layer_steps": 150, "filter_steps": 150, "fidelity": 0.0},
    }

    style_steps: int = 50
    layer_steps: int = 50
    filter_steps: int = 25
    style_rate: float = 0.08  # how far a style moves in a step
    layer_rate: float = 0.02
    filter_rate: float = 0.005
    lambda_lpips: float = 1.0
    lambda_l1: float = 0.1

    def objective(self, view: View) -> dict[str, Float[Array, ""]]:
        """Equation 3: LPIPS at every size, and the L1 at the coarsest, images in [0, 1]."""
        return {
            "lpips": self.lambda_lpips * perceptual_pyramid(view),
            "l1": self.lambda_l1 * l1_coarsest(view),
        }

    def from_styles(self) -> "Robust":
        """Without the phase in W."""
        return self.replace(style_steps=0)

    def make_stages(self) -> Iterator[Stage]:
        """W, W+, W++, each from where the last one ended."""
        if self.style_steps:
            yield self.stage("w", self.style_steps, self.style_rate)
        yield self.stage("w+", self.layer_steps, self.layer_rate)
        if self.filter_steps:
            yield FilterStage(method=self, steps=self.filter_steps, rate=self.filter_rate)

    def stage(self, space: Space, steps: int, rate: float) -> "MeanStyleStage":
        """A phase of styles."""
        return MeanStyleStage(method=self, steps=steps, rate=rate, space=space, normalised=True)


class MeanStyleStage(StyleStage):
    """Styles from the mean; of further solutions from mapped latents half-way to it."""

    def first_style(self, given: Beginning) -> Float[Array, " w_dim"]:
        """The mean style, or one half-way to a drawn one: (w_dim,)."""
        generator = given.context.generator
        mean = generator.statistics["w_mean"]
        drawn = generator.map_latents(jax.random.normal(given.key, (1, generator.z_dim)))[0]
        return jnp.where(given.index == 0, mean, 0.5 * (mean + drawn))


class FilterStage(Stage):
    """W++: a style for each filter of the convolutions, which modulates that filter alone."""

    def start(self, given: Beginning) -> Variables:
        """Every filter with its layer's style, (filters, w_dim) for each layer."""
        generator, styles = given.context.generator, given.previous["latent"]
        synthesis = generator.params["synthesis"]
        filters = {
            "/".join(layer.path): jnp.broadcast_to(
                styles[layer.style], (_weight_of(synthesis, layer).shape[-1], styles.shape[-1])
            )
            for layer in generator.config.styled_layers
        }
        return {"filters": filters, "latent": styles}

    def decode(self, context: Context, variables: Variables) -> Latents:
        """Weights with their modulation in them; the layers' own modulation is one."""
        synthesis = context.generator.params["synthesis"]
        for layer in context.generator.config.styled_layers:
            filters = variables["filters"]["/".join(layer.path)]
            synthesis = _with_filters(synthesis, layer, layer.path, filters)
        styles = jax.lax.stop_gradient(variables["latent"])
        return Latents(ws=styles, synthesis=synthesis)

    def optimiser(self) -> optax.GradientTransformation:
        """Every filter's style moves by the rate."""
        return NORMALISED


def _weight_of(synthesis: Any, layer: StyledLayer) -> Array:
    """The weight (..., inputs, filters) of a layer."""
    params = synthesis
    for key in layer.path:
        params = params[key]
    return params[layer.weight]


def _with_filters(
    params: Any, layer: StyledLayer, path: tuple[str, ...], filters: Float[Array, "filters w_dim"]
) -> Any:
    """Parameters with the weight of the layer at `path` modulated filter by filter."""
    if path:
        key, *rest = path
        return {**params, key: _with_filters(params[key], layer, tuple(rest), filters)}
    affine = params[layer.modulation]
    scales = filters @ affine["weight"] + affine["bias"]
    unmodulated = {
        "weight": jnp.zeros_like(affine["weight"]),
        "bias": jnp.ones_like(affine["bias"]),
    }
    return {
        **params,
        layer.weight: params[layer.weight] * scales.T,
        layer.modulation: unmodulated,
    }
