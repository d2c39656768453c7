"""The prior on W: a masked autoregressive flow after a fixed whitening, and its fit.

Two densities are on offer and differ by a log-determinant. `Prior.log_prob` is the density of w
itself. `Prior.log_prob_whitened` is the density of u = whiten(w), the coordinates in which the
search moves; log p(w) = log p(u) + log|det du/dw|. The determinant is piecewise constant (it
jumps by a factor of 5 where a coordinate of w changes sign), so both have the same gradients.

Sources: Germain et al., "MADE", 2015; Papamakarios et al., "Masked Autoregressive Flow for
Density Estimation", 2017; Gheisari & Genovesio, "Super-Resolution through StyleGAN Regularized
Latent Search", 2022 (five blocks of width 1024 on w = M(z)); Menon et al., "PULSE", 2020 (leaky
ReLU with slope 5, which undoes the mapping network's last activation).
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from stylesr_jax import store
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import PULSE_SLOPE, Generator

EMBEDDED = ("prior-mobile-ffhq-1024.safetensors",)
PROBES = 4  # latents stored with a prior, by which it recognises its mapping network
PROBE_TOLERANCE = 1e-3  # relative to the largest probe coordinate


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
        radial: whether a `RadialScaling` follows the blocks, see `with_radial`.
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


# --- Masks ----------------------------------------------------------------------------------


def _degrees(dim: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of coordinates (their index) and, sorted, of hidden units (the last input seen)."""
    return np.arange(dim), np.sort(np.arange(width) % max(dim - 1, 1))


def _prefixes(config: FlowConfig) -> np.ndarray:
    """Lengths of the prefixes of the coordinates whose mean square the network is shown."""
    lengths = np.linspace(0, config.dim, config.radii + 2)[1:-1]
    return np.unique(np.maximum(np.round(lengths).astype(int), 1))


def _radius_masks(config: FlowConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which coordinates are in each prefix (dim, radii), which units may see it (radii, width)."""
    inputs, hidden = _degrees(config.dim, config.width)
    lengths = _prefixes(config)
    return inputs[:, None] < lengths, lengths[:, None] - 1 <= hidden


def _log_radius(energy: Array, lengths: Array) -> Array:
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


def _layers(config: FlowConfig) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Column groups of a block's three masked matrices: inputs to hidden, hidden to outputs."""
    inputs, hidden = _degrees(config.dim, config.width)
    return {
        "hidden": list(_column_groups(inputs, hidden, config.columns, strict=False)),
        "log_scale": list(_column_groups(hidden, inputs, config.columns, strict=True)),
        "shift": list(_column_groups(hidden, inputs, config.columns, strict=True)),
    }


def init_flow(key: Array, config: FlowConfig) -> dict[str, Any]:
    """Parameters of a flow that is the identity: output weights are zero, hidden ones random.

    Returns:
        {"block0": {"hidden" | "log_scale" | "shift": {"bias": (out,), "columns0": (in, out),
        ...}, "radius": (radii, width)}, ...}.
    """
    layers = _layers(config)
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
        _, seen = _radius_masks(config)
        parts["radius"] = jnp.where(seen, jax.random.normal(key, seen.shape), 0.0)
        return parts

    keys = jax.random.split(key, config.blocks)
    return {f"block{index}": block(k) for index, k in enumerate(keys)}


def _masked_dense(
    layer: Mapping[str, Array], groups: list[tuple[int, np.ndarray]], x: Array
) -> Array:
    """x (..., in) -> (..., out) through the masked matrix, one product per column group."""
    outputs = [
        x[..., :used] @ jnp.where(mask, layer[f"columns{index}"], 0.0)
        for index, (used, mask) in enumerate(groups)
    ]
    return jnp.concatenate(outputs, axis=-1) + layer["bias"]


def _dense_matrix(
    layer: Mapping[str, Array], groups: list[tuple[int, np.ndarray]], rows: int
) -> Array:
    """The masked matrix in one piece: (rows, out)."""
    return jnp.concatenate(
        [
            jnp.pad(jnp.where(mask, layer[f"columns{index}"], 0.0), ((0, rows - used), (0, 0)))
            for index, (used, mask) in enumerate(groups)
        ],
        axis=-1,
    )


def _bounded(x: Array, bound: float) -> Array:
    """x near zero, within plus and minus `bound` everywhere."""
    return bound * jnp.tanh(x / bound)


# --- Bijectors, from data to noise ----------------------------------------------------------


class AutoregressiveBlock(distrax.Bijector):
    """y_i = x_i exp(s_i) + t_i with s_i, t_i functions of the coordinates before i only.

    "Before" means the lower indices, or the higher ones if `backwards`. `forward` is one parallel
    pass; `inverse` goes through the coordinates one by one. Source: MAF, equations 3 to 6, with
    the affine map written from data to noise.
    """

    def __init__(self, params: Mapping[str, Any], config: FlowConfig, *, backwards: bool):
        super().__init__(event_ndims_in=1)
        self._params = params
        self._config = config
        self._backwards = backwards

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """x (..., dim) -> y (..., dim), log|det dy/dx| (...)."""
        layers = _layers(self._config)
        x = jnp.flip(x, axis=-1) if self._backwards else x
        seen = _bounded(x, self._config.input_bound)
        members, readers = _radius_masks(self._config)
        energy = jnp.square(seen) @ jnp.asarray(members, seen.dtype)
        radius = _log_radius(energy, jnp.asarray(_prefixes(self._config), seen.dtype))
        hidden = jax.nn.gelu(
            _masked_dense(self._params["hidden"], layers["hidden"], seen)
            + radius @ jnp.where(readers, self._params["radius"], 0.0)
        )
        log_scale = _bounded(
            _masked_dense(self._params["log_scale"], layers["log_scale"], hidden),
            self._config.log_scale_bound,
        )
        shift = _masked_dense(self._params["shift"], layers["shift"], hidden)
        y = x * jnp.exp(log_scale) + shift
        y = jnp.flip(y, axis=-1) if self._backwards else y
        return y, jnp.sum(log_scale, axis=-1)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """y (..., dim) -> x (..., dim), log|det dx/dy| (...).

        Every step finds one coordinate and adds its share to the hidden units' sums, so that all
        `dim` steps together cost about as much as one forward pass.
        """
        config, layers = self._config, _layers(self._config)
        into = _dense_matrix(self._params["hidden"], layers["hidden"], config.dim)
        scales = _dense_matrix(self._params["log_scale"], layers["log_scale"], config.width)
        shifts = _dense_matrix(self._params["shift"], layers["shift"], config.width)
        y = jnp.flip(y, axis=-1) if self._backwards else y

        _, readers = _radius_masks(config)
        ends = _prefixes(config) - 1
        # The prefix that ends at a coordinate is shown to the hidden units from there on.
        radius = jnp.zeros((config.dim, config.width))
        radius = radius.at[ends].set(jnp.where(readers, self._params["radius"], 0.0))

        def find(
            carry: tuple[Array, Array], row: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            sums, energy = carry
            y_i, length, into_i, radius_i, scale_i, shift_i, scale_bias, shift_bias = row
            hidden = jax.nn.gelu(sums)
            log_scale = _bounded(hidden @ scale_i + scale_bias, config.log_scale_bound)
            x_i = (y_i - (hidden @ shift_i + shift_bias)) * jnp.exp(-log_scale)
            seen = _bounded(x_i, config.input_bound)
            energy = energy + jnp.square(seen)
            sums = sums + seen[..., None] * into_i
            sums = sums + _log_radius(energy, length)[..., None] * radius_i
            return (sums, energy), (x_i, log_scale)

        rows = (
            jnp.moveaxis(y, -1, 0),
            jnp.arange(1.0, config.dim + 1.0),
            into,
            radius,
            scales.T,
            shifts.T,
            self._params["log_scale"]["bias"],
            self._params["shift"]["bias"],
        )
        start = jnp.broadcast_to(self._params["hidden"]["bias"], (*y.shape[:-1], config.width))
        energy = jnp.zeros(y.shape[:-1], y.dtype)
        _, (x, log_scale) = jax.lax.scan(find, (start, energy), rows)
        x = jnp.moveaxis(x, 0, -1)
        x = jnp.flip(x, axis=-1) if self._backwards else x
        return x, -jnp.sum(log_scale, axis=0)


class RadialScaling(distrax.Bijector):
    """y = x exp(log_gain) rho^((exponent - 1) / 2) with rho = ||x||^2 / dim: directions stay.

    The autoregressive blocks leave the norms of what they make of data a little too widely
    spread: each coordinate's scale is read from the others with an error that all coordinates
    share. A power of the norm takes that out. Source: radial Gaussianization (Lyu & Simoncelli,
    "Nonlinear Extraction of Independent Components of Natural Images Using Radial
    Gaussianization", 2009), with a power law for the radial function.
    """

    def __init__(self, params: Mapping[str, Array]):
        super().__init__(event_ndims_in=1)
        self._log_gain = params["log_gain"]
        self._exponent = params["exponent"]

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """x (..., dim) -> y (..., dim), log|det dy/dx| (...)."""
        log_factor = self._log_gain + (self._exponent - 1.0) / 2.0 * _log_mean_square(x)
        y = x * jnp.exp(log_factor)[..., None]
        return y, x.shape[-1] * log_factor + jnp.log(self._exponent)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """y (..., dim) -> x (..., dim), log|det dx/dy| (...)."""
        log_rho = (_log_mean_square(y) - 2.0 * self._log_gain) / self._exponent
        log_factor = self._log_gain + (self._exponent - 1.0) / 2.0 * log_rho
        x = y * jnp.exp(-log_factor)[..., None]
        return x, -(y.shape[-1] * log_factor + jnp.log(self._exponent))


def _log_mean_square(x: Array) -> Array:
    """log of ||x||^2 / dim, finite with finite gradients at the origin too."""
    return jnp.log(jnp.mean(jnp.square(x), axis=-1) + 1e-12)


class Whitening(distrax.Bijector):
    """u = (leaky_relu(w, 5) - mean) @ matrix, fixed.

    The matrix holds the covariance's eigenvectors, divided by the square roots of their
    eigenvalues after flooring; the first coordinate has the largest eigenvalue.
    """

    def __init__(self, params: Mapping[str, Array]):
        super().__init__(event_ndims_in=1)
        self._params = params

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """w (..., dim) -> u (..., dim), log|det du/dw| (...)."""
        w = x
        negative = jnp.sum(w < 0.0, axis=-1).astype(w.dtype)
        linear = jnp.where(w < 0.0, PULSE_SLOPE * w, w)
        u = (linear - self._params["mean"]) @ self._params["matrix"]
        return u, self._params["log_det"] + negative * float(np.log(PULSE_SLOPE))

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """u (..., dim) -> w (..., dim), log|det dw/du| (...)."""
        linear = y @ self._params["inverse"] + self._params["mean"]
        w = jnp.where(linear < 0.0, linear / PULSE_SLOPE, linear)
        negative = jnp.sum(w < 0.0, axis=-1).astype(w.dtype)
        return w, -self._params["log_det"] - negative * float(np.log(PULSE_SLOPE))


def flow_bijector(params: Mapping[str, Any], config: FlowConfig) -> distrax.Chain:
    """All parts, from whitened coordinates to noise; (..., dim) -> (..., dim)."""
    parts: list[distrax.Bijector] = [
        AutoregressiveBlock(params[f"block{i}"], config, backwards=i % 2 == 1)
        for i in range(config.blocks)
    ]
    if config.radial:
        parts.append(RadialScaling(params["radial"]))
    return distrax.Chain(parts[::-1])  # a chain applies its last part first


def _normal(dim: int) -> distrax.Distribution:
    return distrax.MultivariateNormalDiag(jnp.zeros(dim), jnp.ones(dim))


def _noise_and_log_prob(bijector: distrax.Bijector, x: Array) -> tuple[Array, Array]:
    """(f(x), log p(x)) for the bijector f from data to standard normal noise."""
    z: Any
    z, log_det = bijector.forward_and_log_det(x)
    log_prob: Any = _normal(z.shape[-1]).log_prob(z) + log_det
    return z, log_prob


# --- The prior ------------------------------------------------------------------------------


@struct.dataclass
class Prior:
    """A density on W as a pytree: weights are leaves, the configuration is static.

    All methods are pure and work inside `jit`, `vmap` and `grad`; arrays are float32 and leading
    axes are free.

    Attributes:
        whitening: "mean" (dim,), "matrix" and "inverse" (dim, dim), "log_det" ().
        flow: see `init_flow`; with `config.radial` also "radial": {"log_gain", "exponent"}.
        config: the sizes, and the noise that the flow was fitted with.
    """

    whitening: dict[str, Array]
    flow: dict[str, Any]
    config: FlowConfig = struct.field(pytree_node=False)

    def distribution_whitened(self) -> distrax.Transformed:
        """The distribution of u = whiten(w), as a distrax distribution."""
        bijector = distrax.Inverse(flow_bijector(self.flow, self.config))
        return distrax.Transformed(_normal(self.config.dim), bijector)

    def distribution(self) -> distrax.Transformed:
        """The distribution of w, as a distrax distribution."""
        return distrax.Transformed(_normal(self.config.dim), distrax.Inverse(self._bijector()))

    def _bijector(self) -> distrax.Chain:
        return distrax.Chain([flow_bijector(self.flow, self.config), Whitening(self.whitening)])

    def whiten(self, w: Array) -> Array:
        """w (..., dim) -> u (..., dim), near zero mean and unit covariance for w = M(z)."""
        return Whitening(self.whitening).forward_and_log_det(w)[0]

    def unwhiten(self, u: Array) -> Array:
        """u (..., dim) -> w (..., dim); the inverse of `whiten`."""
        return Whitening(self.whitening).inverse_and_log_det(u)[0]

    def log_prob(self, w: Array) -> Array:
        """log p(w), a density in w: (..., dim) -> (...), in nats."""
        return self.gaussianize_and_log_prob(w)[1]

    def log_prob_whitened(self, u: Array) -> Array:
        """log p(u), a density in u = whiten(w): (..., dim) -> (...), in nats.

        No log-determinant of the whitening or of leaky ReLU is in it.
        """
        return self.gaussianize_and_log_prob_whitened(u)[1]

    def gaussianize(self, w: Array) -> Array:
        """F(w) (..., dim): standard normal for w = M(z), up to the noise of the fit."""
        return self.gaussianize_and_log_prob(w)[0]

    def gaussianize_and_log_prob(self, w: Array) -> tuple[Array, Array]:
        """(F(w), log p(w)) in one pass: (..., dim) -> (..., dim), (...)."""
        return _noise_and_log_prob(self._bijector(), w)

    def gaussianize_and_log_prob_whitened(self, u: Array) -> tuple[Array, Array]:
        """(F, log p(u)) in one pass, for u = whiten(w): (..., dim) -> (..., dim), (...)."""
        return _noise_and_log_prob(flow_bijector(self.flow, self.config), u)

    def sample(self, key: Array, n: int) -> Array:
        """n draws of w: (n, dim). Sequential in the coordinates, so much slower than log_prob."""
        z = jax.random.normal(key, (n, self.config.dim))
        w: Any = self._bijector().inverse(z)
        return w


# --- Fitting --------------------------------------------------------------------------------


def draw_w(key: Array, generator: Generator, n: int) -> Array:
    """n fresh w = M(z): (n, w_dim)."""
    return generator.map_latents(jax.random.normal(key, (n, generator.z_dim)))


def fit_whitening(
    key: Array, generator: Generator, *, floor: float, draws: int = 100_000
) -> dict[str, Array]:
    """Whitening parameters of leaky_relu(w, 5) for a generator's mapping network.

    Moments are accumulated in float64 over `draws` latents, rounded up to full batches.

    Returns:
        {"mean": (dim,), "matrix": (dim, dim), "inverse": (dim, dim), "log_det": ()}, float32.
    """
    batch = min(draws, 10_000)

    @jax.jit
    def linear(key: Array, generator: Generator) -> Array:
        w = draw_w(key, generator, batch)
        return jnp.where(w < 0.0, PULSE_SLOPE * w, w)

    total = np.zeros(generator.w_dim)
    products = np.zeros((generator.w_dim, generator.w_dim))
    keys = jax.random.split(key, -(-draws // batch))
    for k in keys:
        x = np.asarray(linear(k, generator), np.float64)
        total += x.sum(axis=0)
        products += x.T @ x
    count = len(keys) * batch
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    deviations = np.sqrt(np.maximum(values[::-1], floor))
    vectors = vectors[:, ::-1]
    parts = {
        "mean": mean,
        "matrix": vectors / deviations,
        "inverse": (vectors * deviations).T,
        "log_det": -np.log(deviations).sum(),
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in parts.items()}


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a flow is fitted: Adam with warm-up and cosine decay on fresh draws, weights averaged.

    Attributes:
        steps: optimiser steps.
        batch: draws per step.
        learning_rate: at its peak, reached after a twentieth of the steps.
        decay: of the running average of the weights, which is the result.
        clip: largest norm of a gradient, longer ones are shortened. Well-fitted flows have about
            16; now and then a batch of the tail's draws has far more, and undoes a thousand steps.
        chunk: steps per compiled call.
    """

    steps: int
    batch: int = 512
    learning_rate: float = 5e-3
    decay: float = 0.99
    clip: float = 50.0
    chunk: int = 16


@struct.dataclass
class FitState:
    """What a fit carries from chunk to chunk: flow parameters, their average, Adam's moments."""

    flow: dict[str, Any]
    average: dict[str, Any]
    optimiser: Any
    step: Array


def fit_optimiser(config: FitConfig) -> optax.GradientTransformation:
    """Adam with a linear warm-up and a cosine decay to a hundredth of the peak."""
    warmup = max(config.steps // 20, 1)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), config.learning_rate / 100
    )
    clip = optax.clip_by_global_norm(config.clip)
    return optax.chain(clip, optax.adam(schedule, b1=0.9, b2=0.99))


def init_fit(flow: dict[str, Any], fit_config: FitConfig) -> FitState:
    """The state before the first step, from flow parameters to begin with."""
    optimiser = fit_optimiser(fit_config).init(flow)
    return FitState(flow, flow, optimiser, jnp.zeros((), jnp.int32))


def noisy_draws(key: Array, generator: Generator, whitening: dict, noise: float, n: int) -> Array:
    """n fresh u = whiten(M(z)) + noise x standard normal: (n, w_dim)."""
    draw_key, noise_key = jax.random.split(key)
    u, _ = Whitening(whitening).forward_and_log_det(draw_w(draw_key, generator, n))
    return u + noise * jax.random.normal(noise_key, u.shape)


def fit_draws(
    key: Array, generator: Generator, whitening: dict, config: FlowConfig, n: int
) -> Array:
    """What a flow is fitted on: `noisy_draws` with wider noise for a share of them: (n, w_dim)."""
    draw_key, share_key, reach_key, noise_key = jax.random.split(key, 4)
    draws, _ = Whitening(whitening).forward_and_log_det(draw_w(draw_key, generator, n))
    wider = config.reach ** jax.random.uniform(reach_key, (n, 1))
    in_tail = jax.random.bernoulli(share_key, config.tail, (n, 1))
    spread = config.noise * jnp.where(in_tail, wider, 1.0)
    return draws + spread * jax.random.normal(noise_key, draws.shape)


def negative_log_likelihood(flow: Mapping[str, Any], config: FlowConfig, u: Array) -> Array:
    """Mean of -log p(u) over the first axis, a density in whitened coordinates, in nats."""
    return -jnp.mean(_noise_and_log_prob(flow_bijector(flow, config), u)[1])


def fit_chunk(
    state: FitState,
    key: Array,
    generator: Generator,
    whitening: dict[str, Array],
    *,
    flow_config: FlowConfig,
    fit_config: FitConfig,
) -> tuple[FitState, Array]:
    """`fit_config.chunk` maximum-likelihood steps on fresh noisy draws.

    Pure: the draws depend on `key` and the step count only, so a resumed fit repeats itself.

    Returns:
        The new state and each step's loss, (chunk,), in nats.
    """
    optimiser = fit_optimiser(fit_config)
    key = jax.random.fold_in(key, state.step)
    total = fit_config.chunk * fit_config.batch
    draws = fit_draws(key, generator, whitening, flow_config, total)

    def step(state: FitState, batch: Array) -> tuple[FitState, Array]:
        loss, gradient = jax.value_and_grad(negative_log_likelihood)(state.flow, flow_config, batch)
        with jax.numpy_dtype_promotion("standard"):  # Adam raises a float to an integer count
            updates, moments = optimiser.update(gradient, state.optimiser, state.flow)
        flow: Any = optax.apply_updates(state.flow, updates)
        # A shorter memory at first, so that the average forgets the initial weights.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(fit_config.decay, (1.0 + age) / (10.0 + age))
        average = jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, state.average, flow)
        return FitState(flow, average, moments, state.step + 1), loss

    return jax.lax.scan(step, state, draws.reshape(fit_config.chunk, fit_config.batch, -1))


def without_radial(prior: Prior) -> Prior:
    """The prior without its radial scaling: the blocks alone."""
    blocks = {name: value for name, value in prior.flow.items() if name != "radial"}
    return Prior(prior.whitening, blocks, dataclasses.replace(prior.config, radial=False))


def with_radial(key: Array, prior: Prior, generator: Generator, *, draws: int = 20_000) -> Prior:
    """The prior with a radial scaling after its blocks, fitted on fresh draws with its own noise.

    The log of F(w)'s squared norm gets the mean and the variance that it has under a chi-square
    distribution with `dim` degrees.
    """
    blocks = without_radial(prior)
    dim, noise = float(prior.config.dim), prior.config.noise
    batch = min(draws, 5000)

    @jax.jit
    def logs(key: Array, prior: Prior, generator: Generator) -> Array:
        u = noisy_draws(key, generator, prior.whitening, noise, batch)
        return _log_mean_square(prior.gaussianize_and_log_prob_whitened(u)[0])

    keys = jax.random.split(key, -(-draws // batch))
    found = jnp.concatenate([logs(k, blocks, generator) for k in keys])
    mean = jax.scipy.special.digamma(dim / 2.0) - jnp.log(dim / 2.0)
    deviation = jnp.sqrt(jax.scipy.special.polygamma(1, dim / 2.0))
    exponent = deviation / jnp.std(found)
    radial = {"log_gain": (mean - exponent * jnp.mean(found)) / 2.0, "exponent": exponent}
    config = dataclasses.replace(prior.config, radial=True)
    return Prior(prior.whitening, {**blocks.flow, "radial": radial}, config)


@jax.jit
def prior_figures(key: Array, prior: Prior, generator: Generator) -> dict[str, Array]:
    """What a prior is judged by, on 5,000 fresh draws; log-densities are in whitened coordinates.

    Returns:
        Scalars: "nll" (mean -log p of draws with the prior's own noise), "norm2_mean" and
        "norm2_std" (squared norm of F of the same draws; a chi-square has dim and
        sqrt(2 dim)), and mean log p of: draws without noise ("log_p_data"), those jittered by
        0.2 ("log_p_jittered"), the origin, the mean w, and 5 standard deviations out
        ("log_p_far", noise of standard deviation 5).
    """
    draw_key, noise_key, jitter_key, far_key = jax.random.split(key, 4)
    clean = prior.whiten(draw_w(draw_key, generator, 5000))

    def around(key: Array, spread: float) -> Array:
        return clean + spread * jax.random.normal(key, clean.shape)

    z, log_p = prior.gaussianize_and_log_prob_whitened(around(noise_key, prior.config.noise))
    norm2 = jnp.sum(jnp.square(z), axis=-1)
    far = 5.0 * jax.random.normal(far_key, (100, prior.config.dim))
    return {
        "nll": -jnp.mean(log_p),
        "norm2_mean": jnp.mean(norm2),
        "norm2_std": jnp.std(norm2),
        "log_p_data": jnp.mean(prior.log_prob_whitened(clean)),
        "log_p_jittered": jnp.mean(prior.log_prob_whitened(around(jitter_key, 0.2))),
        "log_p_origin": prior.log_prob_whitened(jnp.zeros(prior.config.dim)),
        "log_p_mean_w": prior.log_prob_whitened(prior.whiten(generator.statistics["w_mean"])),
        "log_p_far": jnp.mean(prior.log_prob_whitened(far)),
    }


# --- Files ----------------------------------------------------------------------------------


def stored_precision(prior: Prior) -> Prior:
    """The prior as it comes back from a file: flow weights rounded to half precision."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), prior.flow)
    return prior.replace(flow=rounded)  # type: ignore[attr-defined]


def _tree_sha256(tree: Any) -> str:
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, value in leaves:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(value, np.float32).tobytes())
    return digest.hexdigest()


def mapping_sha256(generator: Generator) -> str:
    """Hexadecimal SHA-256 of the mapping network's weights, names and values."""
    return _tree_sha256(generator.params["mapping"])


def flow_sha256(prior: Prior) -> str:
    """Hexadecimal SHA-256 of a prior's weights, names and values."""
    return _tree_sha256({"whitening": prior.whitening, "flow": prior.flow})


def save_prior(
    path: str | os.PathLike[str],
    prior: Prior,
    generator: Generator,
    *,
    header: Mapping[str, Any],
) -> None:
    """Write a prior with probes of its mapping network; the flow's weights in half precision.

    Raises:
        UserError: the folder cannot be written.
    """
    z = jax.random.normal(jax.random.key(0), (PROBES, generator.z_dim))
    tensors = {
        "flow": jax.tree.map(lambda x: x.astype(jnp.float16), prior.flow),
        "whitening": prior.whitening,
        "probe": {"z": z, "w": generator.map_latents(z)},
    }
    store.save(
        path,
        tensors,
        {
            **header,
            "kind": "prior",
            "config": dataclasses.asdict(prior.config),
            "generator": generator.name,
            "mapping_sha256": mapping_sha256(generator),
        },
    )


def prior_from_file(path: str | os.PathLike[str]) -> tuple[Prior, dict[str, Array]]:
    """A prior and its probes ("z": (n, z_dim), "w": (n, w_dim)), whatever generator it is for.

    Raises:
        UserError: the file is missing, damaged or no prior.
    """
    tensors, header = store.load(path)
    if header.get("kind") != "prior":
        raise UserError(f"{path} holds a {header.get('kind', 'file')}, not a prior")
    try:
        config = FlowConfig(**header["config"])
    except TypeError as error:
        raise UserError(
            f"{path} does not fit this version ({error}); fit the prior again: "
            "python -m stylesr_jax.fit_prior --help"
        ) from error
    single = jax.device_put(jax.tree.map(lambda x: np.asarray(x, np.float32), tensors))
    return Prior(single["whitening"], single["flow"], config), single["probe"]


def _fits(probe: Mapping[str, Array], generator: Generator) -> bool:
    """Whether the generator's mapping network is the one that the probes were taken from."""
    z, w = probe["z"], probe["w"]
    if z.shape[-1] != generator.z_dim or w.shape[-1] != generator.w_dim:
        return False
    error = jnp.max(jnp.abs(generator.map_latents(z) - w))
    return bool(error <= PROBE_TOLERANCE * jnp.max(jnp.abs(w)))


def _belongs(path: Path, generator: Generator) -> bool:
    """Whether a prior was fitted on the very weights of the mapping network, or fits it."""
    header = store.read_header(path)
    if not generator.label_dim and header.get("mapping_sha256") == mapping_sha256(generator):
        return header.get("kind") == "prior"
    return _fits(prior_from_file(path)[1], generator)


def priors_folder() -> Path:
    """Where fitted priors are kept for `load_prior` to find."""
    return store.cache_dir() / "priors"


def find_prior(generator: Generator, path: str | os.PathLike[str] | None = None) -> Path:
    """The file of the prior that belongs to a generator's mapping network, see `load_prior`."""
    if path is not None:
        if not _belongs(Path(path), generator):
            raise UserError(
                f"{path} was fitted for another mapping network than {generator.name}'s; "
                "fit one: python -m stylesr_jax.fit_prior --generator NAME_OR_PATH"
            )
        return Path(path)
    for candidate in store.known_files(EMBEDDED, priors_folder()):
        if _belongs(candidate, generator):
            return candidate
    raise UserError(
        f"there is no flow prior for {generator.name}; fit one (it is then found by itself): "
        "python -m stylesr_jax.fit_prior --generator NAME_OR_PATH"
    )


def load_prior(generator: Generator, path: str | os.PathLike[str] | None = None) -> Prior:
    """The flow prior that belongs to a generator's mapping network.

    A prior is recognised by what the mapping network computes, not by names: it fits when it maps
    a few stored z to the stored w within 1e-3 of the largest coordinate. So a prior fitted on
    one generator serves every generator that shares its mapping network.

    Args:
        generator: an unconditional generator, or a conditional one set to a class.
        path: a prior file; None searches the embedded priors and the user's cache.

    Raises:
        UserError: no prior fits; the message says which command fits one.
    """
    return prior_from_file(find_prior(generator, path))[0]
