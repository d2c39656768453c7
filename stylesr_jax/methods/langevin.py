"""Draws from RLS's posterior: a Langevin chain from each RLS solution.

Beyond the papers: Metropolis-adjusted Langevin sampling (Roberts & Tweedie 1996) of
exp(-objective / temperature).
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import optax
from jax import Array
from jaxtyping import Float, Shaped

from stylesr_jax.errors import UserError
from stylesr_jax.methods.base import Stage, static
from stylesr_jax.methods.rls import PAPER, StyleSearch, StyleStage
from stylesr_jax.methods.terms import negative_log_prior_whitened
from stylesr_jax.methods.view import Beginning, View
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.optimisers import chain_diagnostics, chain_position, langevin


class Langevin(StyleSearch):
    """RLS, then a chain in whitened coordinates, whose like scales are its preconditioner.

    At lambda_w / num_ws as the temperature every style has the flow's own density.
    """

    name = "langevin"
    summary = "draws from RLS's posterior: a Langevin chain from each RLS solution"
    source = "beyond the papers; Roberts & Tweedie 1996 on RLS's objective"
    step_fields = (*StyleSearch.step_fields, "chain_steps")
    draws = True
    presets: ClassVar = {
        "fast": {**StyleSearch.presets["fast"], "chain_steps": 50},
        "best": {**StyleSearch.presets["best"], "chain_steps": 500},
        # Nothing was published; RLS's published weights in coordinates that can be sampled.
        "paper": {name: PAPER[name] for name in ("lambda_w", "lambda_g", "lambda_c", "fidelity")},
    }

    reduction: Literal["sum", "mean"] = static("sum")  # a likelihood, not a mean of its terms
    lambda_w: float = 0.05
    lambda_c: float = 0.03
    chain_steps: int = 100
    step_size: float = 1e-6  # where chains end that begin at 1e-4 (benchmarks/results/defaults)
    temperature: float = 0.002

    def make_stages(self) -> Iterator[Stage]:
        """RLS's, then the chain."""
        if not self.temperature > 0.0:
            raise UserError("langevin.temperature must be above 0, e.g. 0.002")
        yield from super().make_stages()
        yield ChainStage(
            method=self,
            steps=self.chain_steps,
            rate=self.step_size,
            space=self.space,
            whitened=True,
        )


class ChainStage(StyleStage):
    """A Langevin chain over whitened styles."""

    samples = True

    def start(self, given: Beginning) -> Variables:
        """Where the search ended, in whitened coordinates."""
        point = given.previous["latent"]
        if self.method.coordinates == "raw":
            point = given.context.prior.whiten(point)
        return super().start(given._replace(previous={"latent": point}))

    def terms(self, view: View) -> dict[str, Float[Array, ""]]:
        """The objective, with the density of the coordinates that move."""
        density = self.method.lambda_w * negative_log_prior_whitened(view)
        return {**self.method.objective(view), "prior": density}

    def optimiser(self) -> optax.GradientTransformation:
        """Langevin proposals, accepted or refused."""
        return langevin(temperature=self.method.temperature)

    def final_variables(self, optimiser_state: Any) -> Variables:
        """Where the chain stands."""
        return chain_position(optimiser_state)

    def diagnostics(self, optimiser_state: Any) -> dict[str, Shaped[Array, "..."]]:
        """Acceptance rate, step size and proposals."""
        return chain_diagnostics(optimiser_state)
