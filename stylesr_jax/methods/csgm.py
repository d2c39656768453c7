"""CSGM: squared error over z, the mapping network's input, with a Gaussian prior.

Source: Bora et al., "Compressed Sensing using Generative Models", ICML 2017.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.methods.base import Rate, Search, Stage, Value, static
from stylesr_jax.methods.terms import l2_sum, latent_norm
from stylesr_jax.methods.view import Beginning, Context, Latents, View
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.schedules import schedule

# Section 6.1 (CelebA): Adam at 0.1, 500 steps, 10 restarts (here: --solutions), lambda 0.001.
PAPER: Mapping[str, Value] = {"steps": 500, "rate": "constant", "fidelity": 0.0}


class CSGM(Search):
    """Compressed sensing with generative models (Bora et al. 2017)."""

    name = "csgm"
    summary = "squared error over z, the mapping network's input, with a Gaussian prior"
    source = "Bora et al., ICML 2017 (CSGM)"
    step_fields = ("steps",)
    presets: ClassVar = {"fast": {"steps": 50}, "best": {"steps": 300}, "paper": PAPER}

    steps: int = 100
    learning_rate: float = 0.1
    rate: Rate = static("cosine")
    lambda_l2: float = 1.0
    lambda_z: float = 0.001

    def objective(self, view: View) -> dict[str, Float[Array, ""]]:
        """Equation 3: ||A(G(M(z))) - y||_2^2 + lambda ||z||_2^2."""
        return {"l2": self.lambda_l2 * l2_sum(view), "norm": self.lambda_z * latent_norm(view)}

    def make_stages(self) -> Iterator[Stage]:
        """One search over z."""
        yield InputStage(
            method=self,
            steps=self.steps,
            rate=self.learning_rate,
            schedule=schedule(self.rate),
        )


class InputStage(Stage):
    """A search for z."""

    def start(self, given: Beginning) -> Variables:
        """A standard normal z."""
        return {"z": jax.random.normal(given.key, (given.context.generator.z_dim,))}

    def decode(self, context: Context, variables: Variables) -> Latents:
        """M(z) for every layer."""
        generator = context.generator
        w = generator.map_latents(variables["z"][None])
        return Latents(jnp.broadcast_to(w, (generator.num_ws, generator.w_dim)))
