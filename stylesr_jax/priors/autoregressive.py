"""The masked networks of the flow's autoregressive blocks: sizes, masks, parameters, products.

Source: Germain et al., "MADE: Masked Autoencoder for Distribution Estimation", 2015.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """The static part of a prior.

    Attributes:
        dim: of w.
        blocks: autoregressive blocks; every second one runs through the coordinates backwards.
        width: hidden units of each block's network (one hidden layer).
        log_scale_bound: a block's log-scales stay within plus and minus this, softly.
        input_bound: so do the coordinates as a block's network sees them. Together the bounds
            keep log p and its gradient moderate far from the data: without them five blocks
            extrapolate to log p of -1e13 at the mean w, with them it falls off as a quadratic.
        radii: how many prefixes of the coordinates have their mean square shown to the network, as
            a logarithm. Mapped latents differ in overall scale above all, which a network of one
            hidden layer finds hard to read from single coordinates.
        columns: into how many column groups each masked product is cut. Units are sorted by
            degree, so each group needs only the first rows of its matrix: with two, a quarter of
            the multiplications is spared, and the result does not change.
        noise: standard deviation of the Gaussian noise in whitened coordinates that the flow
            was fitted with.
        tail: share of the draws of a fit that get wider noise.
        reach: up to how many times wider.
        floor: the least eigenvalue of the covariance of leaky_relu(w, 5) that whitening divides
            by.
        radial: whether a `bijectors.RadialScaling` follows the blocks, see `flow.with_radial`.
    """

    dim: int
    blocks: int = 5
    width: int = 1024
    log_scale_bound: float = 0.5
    input_bound: float = 3.0
    radii: int = 16
    columns: int = 2
    noise: float = 0.5
    tail: float = 0.1
    reach: float = 6.0
    floor: float = 1e-2
    radial: bool = False


def _degrees(dim: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of coordinates (their index) and, sorted, of hidden units (the last input seen)."""
    return np.arange(dim), np.sort(np.arange(width) % max(dim - 1, 1))


def prefixes(config: FlowConfig) -> Int[np.ndarray, " radii"]:
    """Lengths of the prefixes of the coordinates whose mean square the network is shown."""
    lengths = np.linspace(0, config.dim, config.radii + 2)[1:-1]
    return np.unique(np.maximum(np.round(lengths).astype(int), 1))


def radius_masks(
    config: FlowConfig,
) -> tuple[Bool[np.ndarray, "dim radii"], Bool[np.ndarray, "radii width"]]:
    """Which coordinates are in each prefix, and which units may see it."""
    inputs, hidden = _degrees(config.dim, config.width)
    lengths = prefixes(config)
    return inputs[:, None] < lengths, lengths[:, None] - 1 <= hidden


def log_radius(
    energy: Float[Array, "*shape"], lengths: Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """Log of the mean square over a prefix, from its sum of squares; zero for unit variance."""
    return jnp.log((1.0 + energy) / (1.0 + lengths))


def _column_groups(
    rows: np.ndarray, columns: np.ndarray, groups: int, *, strict: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """For each group of columns: how many leading rows it may use, and its 0/1 mask over them."""
    allowed = np.less if strict else np.less_equal
    for part in np.array_split(columns, groups):
        used = int(allowed(rows, part[-1]).sum()) if len(part) else 0
        yield used, allowed(rows[:used, None], part[None, :])


def groups_of(config: FlowConfig) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Column groups of a block's three masked matrices: inputs to hidden, hidden to outputs."""
    inputs, hidden = _degrees(config.dim, config.width)
    return {
        "hidden": list(_column_groups(inputs, hidden, config.columns, strict=False)),
        "log_scale": list(_column_groups(hidden, inputs, config.columns, strict=True)),
        "shift": list(_column_groups(hidden, inputs, config.columns, strict=True)),
    }


def init_flow(key: Key[Array, ""], config: FlowConfig) -> dict[str, Any]:
    """Parameters of a flow that is the identity: output weights are zero, hidden ones random.

    Returns:
        {"block0": {"hidden" | "log_scale" | "shift": {"bias": (out,), "columns0": (in, out),
        ...}, "radius": (radii, width)}, ...}.
    """
    layers = groups_of(config)
    _, hidden_degrees = _degrees(config.dim, config.width)
    # He's initialisation for the number of inputs that each unit really sees.
    gain = np.sqrt(2.0 / (hidden_degrees + 1.0)).astype(np.float32)

    def block(key: Array) -> dict[str, Any]:
        parts: dict[str, Any] = {"hidden": {"bias": jnp.zeros(config.width)}}
        splits = zip(layers["hidden"], np.array_split(gain, config.columns), strict=True)
        for index, ((_, mask), scale) in enumerate(splits):
            weight = jax.random.normal(jax.random.fold_in(key, index), mask.shape)
            parts["hidden"][f"columns{index}"] = weight * jnp.asarray(mask * scale)
        for name in ("log_scale", "shift"):
            parts[name] = {"bias": jnp.zeros(config.dim)} | {
                f"columns{index}": jnp.zeros(mask.shape)
                for index, (_, mask) in enumerate(layers[name])
            }
        _, seen = radius_masks(config)
        parts["radius"] = jnp.where(seen, jax.random.normal(key, seen.shape), 0.0)
        return parts

    keys = jax.random.split(key, config.blocks)
    return {f"block{index}": block(k) for index, k in enumerate(keys)}


def masked_dense(
    layer: Mapping[str, Array],
    groups: list[tuple[int, np.ndarray]],
    x: Float[Array, "*batch inputs"],
) -> Float[Array, "*batch outputs"]:
    """x through the masked matrix, one product per column group."""
    outputs = [
        x[..., :used] @ jnp.where(mask, layer[f"columns{index}"], 0.0)
        for index, (used, mask) in enumerate(groups)
    ]
    return jnp.concatenate(outputs, axis=-1) + layer["bias"]


def dense_matrix(
    layer: Mapping[str, Array], groups: list[tuple[int, np.ndarray]], rows: int
) -> Float[Array, "{rows} outputs"]:
    """The masked matrix in one piece."""
    return jnp.concatenate(
        [
            jnp.pad(jnp.where(mask, layer[f"columns{index}"], 0.0), ((0, rows - used), (0, 0)))
            for index, (used, mask) in enumerate(groups)
        ],
        axis=-1,
    )


def bounded(x: Float[Array, "*shape"], bound: float) -> Float[Array, "*shape"]:
    """x near zero, within plus and minus `bound` everywhere."""
    return bound * jnp.tanh(x / bound)
