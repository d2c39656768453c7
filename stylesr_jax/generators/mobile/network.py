"""MobileStyleGAN's synthesis network: depthwise-separable convolutions and Haar wavelets.

Source: Belousov, "MobileStyleGAN: A Lightweight Convolutional Neural Network for High-Fidelity
Image Synthesis", 2021.
"""

import dataclasses
from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jaxtyping import Float

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config, Noise, StyledLayer
from stylesr_jax.generators.mobile.blocks import compute_blocks, image_rows
from stylesr_jax.generators.mobile.layers import Block, ImageHead, InputLayer, ToWavelets
from stylesr_jax.generators.mobile.native import library
from stylesr_jax.generators.mobile.native.blocks import fits

Params = Mapping[str, Any]

# Floats in a strip's features, and in the smallest features to be cut. Measured on two cores with
# 1 MB of second-level cache each: several tensors of a strip stay in the caches, and smaller
# blocks are bound by arithmetic.
STRIP_SIZE = 1 << 20
WHOLE_SIZE = 1 << 22
NATIVE_RESOLUTION = 32  # of the smallest block in native code: XLA is as fast in smaller ones


@dataclasses.dataclass(frozen=True)
class MobileConfig(Config):
    """`channels[0]` leave the 4x4 input layer and `channels[i + 1]` leave block i, at 8 << i.

    `native`: whether all but the smallest blocks are computed in native code, see `native/`;
    None leaves it to `on_this_machine`. `in_strips`: whether XLA computes large blocks in strips;
    None means on CPUs, where it saves time and memory. `heads`: features of these resolutions have
    an `ImageHead`, which makes an image of twice their resolution.
    """

    channels: tuple[int, ...] = ()
    native: bool | None = None
    in_strips: bool | None = None
    heads: tuple[int, ...] = ()

    architecture = "mobile"

    @property
    def noise_shapes(self) -> tuple[tuple[int, int], ...]:
        sizes = [4] + [8 << i for i in range(len(self.channels) - 1) for _ in range(2)]
        return tuple((size, size) for size in sizes)

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        return tuple(4 << i for i in range(len(self.channels)))

    @property
    def image_resolutions(self) -> tuple[int, ...]:
        return (*(2 * size for size in self.heads), self.resolution)

    @property
    def styled_layers(self) -> tuple[StyledLayer, ...]:
        layers = [StyledLayer(("input",), 0, "modulation", "weight")]
        for k in range(1, len(self.channels)):
            for name, style in (("conv1", 3 * k - 2), ("conv2", 3 * k - 1)):
                path = (f"block{k - 1}", name)
                layers.append(StyledLayer(path, style, "modulation", "pointwise"))
        layers.append(StyledLayer(("to_image",), self.num_ws - 2, "modulation", "weight"))
        return tuple(layers)

    def strips(self, block: int) -> int:
        """In how many strips block `block` (1 is the first after the input) is computed."""
        in_strips = self.in_strips
        if in_strips is None:
            in_strips = jax.default_backend() == "cpu"
        size = (4 << block) ** 2 * self.channels[block]
        return size // STRIP_SIZE if in_strips and size > WHOLE_SIZE else 1

    def in_native(self, block: int) -> bool:
        """Whether block `block` is computed in native code."""
        large = (4 << block) >= NATIVE_RESOLUTION
        return bool(self.native) and large and fits(*self.channels[block - 1 : block + 1])

    def on_this_machine(self) -> "MobileConfig":
        wanted = self.native is not False and jax.default_backend() == "cpu"
        return dataclasses.replace(self, native=wanted and library.available())

    def portable(self) -> "MobileConfig":
        return dataclasses.replace(self, native=False)

    def computed_by(self) -> str:
        numbers = range(1, len(self.channels))
        return "native" if any(map(self.in_native, numbers)) and library.ready() else "xla"

    def synthesis_module(self) -> nn.Module:
        return MobileSynthesis(self)


class MobileSynthesis(nn.Module):
    """Styles to images. Block k > 0 uses styles 3k-2 (up-sampling, conv1) and 3k-1 (conv2)."""

    config: MobileConfig

    def setup(self) -> None:
        channels = self.config.channels
        self.input = InputLayer(channels[0])
        self.blocks = [Block(*pair, name=f"block{i}") for i, pair in enumerate(pairwise(channels))]
        self.to_image = ToWavelets(channels[-1])
        self.heads = {size: ImageHead(name=f"head{size}") for size in self.config.heads}

    def _run(
        self,
        x: Array | None,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise,
        first: int,
        last: int,
        image: tuple[Array, Params] | None = None,
    ) -> Array:
        """Blocks `first` to `last - 1`, the last of which may make the image."""
        features = self.input(ws[:, 0], noise[0]) if first == 0 else x
        assert features is not None
        for in_native, numbers in groupby(range(max(first, 1), last), self.config.in_native):
            strips, blocks = [], []
            for k in numbers:
                strips.append(self.config.strips(k))
                styles, maps = (ws[:, 3 * k - 2], ws[:, 3 * k - 1]), noise[2 * k - 1 : 2 * k + 1]
                head = image if k == last - 1 else None
                blocks.append(self.blocks[k - 1](*styles, maps, head))
            features = compute_blocks(tuple(strips), features, tuple(blocks), in_native=in_native)
        return features  # type: ignore[return-value]

    def features(
        self,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise,
        *,
        block: int,
        start: tuple[int, Any] | None = None,
    ) -> Float[Array, "N h w c"]:
        """The activation entering `block`, 1 to the number of blocks."""
        first, x = start or (0, None)
        return self._run(x, ws, noise, first, block)

    def __call__(
        self,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise,
        *,
        start: tuple[int, Any] | None = None,
        stop: int | None = None,
    ) -> Float[Array, "N H W 3"]:
        """See `Generator.synthesise`."""
        first, x = start or (0, None)
        if stop is not None and stop != self.config.resolution:
            return self._small_image(x, ws, noise, first, stop)
        style, weights = self.to_image(ws[:, self.config.num_ws - 2])
        blocks = len(self.config.channels)
        if first == blocks:
            return jax.vmap(lambda x, style: image_rows(x, style, weights))(x, style)
        return self._run(x, ws, noise, first, blocks, (style, weights))

    def _small_image(
        self, x: Array | None, ws: Array, noise: Noise, first: int, stop: int
    ) -> Array:
        """The image that a head makes of the features of half its resolution."""
        sizes = self.config.image_resolutions
        if stop not in sizes:
            listed = ", ".join(map(str, sizes))
            raise UserError(f"{self.config.name} makes images of {listed} px, not {stop}")
        block = self.config.block_resolutions.index(stop // 2) + 1
        if first >= block:
            raise UserError(f"block {first} is not before the image at {stop} px")
        x = self._run(x, ws, noise, first, block)
        return self.heads[stop // 2](x, ws[:, 3 * block - 2 :])
