"""ILO, intermediate layer optimisation: each stage searches one block deeper.

Source: Daras et al., "Intermediate Layer Optimization for Inverse Problems using Deep Generative
Models", ICML 2021, and its published code.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.errors import UserError
from stylesr_jax.methods.base import (
    Rate,
    Search,
    Stage,
    Value,
    activation_entering,
    static,
    with_stored,
)
from stylesr_jax.methods.pulse import onto_spheres, sphere_styles, start_on_spheres
from stylesr_jax.methods.terms import geodesic_cross, mse, perceptual
from stylesr_jax.methods.view import Beginning, Context, Latents, View
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.projections import near
from stylesr_jax.search.schedules import schedule

STAGES = 4

# Section 6 and the code's configuration: 300, 300, 300, 100 steps in the paper.
PAPER: Mapping[str, Value] = {
    "steps_0": 300,
    "steps_1": 300,
    "steps_2": 300,
    "steps_3": 100,
    "fidelity": 0.0,
}


class ILO(Search):
    """Intermediate layer optimisation (Daras et al. 2021); steps are the code's own.

    The radii of the balls are the code's, whose first two stages have one for the noise and the
    latents of each; 0 stands for no ball. The first stage looks for a face from a random start and
    is left to its spheres.
    """

    name = "ilo"
    summary = "four stages, each searching one block deeper, in l1 balls around the stage before"
    source = "Daras et al., ICML 2021 (ILO)"
    step_fields = ("steps_0", "steps_1", "steps_2", "steps_3")
    needs_perceptual = True
    presets: ClassVar = {
        "fast": {"steps_0": 40, "steps_1": 20, "steps_2": 10, "steps_3": 10},
        "best": {"steps_0": 150, "steps_1": 100, "steps_2": 50, "steps_3": 50},
        "paper": PAPER,
    }

    stages: int = static(STAGES)
    noise_layers: int = static(5)  # searched in the first stage
    more_noise_layers: int = static(2)  # searched in each further stage
    fewer_styles: int = static(2)  # left out of the cross term by each further stage
    steps_0: int = 50
    steps_1: int = 50
    steps_2: int = 25
    steps_3: int = 25
    learning_rate: float = 0.1
    rate: Rate = static("ramped_cosine")
    ramp_up: float = 0.05
    ramp_down: float = 0.75
    lambda_mse: float = 1.0
    lambda_lpips: float = 1.0
    lambda_geocross: float = 0.01
    radius_latent_0: float = 0.0
    radius_latent_1: float = 1000.0
    radius_latent_2: float = 6000.0
    radius_latent_3: float = 6000.0
    radius_noise_0: float = 0.0
    radius_noise_1: float = 1000.0
    radius_noise_2: float = 6000.0
    radius_noise_3: float = 6000.0
    radius_activation_1: float = 1000.0
    radius_activation_2: float = 6000.0
    radius_activation_3: float = 6000.0

    @property
    def used_step_fields(self) -> tuple[str, ...]:
        """Of the stages that there are."""
        return self.step_fields[: self.stages]

    def objective(self, view: View) -> dict[str, Float[Array, ""]]:
        """Squared error and LPIPS; each stage adds its cross term."""
        return {
            "mse": self.lambda_mse * mse(view),
            "lpips": self.lambda_lpips * perceptual(view),
        }

    def from_styles(self) -> "ILO":
        """As it is."""
        return self

    def make_stages(self) -> Iterator[Stage]:
        """From the latents inwards."""
        if not 1 <= self.stages <= STAGES:
            raise UserError(f"ilo.stages is a whole number from 1 to {STAGES}, not {self.stages}")
        for k in range(self.stages):
            yield LayerStage(
                method=self,
                steps=getattr(self, f"steps_{k}"),
                rate=self.learning_rate,
                schedule=schedule(self.rate, up=self.ramp_up, down=self.ramp_down),
                block=k,
                noise_layers=self.noise_layers + k * self.more_noise_layers,
                first_style=k * self.fewer_styles,
                radius_latent=getattr(self, f"radius_latent_{k}"),
                radius_noise=getattr(self, f"radius_noise_{k}"),
                radius_activation=getattr(self, f"radius_activation_{k}") if k else 0.0,
            )


class LayerStage(Stage):
    """A search for latents, noise maps and, after the first stage, the activation of a block.

    Attributes:
        noise_layers: how many noise maps are searched.
        first_style: where the cross term begins.
        radius_latent, radius_noise, radius_activation: of l1 balls around the stage's start.
    """

    noise_layers: int = static(0)
    first_style: int = static(0)
    radius_latent: Array | float = 0.0
    radius_noise: Array | float = 0.0
    radius_activation: Array | float = 0.0

    def terms(self, view: View) -> dict[str, Float[Array, ""]]:
        """The objective, and the cross term of the latents from `first_style` on."""
        cross = geodesic_cross(view.variables["latent"][self.first_style :])
        return {**self.method.objective(view), "geocross": self.method.lambda_geocross * cross}

    def start(self, given: Beginning) -> Variables:
        """Standard normal; or what stage k - 1 found, and the activation that enters block k."""
        if self.block == 0:
            return start_on_spheres(given, self.noise_layers)
        context, previous = given.context, given.previous
        generator = context.generator
        n_blocks = len(generator.config.block_resolutions)
        if self.block >= n_blocks:
            raise UserError(
                f"{generator.name} has {n_blocks} blocks: set ilo.stages to {n_blocks} or less"
            )
        latents = self.latents(context, given.start, previous)
        activation = activation_entering(
            generator, latents, block=self.block, before=self.block - 1
        )
        return {
            "latent": previous["latent"],
            "noise": with_stored(context, previous["noise"])[: self.noise_layers],
            "activation": activation,
        }

    def decode(self, context: Context, variables: Variables) -> Latents:
        """Styles, noise maps and the activation."""
        ws = sphere_styles(context, variables["latent"])
        noise = with_stored(context, variables["noise"])
        return Latents(ws, noise, variables.get("activation"))

    def project(self, variables: Variables, anchor: Variables) -> Variables:
        """Spheres for latents and noise, then l1 balls around the stage's start."""
        variables = onto_spheres(variables, anchor)
        maps = zip(variables["noise"], anchor["noise"], strict=True)
        projected = {
            "latent": _in_ball(variables["latent"], anchor["latent"], self.radius_latent),
            "noise": tuple(_in_ball(noise, start, self.radius_noise) for noise, start in maps),
        }
        if "activation" in variables:
            projected["activation"] = _in_ball(
                variables["activation"], anchor["activation"], self.radius_activation
            )
        return projected


def _in_ball(x: Any, centre: Any, radius: Array | float) -> Any:
    """x in an l1 ball around the centre; 0 stands for no ball."""
    return near(x, centre, jnp.where(radius > 0.0, radius, jnp.inf))
