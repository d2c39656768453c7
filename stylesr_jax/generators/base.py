"""What every generator offers: a pytree of weights with two functions, M(z) and G(ws, noise)."""

import dataclasses
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.errors import UserError
from stylesr_jax.generators.layers import leaky_relu
from stylesr_jax.generators.mapping import Mapping

Noise = tuple[Array, ...]
DRAWN_TOGETHER = 256 * 256  # random noise maps of up to so many pixels
PULSE_SLOPE = 5.0  # PULSE's transform is leaky ReLU with this slope: it undoes M's last layer


class StyledLayer(NamedTuple):
    """Where a modulated convolution's parameters lie in "synthesis".

    Attributes:
        path: keys of its parameters.
        style: number of its style among `num_ws`.
        modulation: key of the affine map from the style to a scale of each input channel.
        weight: key of its weight (..., inputs, filters).
    """

    path: tuple[str, ...]
    style: int
    modulation: str
    weight: str


@dataclasses.dataclass(frozen=True)
class Config:
    """The static part of a generator: everything that a compiled function depends on.

    `mapping_widths` are the mapping network's layer widths; `embed_dim` is its label
    embedding's. Subclasses describe one synthesis architecture each.
    """

    name: str
    resolution: int
    num_ws: int
    w_dim: int
    z_dim: int
    mapping_widths: tuple[int, ...]
    label_dim: int = 0
    embed_dim: int = 0

    architecture = "none"

    @property
    def noise_shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each noisy layer, from the input on."""
        raise NotImplementedError

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        """Resolution of each synthesis block's output features, from the input on."""
        raise NotImplementedError

    @property
    def image_resolutions(self) -> tuple[int, ...]:
        """Resolutions at which synthesis can stop with an image, the full one last."""
        return (self.resolution,)

    @property
    def styled_layers(self) -> "tuple[StyledLayer, ...]":
        """The convolutions whose inputs are scaled by a style, in order."""
        return ()

    def on_this_machine(self) -> "Config":
        """The configuration with what depends on the machine decided, for a generator in use."""
        return self

    def portable(self) -> "Config":
        """The configuration that is computed by XLA alone, for any platform."""
        return self

    def computed_by(self) -> str:
        """What computes the blocks on this machine, for reports: "xla" or "native" code."""
        return "xla"

    def synthesis_module(self) -> nn.Module:
        """The Flax module; `apply` takes (ws, noise, start=, stop=), see `Generator`."""
        raise NotImplementedError

    def mapping_module(self) -> nn.Module:
        """The mapping network's Flax module."""
        return Mapping(self.mapping_widths, self.z_dim, self.label_dim, self.embed_dim)


@struct.dataclass
class Generator:
    """A pre-trained generator as a pytree: weights are leaves, the configuration is static.

    Attributes:
        params: {"mapping": ..., "synthesis": ..., "noise": {"00": (h, w), ...}}; the stored
            noise maps have unit variance, each layer's strength is part of "synthesis". With
            image heads fitted later (see `heads.py`) also "heads".
        statistics: "w_mean" (w_dim,), the mean of w = M(z), and "pulse_mean", "pulse_std"
            (w_dim,), those of leaky_relu(w, 5); "estimate", if one was fitted (see
            `priors.estimate`).
        label: (label_dim,) one-hot class of a conditional generator, else None.
        config: the architecture.
    """

    params: dict[str, Any]
    statistics: dict[str, Any]
    label: Array | None
    config: Config = struct.field(pytree_node=False)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def resolution(self) -> int:
        return self.config.resolution

    @property
    def num_ws(self) -> int:
        return self.config.num_ws

    @property
    def w_dim(self) -> int:
        return self.config.w_dim

    @property
    def z_dim(self) -> int:
        return self.config.z_dim

    @property
    def label_dim(self) -> int:
        return self.config.label_dim

    @property
    def noise_shapes(self) -> tuple[tuple[int, int], ...]:
        return self.config.noise_shapes

    @property
    def stored_noise(self) -> Noise:
        """The noise maps of the weight file, one (h, w) of unit variance per noisy layer."""
        maps = self.params.get("noise", {})  # files hold no empty ones
        return tuple(maps[name] for name in sorted(maps))

    def random_noise(self, key: Key[Array, ""]) -> Noise:
        """Fresh standard normal noise maps, one (h, w) per noisy layer."""
        keys = jax.random.split(key, max(len(self.noise_shapes), 1))
        areas = [height * width for height, width in self.noise_shapes]
        # Every draw takes the compiler 0.2 s, so that small ones are the beginnings of larger ones.
        sizes = [max(area, DRAWN_TOGETHER) for area in areas]
        maps: list[Array] = []
        for size, group in groupby(range(len(areas)), key=sizes.__getitem__):
            which = list(group)
            draws = jax.vmap(partial(jax.random.normal, shape=(size,)))(keys[np.asarray(which)])
            maps += [
                draw[: areas[i]].reshape(self.noise_shapes[i])
                for i, draw in zip(which, draws, strict=True)
            ]
        return tuple(maps)

    def map_latents(
        self, z: Float[Array, "N z_dim"], labels: Float[Array, "N label_dim"] | None = None
    ) -> Float[Array, "N w_dim"]:
        """w = M(z).

        Args:
            z: (N, z_dim), standard normal.
            labels: (N, label_dim) for a conditional generator; None takes `self.label`.

        Returns:
            (N, w_dim), without truncation.

        Raises:
            UserError: the generator is conditional and has no label.
        """
        if self.label_dim and labels is None:
            if self.label is None:
                raise UserError(
                    f"{self.name} is conditional: choose a class from 0 to {self.label_dim - 1} "
                    "(--class on the command line, Generator.with_class in Python)"
                )
            labels = jnp.broadcast_to(self.label, (z.shape[0], self.label_dim))
        return self.config.mapping_module().apply(
            {"params": self.params["mapping"]}, z, labels if self.label_dim else None
        )  # type: ignore[return-value]

    def synthesise(
        self,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise | Literal["none"] | None = None,
        *,
        start: tuple[int, Any] | None = None,
        stop: int | None = None,
    ) -> Float[Array, "N H W 3"]:
        """Images from per-layer styles: G(ws, noise).

        Args:
            ws: (N, num_ws, w_dim).
            noise: one map per noisy layer, (h, w) or (N, h, w), of unit variance; None takes
                the stored maps, "none" takes zeros.
            start: (block, activation from `features`): begin there instead of at the input.
            stop: end early with an image of this resolution, one of
                `config.image_resolutions`; it approximates the full one.

        Returns:
            (N, H, W, 3), nominally in [-1, 1] and not clipped.
        """
        params = {**self.params["synthesis"], **self.params.get("heads", {})}
        return self.config.synthesis_module().apply(
            {"params": params}, ws, self._maps(noise), start=start, stop=stop
        )  # type: ignore[return-value]

    def features(
        self,
        ws: Float[Array, "N num_ws w_dim"],
        noise: Noise | Literal["none"] | None = None,
        *,
        block: int,
        start: tuple[int, Any] | None = None,
    ) -> Any:
        """The activation (a pytree of arrays, N first) that enters synthesis block `block`.

        `start` begins at an earlier block's activation, as in `synthesise`.
        """
        return self.config.synthesis_module().apply(
            {"params": self.params["synthesis"]},
            ws,
            self._maps(noise),
            block=block,
            start=start,
            method="features",
        )

    def with_class(self, index: int, *, key: Key[Array, ""], draws: int = 10_000) -> "Generator":
        """A conditional generator set to one class, its statistics measured for that class.

        Raises:
            UserError: there is no such class, or the generator is unconditional.
        """
        if not self.label_dim:
            raise UserError(f"{self.name} has no classes; leave the class out")
        if not 0 <= index < self.label_dim:
            raise UserError(f"{self.name} has classes 0 to {self.label_dim - 1}, not {index}")
        label = jnp.zeros(self.label_dim).at[index].set(1.0)
        chosen = self.replace(label=label)  # type: ignore[attr-defined]
        return chosen.replace(statistics=measure_statistics(key, chosen, draws=draws))

    def _maps(self, noise: Noise | Literal["none"] | None) -> Noise:
        if noise is None:
            return self.stored_noise
        if isinstance(noise, str):
            return tuple(jnp.zeros(shape) for shape in self.noise_shapes)
        if len(noise) != len(self.noise_shapes):
            raise ValueError(
                f"{self.name} has {len(self.noise_shapes)} noise maps, {len(noise)} were given"
            )
        return noise


def measure_statistics(key: Key[Array, ""], generator: Generator, *, draws: int = 100_000) -> dict:
    """Mean of w, and mean and standard deviation of leaky_relu(w, 5), over fresh draws.

    Labels of a conditional generator without a set class are drawn uniformly.

    Returns:
        {"w_mean", "pulse_mean", "pulse_std"}: (w_dim,) each. Source: PULSE, section 3.
    """
    batch = min(draws, 10_000)
    n_batches = -(-draws // batch)

    @jax.jit
    def moments(key: Array, generator: Generator) -> tuple[Array, Array, Array]:
        z_key, label_key = jax.random.split(key)
        labels = None
        if generator.label_dim and generator.label is None:
            classes = jax.random.randint(label_key, (batch,), 0, generator.label_dim)
            labels = jax.nn.one_hot(classes, generator.label_dim)
        w = generator.map_latents(jax.random.normal(z_key, (batch, generator.z_dim)), labels)
        linear = leaky_relu(w, PULSE_SLOPE)
        return w.mean(axis=0), linear.mean(axis=0), jnp.square(linear).mean(axis=0)

    sums = [moments(k, generator) for k in jax.random.split(key, n_batches)]
    w_mean, mean, square = (sum(part) / n_batches for part in zip(*sums, strict=True))
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    return {"w_mean": w_mean, "pulse_mean": mean, "pulse_std": jnp.sqrt(variance)}
