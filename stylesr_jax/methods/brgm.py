"""BRGM: LPIPS and squared error, a Gaussian prior on W and collinear styles.

Source: Marinescu et al., "Bayesian Image Reconstruction using Deep Generative Models", 2021, and
its published code.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.base import Generator
from stylesr_jax.methods.base import Rate, Search, Stage, Value, static, with_stored
from stylesr_jax.methods.terms import collinear, mean_style, mse_255, perceptual
from stylesr_jax.methods.view import Beginning, Context, Latents, View
from stylesr_jax.search.engine import Variables
from stylesr_jax.search.schedules import schedule

# Section 4 and the code's defaults; 5,000 steps in the code, 500 in use. The code takes the
# deviation of w over whole vectors, as StyleGAN2's projector does.
PUBLISHED: Mapping[str, Value] = {"steps": 500, "learning_rate": 0.1}


class BRGM(Search):
    """Bayesian reconstruction through generative models (Marinescu et al. 2021)."""

    name = "brgm"
    summary = "LPIPS and squared error, Gaussian prior on W and collinear styles"
    source = "Marinescu et al., 2021 (BRGM)"
    step_fields = ("steps",)
    needs_perceptual = True
    presets: ClassVar = {
        "fast": {"steps": 50},
        "best": PUBLISHED,
        "paper": {**PUBLISHED, "fidelity": 0.0},
    }

    steps: int = 100
    learning_rate: float = 0.03  # at 0.1 so few steps end in worse faces
    rate: Rate = static("ramped_cosine")
    ramp_up: float = 0.05
    ramp_down: float = 0.25
    lambda_lpips: float = 1.0
    lambda_pixel: float = 0.001
    lambda_w: float = 100.0
    lambda_c: float = 3.0
    start_noise: float = 0.01
    noise_size: int = static(0)  # px of the largest searched maps; 0: 128 at 1024 px, else 32
    w_std: float = 0.0  # of w; 0 has it measured on the generator

    def objective(self, view: View) -> dict[str, Float[Array, ""]]:
        """Section 3: the likelihood's two terms, and the prior's two."""
        return {
            "lpips": self.lambda_lpips * perceptual(view),
            "pixel": self.lambda_pixel * mse_255(view),
            "prior": self.lambda_w * mean_style(view, self.w_std),
            "collinear": self.lambda_c * collinear(view),
        }

    def from_styles(self) -> "BRGM":
        """As it is."""
        return self

    def make_stages(self) -> Iterator[Stage]:
        """One search in W+."""
        yield NearMeanStage(
            method=self,
            steps=self.steps,
            rate=self.learning_rate,
            schedule=schedule(self.rate, up=self.ramp_up, down=self.ramp_down),
            noise_size=self.noise_size,
        )

    def fitted(self, generator: Generator, side: int) -> "BRGM":
        """With the generator's deviation of w, unless one is set."""
        return self if self.w_std else self.replace(w_std=float(_w_std(generator)))


@jax.jit
def _w_std(generator: Generator) -> Array:
    """sqrt(E ||w - mean w||^2), the deviation that StyleGAN2's projector calls std; a scalar."""
    w = generator.map_latents(jax.random.normal(jax.random.key(0), (10_000, generator.z_dim)))
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(w - jnp.mean(w, axis=0)), axis=-1)))


class NearMeanStage(Stage):
    """A search for styles, from near the mean, and for the small noise maps."""

    noise_size: int = static(0)

    def start(self, given: Beginning) -> Variables:
        """The mean style with a little noise, and standard normal noise maps."""
        latent_key, noise_key = jax.random.split(given.key)
        generator, method, styles = given.context.generator, self.method, given.start.styles
        shape = (generator.num_ws, generator.w_dim)
        jitter = method.start_noise * method.w_std * jax.random.normal(latent_key, shape)
        size = self.noise_size or (128 if generator.resolution >= 1024 else 32)
        count = sum(max(shape) <= size for shape in generator.noise_shapes)
        noise = generator.random_noise(noise_key)[:count]
        centre = generator.statistics["w_mean"] if styles is None else styles
        return {"latent": centre + jitter, "noise": noise}

    def decode(self, context: Context, variables: Variables) -> Latents:
        """Styles and noise maps as they are."""
        return Latents(variables["latent"], with_stored(context, variables["noise"]))
