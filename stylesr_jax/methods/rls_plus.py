"""RLS+: from RLS's solution, the generator's weights move too, in a small l1 ball.

Source: the follow-up of RLS's authors, arXiv 2311.16923. Its settings are not published; these
were chosen among three on two faces (benchmarks/results/defaults).
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import jax
from jax import Array
from jaxtyping import Float

from stylesr_jax.methods.base import Stage, static
from stylesr_jax.methods.rls import PAPER, StyleSearch
from stylesr_jax.methods.view import Beginning, Context, Latents, View
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.projections import l1_norm, near
from stylesr_jax.search.schedules import Cosine


class RLSPlus(StyleSearch):
    """RLS, then the likelihood alone over the generator's weights (arXiv 2311.16923)."""

    name = "rls+"
    summary = "RLS, then the generator's weights move in a small l1 ball around the originals"
    source = "Gheisari & Genovesio, arXiv 2311.16923 (RLS+)"
    step_fields = (*StyleSearch.step_fields, "weights_steps")
    presets: ClassVar = {
        "fast": {**StyleSearch.presets["fast"], "weights_steps": 25},
        "best": {**StyleSearch.presets["best"], "weights_steps": 100},
        "paper": PAPER,
    }

    weights_steps: int = 50
    weights_rate: float = 1e-4
    ball: Literal["tensor", "global"] = static("tensor")  # one for each tensor, or one for all
    radius: float = 0.005  # of the ball, in l1 norms of the original weights

    def make_stages(self) -> Iterator[Stage]:
        """RLS's, then the weights."""
        *early, styles = super().make_stages()
        yield from (*early, styles)
        yield WeightsStage(
            method=self,
            steps=self.weights_steps,
            rate=self.weights_rate,
            schedule=Cosine(),
            styles=styles,
        )


class WeightsStage(Stage):
    """A search for weights; styles stay as the stage before left them.

    Attributes:
        styles: that stage.
    """

    styles: Any = None

    def start(self, given: Beginning) -> Variables:
        """The styles that were found, and the generator's own weights."""
        weights = given.context.generator.params["synthesis"]
        return {"latent": given.previous["latent"], "synthesis": weights}

    def decode(self, context: Context, variables: Variables) -> Latents:
        """Styles, and the weights that move."""
        held = {"latent": jax.lax.stop_gradient(variables["latent"])}
        latents = self.styles.decode(context, held)
        return latents._replace(synthesis=variables["synthesis"])

    def terms(self, view: View) -> dict[str, Float[Array, ""]]:
        """The likelihood alone: the prior's terms do not depend on the weights."""
        return {"l1": self.method.lambda_l1 * self.method.distance(view)}

    def project(self, variables: Variables, anchor: Variables) -> Variables:
        """Weights stay in an l1 ball around the originals: one for all, or one for each tensor."""

        def ball(weights: Any, originals: Any) -> Any:
            return near(weights, originals, self.method.radius * l1_norm(originals))

        moved, originals = variables["synthesis"], anchor["synthesis"]
        each = self.method.ball == "tensor"
        moved = jax.tree.map(ball, moved, originals) if each else ball(moved, originals)
        return {**variables, "synthesis": moved}
