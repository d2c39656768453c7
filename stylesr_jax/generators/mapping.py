"""The mapping network M: z -> w, shared by every generator."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.layers import SQRT2, leaky_relu, normalise_second_moment


class Dense(nn.Module):
    """x @ weight + bias in full float32 precision; weight is (in, out), gains multiplied in."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch {self.features}"]:
        """x (..., in) -> (..., features)."""
        shape = (x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return jnp.dot(x, weight, precision=jax.lax.Precision.HIGHEST) + bias


class Mapping(nn.Module):
    """StyleGAN2's mapping network; weights are stored with their gains multiplied in.

    A label's embedding (one linear layer) is normalised and joined to the normalised z.
    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020.
    """

    widths: tuple[int, ...]  # outputs of each layer, the last one is w_dim
    z_dim: int
    label_dim: int = 0
    embed_dim: int = 0

    @nn.compact
    def __call__(
        self, z: Float[Array, "N z_dim"], labels: Float[Array, "N label_dim"] | None = None
    ) -> Float[Array, "N w_dim"]:
        """z (N, z_dim), labels (N, label_dim) or None -> w (N, w_dim)."""
        parts = []
        if self.z_dim:
            parts.append(normalise_second_moment(z))
        if self.label_dim:
            assert labels is not None
            embedded = Dense(self.embed_dim, name="embed")(labels)
            parts.append(normalise_second_moment(embedded))
        x = jnp.concatenate(parts, axis=-1)
        for index, width in enumerate(self.widths):
            x = leaky_relu(Dense(width, name=f"fc{index}")(x)) * SQRT2
        return x
