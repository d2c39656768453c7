"""Plain bicubic enlargement: the floor for realism, the ceiling for PSNR."""

from jax import Array
from jaxtyping import Float

from stylesr_jax.degradations import resize
from stylesr_jax.methods.base import Method


class BicubicEnlargement(Method):
    """Bicubic interpolation (Keys 1981); nothing is searched."""

    name = "bicubic"
    summary = "plain bicubic enlargement: no search, the floor for realism"
    source = "Keys 1981"

    def direct(
        self, low: Float[Array, "h w c"], resolution: int
    ) -> Float[Array, "{resolution} {resolution} c"]:
        """The observation (h, w, 3) enlarged to (resolution, resolution, 3)."""
        return resize(low, (resolution, resolution))
