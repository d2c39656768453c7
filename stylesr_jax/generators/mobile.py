"""MobileStyleGAN's synthesis network: depthwise-separable convolutions and Haar wavelets.

Source: Belousov, "MobileStyleGAN: A Lightweight Convolutional Neural Network for High-Fidelity
Image Synthesis", 2021.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config, Noise
from stylesr_jax.generators.layers import depthwise_conv3x3, haar_synthesis, leaky_relu
from stylesr_jax.generators.mapping import Dense


@dataclasses.dataclass(frozen=True)
class MobileConfig(Config):
    """`channels[0]` leave the 4x4 input layer and `channels[i + 1]` leave block i, at 8 << i."""

    channels: tuple[int, ...] = ()

    architecture = "mobile"

    @property
    def noise_shapes(self) -> tuple[tuple[int, int], ...]:
        sizes = [4] + [8 << i for i in range(len(self.channels) - 1) for _ in range(2)]
        return tuple((size, size) for size in sizes)

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        return tuple(4 << i for i in range(len(self.channels)))

    def synthesis_module(self) -> nn.Module:
        return MobileSynthesis(self)


class SeparableLayer(nn.Module):
    """Modulate, depthwise 3x3, pointwise, add noise and bias, leaky ReLU.

    The demodulation is constant in the trained network and part of the pointwise weights.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, style: Array, noise: Array) -> Array:
        """x (N, H, W, C), style (N, w_dim), noise (H, W) or (N, H, W) -> (N, H, W, features)."""
        channels = x.shape[-1]
        modulation = Dense(channels, name="modulation")(style)
        depthwise = self.param("depthwise", nn.initializers.normal(), (3, 3, channels))
        pointwise = self.param(
            "pointwise", nn.initializers.lecun_normal(), (channels, self.features)
        )
        x = depthwise_conv3x3(x * modulation[:, None, None, :], depthwise)
        return NoiseBiasActivation(name="output")(jnp.dot(x, pointwise), noise)


class NoiseBiasActivation(nn.Module):
    """leaky_relu(x + strength * noise + bias)."""

    @nn.compact
    def __call__(self, x: Array, noise: Array) -> Array:
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return leaky_relu(x + (strength * noise)[..., None] + bias)


class InputLayer(nn.Module):
    """The learnt 4x4 constant through one modulated dense 3x3 convolution."""

    features: int

    @nn.compact
    def __call__(self, style: Array, noise: Array) -> Array:
        shape = (4, 4, self.features)
        constant = self.param("constant", nn.initializers.normal(), shape)
        modulation = Dense(self.features, name="modulation")(style)
        weight = self.param(
            "weight", nn.initializers.lecun_normal(), (3, 3, self.features, self.features)
        )
        x = jax.lax.conv_general_dilated(
            constant * modulation[:, None, None, :],
            weight,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return NoiseBiasActivation(name="output")(x, noise)


class Block(nn.Module):
    """Modulated Haar up-sampling, then two separable layers."""

    features: int

    @nn.compact
    def __call__(self, x: Array, up: Array, style: Array, noise: Noise) -> Array:
        """x (N, H, W, C), styles (N, w_dim) -> (N, 2H, 2W, features)."""
        modulation = Dense(x.shape[-1], name="up_modulation")(up)
        x = haar_synthesis(x * modulation[:, None, None, :])
        x = SeparableLayer(self.features, name="conv1")(x, up, noise[0])
        return SeparableLayer(self.features, name="conv2")(x, style, noise[1])


class ToWavelets(nn.Module):
    """A modulated pointwise convolution to the four Haar bands of an RGB image, then the image."""

    @nn.compact
    def __call__(self, x: Array, style: Array) -> Array:
        """x (N, H, W, C), style (N, w_dim) -> (N, 2H, 2W, 3)."""
        modulation = Dense(x.shape[-1], name="modulation")(style)
        weight = self.param("weight", nn.initializers.lecun_normal(), (x.shape[-1], 12))
        bias = self.param("bias", nn.initializers.zeros, (12,))
        # The style scales the weights here: 12 columns of them are smaller than any feature map.
        modulated = modulation[:, :, None] * weight
        return haar_synthesis(jnp.einsum("nhwc,nco->nhwo", x, modulated) + bias)


class MobileSynthesis(nn.Module):
    """Styles to images. Block k > 0 uses styles 3k-2 (up-sampling, conv1) and 3k-1 (conv2)."""

    config: MobileConfig

    def setup(self) -> None:
        channels = self.config.channels
        self.input = InputLayer(channels[0])
        self.blocks = [Block(c, name=f"block{i}") for i, c in enumerate(channels[1:])]
        self.to_image = ToWavelets()

    def _run(self, x: Array | None, ws: Array, noise: Noise, first: int, last: int) -> Array:
        for k in range(first, last):
            if k == 0:
                x = self.input(ws[:, 0], noise[0])
            else:
                assert x is not None
                maps = noise[2 * k - 1 : 2 * k + 1]
                x = self.blocks[k - 1](x, ws[:, 3 * k - 2], ws[:, 3 * k - 1], maps)
        assert x is not None
        return x

    def features(
        self, ws: Array, noise: Noise, *, block: int, start: tuple[int, Any] | None = None
    ) -> Array:
        """The activation entering `block` (1 to the number of blocks): (N, h, w, c)."""
        first, x = start or (0, None)
        return self._run(x, ws, noise, first, block)

    def __call__(
        self,
        ws: Array,
        noise: Noise,
        *,
        start: tuple[int, Any] | None = None,
        stop: int | None = None,
    ) -> Array:
        """See `Generator.synthesise`."""
        if stop is not None and stop != self.config.resolution:
            raise UserError(f"{self.config.name} has no image head at {stop} px")
        first, x = start or (0, None)
        x = self._run(x, ws, noise, first, len(self.config.channels))
        return self.to_image(x, ws[:, self.config.num_ws - 2])
