"""Noise that only data see; levels are fractions of the range from black to white.

[-1, 1] is twice that wide.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.degradations.arguments import Argument
from stylesr_jax.degradations.base import Noise
from stylesr_jax.errors import UserError


def _check_fraction(value: float, name: str, what: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name}: {what} is a fraction of the full range, 0 to 1, got {value}")


class GaussianNoise(Noise):
    """Gaussian noise; sigma as a fraction of the full range (0.05 is 12.75 of 255 levels)."""

    name = "noise"
    about = "Gaussian noise"
    example = "noise(0.05)"
    arguments = (Argument("sigma", float, "a fraction of the full range"),)

    sigma: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        _check_fraction(self.sigma, "noise", "sigma")

    def sample(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """x (H, W, C) + 2 sigma N(0, 1): [-1, 1] is two wide."""
        return x + 2.0 * self.sigma * jax.random.normal(key, x.shape, jnp.float32)

    @property
    def variance(self) -> float:
        """(2 sigma)^2, in images in [-1, 1]."""
        return (2.0 * self.sigma) ** 2

    def __str__(self) -> str:
        return f"noise({self.sigma:g})"


class LaplaceNoise(Noise):
    """Laplace noise; scale b (standard deviation b sqrt 2) as a fraction of the full range."""

    name = "laplace"
    about = "Laplace noise"
    example = "laplace(0.05)"
    arguments = (Argument("scale", float, "a fraction of the full range"),)

    scale: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        _check_fraction(self.scale, "laplace", "scale")

    def sample(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """x (H, W, C) + 2 b Laplace(0, 1): [-1, 1] is two wide."""
        return x + 2.0 * self.scale * jax.random.laplace(key, x.shape, jnp.float32)

    @property
    def variance(self) -> float:
        """2 (2 b)^2, in images in [-1, 1]."""
        return 2.0 * (2.0 * self.scale) ** 2

    def __str__(self) -> str:
        return f"laplace({self.scale:g})"


class SaltPepper(Noise):
    """Salt-and-pepper noise: this fraction of the pixels turns white or black, in all channels."""

    name = "salt_pepper"
    about = "salt-and-pepper noise"
    example = "salt_pepper(0.05)"
    arguments = (Argument("fraction", float, "a fraction of the pixels"),)

    fraction: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 1.0:
            raise UserError(f"salt_pepper: a fraction of pixels is 0 to 1, got {self.fraction}")

    def sample(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """x (H, W, C) with each pixel at -1 or 1 with probability fraction / 2 each."""
        draw = jax.random.uniform(key, (*x.shape[:2], 1))
        salted = jnp.where(draw < self.fraction / 2.0, 1.0, x)
        return jnp.where(draw > 1.0 - self.fraction / 2.0, -1.0, salted)

    def __str__(self) -> str:
        return f"salt_pepper({self.fraction:g})"
