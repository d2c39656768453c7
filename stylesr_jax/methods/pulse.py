"""PULSE: latents and noise maps on spheres, squared error to a floor, geodesic cross term.

Source: Menon et al., "PULSE: Self-Supervised Photo Upsampling via Latent Space Exploration of
Generative Models", CVPR 2020, and its published code.
"""

from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.base import PULSE_SLOPE
from stylesr_jax.methods.base import Rate, Search, Stage, static, with_stored
from stylesr_jax.methods.terms import floored_mse, geodesic_cross
from stylesr_jax.methods.view import Beginning, Context, Latents, View
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.projections import on_sphere
from stylesr_jax.search.schedules import schedule


class PULSE(Search):
    """Latents on spheres (Menon et al. 2020); the default is the published setting.

    Section 5 and the code's defaults: -steps 100 -opt_name adam -learning_rate 0.4 -lr_schedule
    linear1cycledrop -eps 2e-3 -noise_type trainable -num_trainable_noise_layers 5
    -bad_noise_layers 17 -loss_str 100*L2+0.05*GEOCROSS. There the other noise maps are drawn once;
    here they are the generator's stored ones. mu and sigma are of 100,000 draws, there of a
    million.
    """

    name = "pulse"
    summary = "latents and noise on spheres, squared error to a floor, geodesic cross term"
    source = "Menon et al., CVPR 2020 (PULSE)"
    step_fields = ("steps",)
    presets: ClassVar = {"fast": {"steps": 50}, "best": {"steps": 300}, "paper": {"fidelity": 0.0}}

    steps: int = 100
    learning_rate: float = 0.4
    rate: Rate = static("one_cycle_with_drop")
    ramp_up: float = 0.0
    ramp_down: float = 0.1
    lambda_l2: float = 100.0
    lambda_geocross: float = 0.05
    eps: float = 2e-3
    noise_layers: int = static(5)
    zero_last: bool = static(True)

    def objective(self, view: View) -> dict[str, Float[Array, ""]]:
        """Squared error, not below eps, and the spread of the styles."""
        return {
            "l2": self.lambda_l2 * floored_mse(view, self.eps),
            "geocross": self.lambda_geocross * geodesic_cross(view.latents.ws),
        }

    def from_styles(self) -> "PULSE":
        """As it is."""
        return self

    def make_stages(self) -> Iterator[Stage]:
        """One search on spheres."""
        yield SphereStage.of(self)


class SphereStage(Stage):
    """A search for v_i, with w_i = LReLU_0.2(sigma v_i + mu), and the first noise maps."""

    noise_layers: int = static(0)

    @classmethod
    def of(cls, method: PULSE) -> "SphereStage":
        """A stage with the choices of a method."""
        return cls(
            method=method,
            steps=method.steps,
            rate=method.learning_rate,
            schedule=schedule(method.rate, up=method.ramp_up, down=method.ramp_down),
            noise_layers=method.noise_layers,
        )

    def start(self, given: Beginning) -> Variables:
        """Standard normal latents and noise maps."""
        return start_on_spheres(given, self.noise_layers)

    def decode(self, context: Context, variables: Variables) -> Latents:
        """Styles, and the noise maps, of which the last may be zero."""
        noise = with_stored(context, variables["noise"])
        if self.method.zero_last and len(variables["noise"]) < len(noise):
            noise = (*noise[:-1], jnp.zeros_like(noise[-1]))
        return Latents(sphere_styles(context, variables["latent"]), noise)

    def project(self, variables: Variables, anchor: Variables) -> Variables:
        """Each v_i and each noise map back to the norm that it began with."""
        return onto_spheres(variables, anchor)


def sphere_styles(
    context: Context, points: Float[Array, "*rows w_dim"]
) -> Float[Array, "*rows w_dim"]:
    """w = LReLU_0.2(sigma v + mu) from v (..., w_dim). Source: PULSE, section 3.3."""
    statistics = context.generator.statistics
    linear = points * statistics["pulse_std"] + statistics["pulse_mean"]
    return jnp.where(linear >= 0.0, linear, linear / PULSE_SLOPE)


def sphere_points(context: Context, ws: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
    """v from w, the inverse of `sphere_styles`."""
    statistics = context.generator.statistics
    linear = jnp.where(ws >= 0.0, ws, ws * PULSE_SLOPE)
    return (linear - statistics["pulse_mean"]) / statistics["pulse_std"]


def start_on_spheres(given: Beginning, noise_layers: int) -> Variables:
    """Standard normal latents (num_ws, w_dim) and the first noise maps, or as many as there are."""
    latent_key, noise_key = jax.random.split(given.key)
    generator, styles = given.context.generator, given.start.styles
    latent = jax.random.normal(latent_key, (generator.num_ws, generator.w_dim))
    return {
        "latent": latent if styles is None else sphere_points(given.context, styles),
        "noise": generator.random_noise(noise_key)[:noise_layers],
    }


def onto_spheres(variables: Variables, anchor: Variables) -> Variables:
    """Each latent and each noise map rescaled to the norm that it has in `anchor`."""
    maps = zip(variables["noise"], anchor["noise"], strict=True)
    return {
        **variables,
        "latent": on_sphere(variables["latent"], anchor["latent"], axis=-1),
        "noise": tuple(on_sphere(noise, start, axis=(0, 1)) for noise, start in maps),
    }
