"""StyleGAN2's synthesis network.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config, Noise, StyledLayer
from stylesr_jax.generators.layers import (
    SQRT2,
    conv3x3,
    demodulation,
    leaky_relu,
    sum_of_squares,
    up_conv3x3,
    upsample2x,
)
from stylesr_jax.generators.mapping import Dense

Skeleton = Literal["skip", "resnet", "orig"]
SQRT_HALF = float(np.sqrt(0.5))
HALF_BLOCKS = 4  # blocks, counted from the output, that a half-precision dtype applies to


@dataclasses.dataclass(frozen=True)
class StyleGAN2Config(Config):
    """`channels[k]` are the features of block k, at 4 << k pixels.

    `skeleton` says how images leave the network: "skip" sums an RGB image of every block,
    "resnet" and "orig" have one RGB layer at the end, "resnet" with residual blocks.
    `conv_clamp` bounds every layer's output. `taps` is the resampling filter along one axis,
    with sum 2. `compute_dtype` ("float32", "bfloat16", "float16") is that of the last four
    blocks' convolutions and features; images are always summed up in float32.
    """

    channels: tuple[int, ...] = ()
    skeleton: Skeleton = "skip"
    use_noise: bool = True
    conv_clamp: float | None = None
    taps: tuple[float, ...] = (0.25, 0.75, 0.75, 0.25)
    compute_dtype: str = "float32"

    architecture = "stylegan2"

    @property
    def noise_shapes(self) -> tuple[tuple[int, int], ...]:
        if not self.use_noise:
            return ()
        sizes = [4] + [8 << k for k in range(len(self.channels) - 1) for _ in range(2)]
        return tuple((size, size) for size in sizes)

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        return tuple(4 << k for k in range(len(self.channels)))

    def block_dtype(self, block: int) -> jnp.dtype:
        """The dtype of the features that `block` computes."""
        half = block >= len(self.channels) - HALF_BLOCKS
        return jnp.dtype(self.compute_dtype if half else "float32")

    @property
    def image_resolutions(self) -> tuple[int, ...]:
        sizes = self.block_resolutions
        return sizes if self.skeleton == "skip" else sizes[-1:]

    @property
    def styled_layers(self) -> tuple[StyledLayer, ...]:
        layers = []
        for k in range(len(self.channels)):
            styles = {"conv0": 2 * k - 1, "conv1": 2 * k, "torgb": 2 * k + 1}
            if k == 0:
                del styles["conv0"]
            if self.skeleton == "resnet" and k < len(self.channels) - 1:
                del styles["torgb"]
            block = f"b{4 << k}"
            layers += [StyledLayer((block, n), i, "affine", "weight") for n, i in styles.items()]
        return tuple(layers)

    def synthesis_module(self) -> nn.Module:
        return StyleGAN2Synthesis(self)


class ModulatedConv(nn.Module):
    """leaky_relu(demodulated conv(x * style) + noise + bias) * gain, then the clamp.

    The style scales the activations rather than the weights, so the weights stay the same for
    every image, and the gain rides on the small tensors, leaky ReLU being homogeneous.
    """

    features: int
    config: StyleGAN2Config
    up: bool = False
    gain: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W I"],
        w: Float[Array, "N w_dim"],
        noise: Float[Array, "..."] | None,
    ) -> Float[Array, "N h w O"]:
        """x (N, H, W, I), w (N, w_dim), noise (H, W) or (N, H, W) -> (N, H', W', features)."""
        channels = x.shape[-1]
        style = Dense(channels, name="affine")(w)
        weight = self.param("weight", nn.initializers.normal(1.0), (3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        gain = SQRT2 * self.gain
        if x.dtype != jnp.float32:
            # In half precision both factors are first brought to a fixed size, which the
            # demodulation undoes: the features stay far from overflow (ADA, appendix D.1).
            largest = jnp.max(jnp.abs(weight), axis=(0, 1, 2))
            weight = weight / (jnp.sqrt(9.0 * channels) * largest)
            style = style / jnp.max(jnp.abs(style), axis=1, keepdims=True)
        # Inside a scan over steps the compiler computes this sum once, before the loop.
        squares = sum_of_squares(weight)
        weight = weight.astype(x.dtype)
        factor = gain * demodulation(style, squares)[:, None, None, :]
        offset = gain * bias
        if noise is not None:
            strength = self.param("noise_strength", nn.initializers.zeros, ())
            offset = offset + (gain * strength * noise)[..., None]
        x = x * style.astype(x.dtype)[:, None, None, :]
        x = up_conv3x3(x, weight, self.config.taps) if self.up else conv3x3(x, weight)
        x = leaky_relu(x * factor.astype(x.dtype) + offset.astype(x.dtype))
        return clamp(x, self.config.conv_clamp, self.gain)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three channels, without demodulation."""

    config: StyleGAN2Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W I"], w: Float[Array, "N w_dim"]
    ) -> Float[Array, "N H W 3"]:
        """The image of features, in float32."""
        style = Dense(x.shape[-1], name="affine")(w)
        weight = self.param("weight", nn.initializers.normal(1.0), (x.shape[-1], 3))
        bias = self.param("bias", nn.initializers.zeros, (3,))
        # The style scales the weights here: three columns are smaller than any feature map.
        modulated = (style[:, :, None] * weight).astype(x.dtype)
        y = jnp.einsum("nhwc,nco->nhwo", x, modulated, preferred_element_type=jnp.float32)
        return clamp(y + bias, self.config.conv_clamp)


class Skip(nn.Module):
    """A residual block's shortcut: 1x1 convolution, then twice the size."""

    features: int
    config: StyleGAN2Config

    @nn.compact
    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N 2*H 2*W {self.features}"]:
        """Features for the block's sum."""
        shape = (x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.lecun_normal(), shape)
        return upsample2x(jnp.dot(x, weight.astype(x.dtype)), self.config.taps)


def clamp(
    x: Float[Array, "*shape"], bound: float | None, gain: float = 1.0
) -> Float[Array, "*shape"]:
    """x within +-bound * gain; None leaves it as it is."""
    return x if bound is None else jnp.clip(x, -bound * gain, bound * gain)


class Block(nn.Module):
    """One resolution: an up-sampling convolution (not in the first block), and another one."""

    index: int
    config: StyleGAN2Config

    @nn.compact
    def __call__(
        self,
        activation: dict[str, Array],
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise,
        *,
        image: bool,
    ) -> dict[str, Float[Array, "N H W _"]]:
        """Features and, if asked for, the image: {"x": (N, H, W, C), "image": (N, H, W, 3)}.

        Args:
            activation: what enters the block, at half the size (first block: the constant).
            ws: (N, num_ws, w_dim), of all layers.
            noise: maps of all noisy layers, or none.
            image: add this block's RGB image.
        """
        config, k = self.config, self.index
        features = config.channels[k]
        x = activation["x"].astype(config.block_dtype(k))
        maps = noise if config.use_noise else (None,) * (2 * len(config.channels) - 1)
        residual = config.skeleton == "resnet" and k > 0
        gain = SQRT_HALF if residual else 1.0
        conv1 = ModulatedConv(features, config, gain=gain, name="conv1")
        if k == 0:
            y = conv1(x, ws[:, 0], maps[0])
        else:
            conv0 = ModulatedConv(features, config, up=True, name="conv0")
            y = conv1(conv0(x, ws[:, 2 * k - 1], maps[2 * k - 1]), ws[:, 2 * k], maps[2 * k])
        if residual:
            y = y + SQRT_HALF * Skip(features, config, name="skip")(x)
        result = {"x": y}
        previous = activation.get("image")
        if previous is not None:
            result["image"] = upsample2x(previous, config.taps)
        if image:
            rgb = ToRGB(config, name="torgb")(y, ws[:, 2 * k + 1])
            result["image"] = rgb if previous is None else result["image"] + rgb
        return result


class StyleGAN2Synthesis(nn.Module):
    """Styles to images. Block k uses styles 2k - 1 (conv0), 2k (conv1) and 2k + 1 (its RGB)."""

    config: StyleGAN2Config

    def setup(self) -> None:
        channels = self.config.channels
        self.constant = self.param("constant", nn.initializers.normal(1.0), (4, 4, channels[0]))
        self.blocks = [Block(k, self.config, name=f"b{4 << k}") for k in range(len(channels))]

    def _run(
        self,
        start: tuple[int, dict[str, Array]] | None,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise,
        end: int,
    ) -> dict[str, Array]:
        shape = (ws.shape[0], *self.constant.shape)
        first, activation = start or (0, {"x": jnp.broadcast_to(self.constant, shape)})
        last = len(self.config.channels) - 1
        for k in range(first, end):
            image = self.config.skeleton == "skip" or k == last
            activation = self.blocks[k](activation, ws, noise, image=image)
        return activation

    def features(
        self,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise,
        *,
        block: int,
        start: tuple[int, dict[str, Array]] | None = None,
    ) -> dict[str, Float[Array, "N H W _"]]:
        """What enters `block`: {"x": features} and, for "skip" past the first, {"image": ...}.

        Raises:
            UserError: there is no such block.
        """
        blocks = len(self.config.channels)
        if not 0 <= block < blocks:
            raise UserError(f"{self.config.name} has blocks 0 to {blocks - 1}, not {block}")
        return self._run(start, ws, noise, block)

    def __call__(
        self,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise,
        *,
        start: tuple[int, Any] | None = None,
        stop: int | None = None,
    ) -> Float[Array, "N H W 3"]:
        """See `Generator.synthesise`.

        Raises:
            UserError: there is no image of resolution `stop`.
        """
        config = self.config
        resolutions, sizes = config.block_resolutions, config.image_resolutions
        stop = config.resolution if stop is None else stop
        if stop not in sizes:
            raise UserError(
                f"{config.name} ({config.skeleton}) makes images of {', '.join(map(str, sizes))} "
                f"px, not {stop}: choose one of them"
            )
        end = resolutions.index(stop) + 1
        if start is not None and not 0 <= start[0] < end:
            raise UserError(f"block {start[0]} is not before the image at {stop} px")
        return self._run(start, ws, noise, end)["image"]
