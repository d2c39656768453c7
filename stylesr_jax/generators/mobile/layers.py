"""The parameters of MobileStyleGAN's layers, as Flax modules; an image head computes as well."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.base import Noise
from stylesr_jax.generators.layers import leaky_relu
from stylesr_jax.generators.mapping import Dense
from stylesr_jax.generators.mobile.separable import (
    BlockArguments,
    SeparableWeights,
    haar_synthesis,
)

Params = Mapping[str, Any]


class SeparableLayer(nn.Module):
    """The parameters of a separable layer."""

    channels: int
    features: int

    @nn.compact
    def __call__(
        self, style: Float[Array, "N w_dim"]
    ) -> tuple[Float[Array, "N {self.channels}"], SeparableWeights]:
        """The modulation and the weights."""
        modulation = Dense(self.channels, name="modulation")(style)
        normal, shape = nn.initializers.lecun_normal(), (self.channels, self.features)
        depthwise = self.param("depthwise", nn.initializers.normal(), (3, 3, self.channels))
        pointwise = self.param("pointwise", normal, shape)
        strength, bias = NoiseBias(self.features, name="output")()
        return modulation, SeparableWeights(depthwise, pointwise, strength, bias)


class NoiseBias(nn.Module):
    """The noise strength and bias of a layer."""

    features: int

    @nn.compact
    def __call__(self) -> tuple[Float[Array, ""], Float[Array, " {self.features}"]]:
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        return strength, self.param("bias", nn.initializers.zeros, (self.features,))


def _shifted(x: Array) -> list[Array]:
    """The nine neighbours of every pixel of x (..., R, W, C), row by row, zero-padded."""
    rows, columns = x.shape[-3:-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    return [x[..., i : i + rows, j : j + columns, :] for i in range(3) for j in range(3)]


class InputLayer(nn.Module):
    """The learnt 4x4 constant through one modulated dense 3x3 convolution."""

    features: int

    @nn.compact
    def __call__(
        self, style: Float[Array, "N w_dim"], noise: Float[Array, "*maps 4 4"]
    ) -> Float[Array, "N 4 4 {self.features}"]:
        shape = (4, 4, self.features)
        constant = self.param("constant", nn.initializers.normal(), shape)
        modulation = Dense(self.features, name="modulation")(style)
        weight = self.param(
            "weight", nn.initializers.lecun_normal(), (3, 3, self.features, self.features)
        )
        # As one matrix product, whose gradient takes a third of a convolution's time.
        x = jnp.dot(
            jnp.concatenate(_shifted(constant), axis=-1)
            * jnp.tile(modulation, 9)[:, None, None, :],
            weight.reshape(-1, self.features),
        )
        strength, bias = NoiseBias(self.features, name="output")()
        return leaky_relu(x + (strength * noise)[..., None] + bias)


class Block(nn.Module):
    """The arguments of a block: modulated Haar up-sampling, then two separable layers."""

    channels: int
    features: int

    @nn.compact
    def __call__(
        self,
        up: Float[Array, "N w_dim"],
        style: Float[Array, "N w_dim"],
        noise: Noise,
        image: tuple[Array, Params] | None = None,
    ) -> BlockArguments:
        """Of styles (N, w_dim); with `image` (see `ToWavelets`), those of one made at the end."""
        styles = {"up": Dense(self.channels, name="up_modulation")(up)}
        weights = {}
        first = SeparableLayer(self.channels // 4, self.features, name="conv1")
        styles["conv1"], weights["conv1"] = first(up)
        second = SeparableLayer(self.features, self.features, name="conv2")
        styles["conv2"], weights["conv2"] = second(style)
        if image is not None:
            styles["image"], weights["image"] = image
        return BlockArguments(styles, weights, *(m if m.ndim == 3 else m[None] for m in noise))


class ToWavelets(nn.Module):
    """The parameters of a modulated pointwise convolution to an RGB image's four Haar bands."""

    channels: int

    @nn.compact
    def __call__(
        self, style: Float[Array, "N w_dim"]
    ) -> tuple[Float[Array, "N {self.channels}"], Params]:
        """The modulation and the weights."""
        modulation = Dense(self.channels, name="modulation")(style)
        weight = self.param("weight", nn.initializers.lecun_normal(), (self.channels, 12))
        return modulation, {
            "weight": weight,
            "bias": self.param("bias", nn.initializers.zeros, (12,)),
        }


def _conv3x3(x: Array, weight: Array) -> Array:
    """A small 3x3 convolution as nine matrix products, whose gradients are as fast in a loop.

    x (N, R, R, I), weight (3, 3, I, O) -> (N, R, R, O), zero-padded.
    """
    return sum(  # type: ignore[return-value]
        jnp.dot(near, weight[i // 3, i % 3]) for i, near in enumerate(_shifted(x))
    )


class ImageHead(nn.Module):
    """Features to an approximation of the shrunken image that the remaining blocks would make.

    Two layers, modulated by the style that comes next and by the mean of all that would follow.
    MobileStyleGAN had modulated heads to wavelets at every block while it was trained; the
    published network has lost them, and these were fitted anew (see `heads.py`).
    """

    hidden: int = 128

    @nn.compact
    def __call__(
        self, x: Float[Array, "N R R C"], ws: Float[Array, "N styles w_dim"]
    ) -> Float[Array, "N 2*R 2*R 3"]:
        """The image of features and the remaining styles."""
        channels, normal = x.shape[-1], nn.initializers.lecun_normal()
        later = jnp.concatenate([ws[:, 0], jnp.mean(ws, axis=1)], axis=-1)
        into = self.param("into", normal, (channels, self.hidden))
        x = jnp.dot(x * Dense(channels, name="modulation1")(later)[:, None, None, :], into)
        x = leaky_relu(x + self.param("bias1", nn.initializers.zeros, (self.hidden,)))
        x = x * Dense(self.hidden, name="modulation2")(later)[:, None, None, :]
        weight = self.param("weight", normal, (3, 3, self.hidden, self.hidden))
        x = leaky_relu(
            _conv3x3(x, weight) + self.param("bias2", nn.initializers.zeros, (self.hidden,))
        )
        x = x * Dense(self.hidden, name="modulation3")(later)[:, None, None, :]
        bands = jnp.dot(x, self.param("out", normal, (self.hidden, 12)))
        bands = bands + self.param("bias3", nn.initializers.zeros, (12,))
        return jax.vmap(haar_synthesis)(bands)
