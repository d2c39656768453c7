"""A mapping network small enough to fit a flow to in a test."""

import dataclasses

import jax
import jax.numpy as jnp


def toy_generator(dim: int = 3, name: str = "toy"):
    """A stand-in with a mapping network only: w = leaky(z B) keeps a skewed density."""
    mix = jax.random.normal(jax.random.key(5), (dim, dim)) + jnp.eye(dim)

    @dataclasses.dataclass(frozen=True)
    class Toy:
        params: dict
        statistics: dict
        name: str
        z_dim: int = dim
        w_dim: int = dim
        label_dim: int = 0

        def map_latents(self, z, labels=None):
            linear = z @ self.params["mapping"]["mix"]
            bent = linear + 0.8 * jnp.square(jnp.roll(linear, 1, axis=-1))
            return jnp.where(bent < 0, 0.2 * bent, bent)

    data = ["params", "statistics"]
    meta = ["name", "z_dim", "w_dim", "label_dim"]
    jax.tree_util.register_dataclass(Toy, data_fields=data, meta_fields=meta)
    return Toy({"mapping": {"mix": mix}}, {"w_mean": jnp.full(dim, 0.5)}, name)
