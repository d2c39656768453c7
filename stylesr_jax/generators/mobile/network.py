"""MobileStyleGAN's synthesis network: depthwise-separable convolutions and Haar wavelets.

Source: Belousov, "MobileStyleGAN: A Lightweight Convolutional Neural Network for High-Fidelity
Image Synthesis", 2021.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config, Noise
from stylesr_jax.generators.layers import leaky_relu
from stylesr_jax.generators.mapping import Dense
from stylesr_jax.generators.mobile.native import blocks as native
from stylesr_jax.generators.mobile.native.blocks import BlockArguments, Blocks
from stylesr_jax.generators.mobile.separable import (
    SeparableWeights,
    haar_synthesis,
    modulated_pointwise,
    separable_rows,
)
from stylesr_jax.generators.mobile.strips import Neighbours, map_strips

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

    `native`: whether all but the smallest blocks are computed in native code, see `native.py`;
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

    def strips(self, block: int) -> int:
        """In how many strips block `block` (1 is the first after the input) is computed."""
        in_strips = self.in_strips
        if in_strips is None:
            in_strips = jax.default_backend() == "cpu"
        size = (4 << block) ** 2 * self.channels[block]
        return size // STRIP_SIZE if in_strips and size > WHOLE_SIZE else 1

    def in_native(self, block: int) -> bool:
        """Whether block `block` is computed in native code."""
        fits = native.fits(*self.channels[block - 1 : block + 1])
        return bool(self.native) and fits and (4 << block) >= NATIVE_RESOLUTION

    def on_this_machine(self) -> "MobileConfig":
        wanted = self.native is not False and jax.default_backend() == "cpu"
        return dataclasses.replace(self, native=wanted and native.available())

    def portable(self) -> "MobileConfig":
        return dataclasses.replace(self, native=False)

    def synthesis_module(self) -> nn.Module:
        return MobileSynthesis(self)


# --- one image's rows -----------------------------------------------------------------------


def _image_rows(x: Array, style: Array, weights: Params) -> Array:
    """A modulated pointwise convolution to the Haar bands of an RGB image: (2R, 2W, 3)."""
    return haar_synthesis(modulated_pointwise(x, style, weights["weight"]) + weights["bias"])


def _block_rows(
    near: Neighbours, rows: Params, shared: Params, known: Params | None
) -> tuple[Array, Params]:
    """Modulated Haar up-sampling and two separable layers, then perhaps the image.

    rows: "x" (R / 2 + 2, W / 2, C), "noise1" and "noise2" (R + 2, W) -> (R, W, features), and
    what each separable layer put out, without the rows that belong to other strips.
    """
    styles, weights = shared["styles"], shared["weights"]
    known = known or {}
    first = haar_synthesis(rows["x"] * styles["up"])
    second = separable_rows(
        first,
        jnp.ones(first.shape[0]),
        rows["noise1"],
        styles["conv1"],
        weights["conv1"],
        known.get("conv1"),
    )
    # A row beyond the image's edge is padding for the next layer.
    edges = (near.above[None], jnp.ones(second.shape[0] - 2, bool), near.below[None])
    valid = jnp.concatenate(edges).astype(second.dtype)
    known_out = known["conv2"][1:-1] if known else None
    x = separable_rows(
        second, valid, rows["noise2"][1:-1], styles["conv2"], weights["conv2"], known_out
    )
    left = {"conv1": second[1:-1], "conv2": x}
    if "image" in styles:
        x = _image_rows(x, styles["image"], weights["image"])
    return x, left


# --- whole blocks ---------------------------------------------------------------------------


def _block(
    strips: int, x: Array, styles: Params, weights: Params, noise1: Array, noise2: Array
) -> Array:
    """`_block_rows` of whole images, in so many strips, computed by XLA.

    x (N, H, W, C), styles (N, ...), noise (1 or N, 2H, 2W) -> (N, 2H, 2W, features) or the image.
    """

    def one(x: Array, styles: Params, noise1: Array, noise2: Array) -> Array:
        whole = {"x": x, "noise1": noise1, "noise2": noise2}
        return map_strips(_block_rows, whole, {"styles": styles, "weights": weights}, strips=strips)

    shared = [len(m) == 1 for m in (noise1, noise2)]
    noise1, noise2 = (m[0] if s else m for s, m in zip(shared, (noise1, noise2), strict=True))
    return jax.vmap(one, in_axes=(0, 0, *(None if s else 0 for s in shared)))(
        x, styles, noise1, noise2
    )


def _blocks(strips: tuple[int, ...], x: Array, blocks: Blocks) -> Array:
    """One block after the other, computed by XLA, each in so many strips."""
    for count, block in zip(strips, blocks, strict=True):
        x = _block(count, x, *block)
    return x


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _native_blocks(strips: tuple[int, ...], x: Array, blocks: Blocks) -> Array:
    """`_blocks` in native code; `strips` is for gradients of weights, which XLA computes."""
    return native.forward(x, blocks)[0]


def _native_blocks_forward(strips: tuple[int, ...], x: Any, blocks: Any) -> tuple[Array, tuple]:
    features, known = jax.tree.map(lambda a: a.value, (x, blocks))
    if any(weight.perturbed for block in blocks for weight in jax.tree.leaves(block.weights)):
        out, pull = jax.vjp(partial(_blocks, strips), features, known)
        return out, (pull, None)
    out, residuals = native.forward(features, known, for_gradient=True)
    # A noise map goes along, for its shape, only where its gradient is wanted.
    kept = [
        block._replace(
            noise1=block.noise1 if wanted.noise1.perturbed else None,
            noise2=block.noise2 if wanted.noise2.perturbed else None,
        )
        for block, wanted in zip(known, blocks, strict=True)
    ]
    return out, (None, (kept, residuals))


def _native_blocks_backward(strips: tuple[int, ...], saved: tuple, grad: Array) -> tuple:
    pull, known = saved
    if pull is not None:
        return pull(grad)
    blocks, residuals = known
    return native.backward(blocks, residuals, grad)


_native_blocks.defvjp(_native_blocks_forward, _native_blocks_backward, symbolic_zeros=True)


# --- modules --------------------------------------------------------------------------------


class SeparableLayer(nn.Module):
    """The parameters of a separable layer."""

    channels: int
    features: int

    @nn.compact
    def __call__(self, style: Array) -> tuple[Array, SeparableWeights]:
        """style (N, w_dim) -> modulation (N, C), weights."""
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
    def __call__(self) -> tuple[Array, Array]:
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
    def __call__(self, style: Array, noise: Array) -> Array:
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
        self, up: Array, style: Array, noise: Noise, image: tuple[Array, Params] | None = None
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
    def __call__(self, style: Array) -> tuple[Array, Params]:
        """style (N, w_dim) -> modulation (N, C), weights."""
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
    def __call__(self, x: Array, ws: Array) -> Array:
        """x (N, R, R, C), the remaining styles ws (N, styles, w_dim) -> (N, 2R, 2R, 3)."""
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
        ws: Array,
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
            args = (features, tuple(blocks))
            single = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(args))
            usable = in_native and single and native.ready()
            run = _native_blocks if usable else _blocks
            features = run(tuple(strips), *args)
        return features  # type: ignore[return-value]

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
        first, x = start or (0, None)
        if stop is not None and stop != self.config.resolution:
            return self._sketch(x, ws, noise, first, stop)
        style, weights = self.to_image(ws[:, self.config.num_ws - 2])
        blocks = len(self.config.channels)
        if first == blocks:
            return jax.vmap(lambda x, style: _image_rows(x, style, weights))(x, style)
        return self._run(x, ws, noise, first, blocks, (style, weights))

    def _sketch(self, x: Array | None, ws: Array, noise: Noise, first: int, stop: int) -> Array:
        """The image that a head makes of the features of half its resolution."""
        sizes = self.config.image_resolutions
        if stop not in sizes:
            known = ", ".join(map(str, sizes))
            raise UserError(f"{self.config.name} makes images of {known} px, not {stop}")
        block = self.config.block_resolutions.index(stop // 2) + 1
        if first >= block:
            raise UserError(f"block {first} is not before the image at {stop} px")
        x = self._run(x, ws, noise, first, block)
        return self.heads[stop // 2](x, ws[:, 3 * block - 2 :])
