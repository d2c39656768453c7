"""The prior on W: a masked autoregressive flow after a fixed whitening, and its fit.

Two densities are on offer and differ by a log-determinant. `Prior.log_prob` is the density of w
itself. `Prior.log_prob_whitened` is the density of u = whiten(w), the coordinates in which the
search moves; log p(w) = log p(u) + log|det du/dw|. The determinant is piecewise constant (it
jumps by a factor of 5 where a coordinate of w changes sign), so both have the same gradients.

The parts are in `autoregressive` (the blocks' networks), `whitening` and `bijectors` (the maps that
distrax chains). Source: Gheisari & Genovesio, "Super-Resolution through StyleGAN Regularized Latent
Search", 2022 (five blocks of width 1024 on w = M(z)).
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.priors.autoregressive import FlowConfig
from stylesr_jax.priors.whitening import draw_w, unwhiten, whiten
from stylesr_jax.runtime import files, weights
from stylesr_jax.runtime.pytrees import tree_sha256

if TYPE_CHECKING:
    import distrax

EMBEDDED = ("prior-mobile-ffhq-1024.safetensors",)
PROBES = 4  # latents stored with a prior, by which it recognises its mapping network
PROBE_TOLERANCE = 1e-3  # relative to the largest probe coordinate


def _bijectors() -> ModuleType:
    """The module of distrax, which takes a second to import: kept programs do without."""
    with jax.ensure_compile_time_eval():  # what it computes is no part of a program being traced
        from stylesr_jax.priors import bijectors

    return bijectors


# --- The prior ------------------------------------------------------------------------------


@struct.dataclass
class Prior:
    """A density on W as a pytree: weights are leaves, the configuration is static.

    All methods are pure and work inside `jit`, `vmap` and `grad`; arrays are float32 and leading
    axes are free.

    Attributes:
        whitening: "mean" (dim,), "matrix" and "inverse" (dim, dim), "log_det" ().
        flow: see `autoregressive.init_flow`; with `config.radial` also "radial": {"log_gain",
            "exponent"}.
        config: the sizes, and the noise that the flow was fitted with.
    """

    whitening: dict[str, Array]
    flow: dict[str, Any]
    config: FlowConfig = struct.field(pytree_node=False)

    def distribution(self) -> "distrax.Transformed":
        """The distribution of w, as a distrax distribution."""
        return _bijectors().distribution(self._whole(), self.config.dim)

    def _blocks(self) -> "distrax.Chain":
        return _bijectors().flow_bijector(self.flow, self.config)

    def _whole(self) -> "distrax.Chain":
        return _bijectors().whole_bijector(self.whitening, self.flow, self.config)

    def whiten(self, w: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """w (..., dim) -> u (..., dim), near zero mean and unit covariance for w = M(z)."""
        return whiten(self.whitening, w)[0]

    def unwhiten(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """u (..., dim) -> w (..., dim); the inverse of `whiten`."""
        return unwhiten(self.whitening, u)[0]

    def log_prob(self, w: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """log p(w), a density in w: (..., dim) -> (...), in nats."""
        return self.gaussianize_and_log_prob(w)[1]

    def log_prob_whitened(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """log p(u), a density in u = whiten(w): (..., dim) -> (...), in nats.

        No log-determinant of the whitening or of leaky ReLU is in it.
        """
        return self.gaussianize_and_log_prob_whitened(u)[1]

    def gaussianize_and_log_prob(
        self, w: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """(F(w), log p(w)) in one pass: (..., dim) -> (..., dim), (...).

        F(w) is standard normal for w = M(z), up to the noise of the fit.
        """
        return _bijectors().noise_and_log_prob(self._whole(), w)

    def gaussianize_and_log_prob_whitened(
        self, u: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """(F, log p(u)) in one pass, for u = whiten(w): (..., dim) -> (..., dim), (...)."""
        return _bijectors().noise_and_log_prob(self._blocks(), u)

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "{n} dim"]:
        """n draws of w: (n, dim). Sequential in the coordinates, so much slower than log_prob."""
        z = jax.random.normal(key, (n, self.config.dim))
        w: Any = self._whole().inverse(z)
        return w


# --- Fitting --------------------------------------------------------------------------------


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


def noisy_draws(
    key: Key[Array, ""], generator: Generator, whitening: dict, noise: float, n: int
) -> Float[Array, "{n} dim"]:
    """n fresh u = whiten(M(z)) + noise x standard normal: (n, w_dim)."""
    draw_key, noise_key = jax.random.split(key)
    u, _ = whiten(whitening, draw_w(draw_key, generator, n))
    return u + noise * jax.random.normal(noise_key, u.shape)


def fit_draws(
    key: Key[Array, ""], generator: Generator, whitening: dict, config: FlowConfig, n: int
) -> Float[Array, "{n} dim"]:
    """What a flow is fitted on: `noisy_draws` with wider noise for a share of them."""
    draw_key, share_key, reach_key, noise_key = jax.random.split(key, 4)
    draws, _ = whiten(whitening, draw_w(draw_key, generator, n))
    wider = config.reach ** jax.random.uniform(reach_key, (n, 1))
    in_tail = jax.random.bernoulli(share_key, config.tail, (n, 1))
    spread = config.noise * jnp.where(in_tail, wider, 1.0)
    return draws + spread * jax.random.normal(noise_key, draws.shape)


def negative_log_likelihood(
    flow: Mapping[str, Any], config: FlowConfig, u: Float[Array, "n dim"]
) -> Float[Array, ""]:
    """Mean of -log p(u) over the first axis, a density in whitened coordinates, in nats."""
    maps = _bijectors()
    return -jnp.mean(maps.noise_and_log_prob(maps.flow_bijector(flow, config), u)[1])


def fit_chunk(
    state: FitState,
    key: Key[Array, ""],
    generator: Generator,
    whitening: dict[str, Array],
    *,
    flow_config: FlowConfig,
    fit_config: FitConfig,
) -> tuple[FitState, Float[Array, " {fit_config.chunk}"]]:
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


def with_radial(
    key: Key[Array, ""], prior: Prior, generator: Generator, *, draws: int = 20_000
) -> Prior:
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
        return _bijectors().log_mean_square(prior.gaussianize_and_log_prob_whitened(u)[0])

    keys = jax.random.split(key, -(-draws // batch))
    log_squares = jnp.concatenate([logs(k, blocks, generator) for k in keys])
    mean = jax.scipy.special.digamma(dim / 2.0) - jnp.log(dim / 2.0)
    deviation = jnp.sqrt(jax.scipy.special.polygamma(1, dim / 2.0))
    exponent = deviation / jnp.std(log_squares)
    radial = {"log_gain": (mean - exponent * jnp.mean(log_squares)) / 2.0, "exponent": exponent}
    config = dataclasses.replace(prior.config, radial=True)
    return Prior(prior.whitening, {**blocks.flow, "radial": radial}, config)


@jax.jit
def prior_figures(
    key: Key[Array, ""], prior: Prior, generator: Generator
) -> dict[str, Float[Array, "..."]]:
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


def mapping_sha256(generator: Generator) -> str:
    """Hexadecimal SHA-256 of the mapping network's weights, names and values."""
    return tree_sha256(generator.params["mapping"])


def flow_sha256(prior: Prior) -> str:
    """Hexadecimal SHA-256 of a prior's weights, names and values."""
    return tree_sha256({"whitening": prior.whitening, "flow": prior.flow})


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
    weights.save(
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


def prior_from_file(
    path: str | os.PathLike[str],
) -> tuple[Prior, dict[str, Float[Array, "n _"]]]:
    """A prior and its probes ("z": (n, z_dim), "w": (n, w_dim)), whatever generator it is for.

    Raises:
        UserError: the file is missing, damaged or no prior.
    """
    tensors, header = weights.load(path)
    if header.get("kind") != "prior":
        raise UserError(f"{path} holds a {header.get('kind', 'file')}, not a prior")
    try:
        config = FlowConfig(**header["config"])
    except (TypeError, KeyError) as error:
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
    header = weights.read_header(path)
    if not generator.label_dim and header.get("mapping_sha256") == mapping_sha256(generator):
        return header.get("kind") == "prior"
    return _fits(prior_from_file(path)[1], generator)


def priors_folder() -> Path:
    """Where fitted priors are kept for `load_prior` to find."""
    return files.cache_dir() / "priors"


def find_prior(generator: Generator, path: str | os.PathLike[str] | None = None) -> Path:
    """The file of the prior that belongs to a generator's mapping network, see `load_prior`."""
    if path is not None:
        if not _belongs(Path(path), generator):
            raise UserError(
                f"{path} was fitted for another mapping network than {generator.name}'s; "
                "fit one: python -m stylesr_jax.fit_prior --generator NAME_OR_PATH"
            )
        return Path(path)
    for candidate in weights.known_files(EMBEDDED, priors_folder()):
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
