"""The flow's parts as distrax bijectors, from data to noise.

`flow` imports this module when a density is first traced: importing distrax takes a second.
Sources: Papamakarios et al., "Masked Autoregressive Flow for Density Estimation", 2017.
"""

from collections.abc import Mapping
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.priors.autoregressive import (
    FlowConfig,
    bounded,
    dense_matrix,
    groups_of,
    log_radius,
    masked_dense,
    prefixes,
    radius_masks,
)
from stylesr_jax.priors.whitening import unwhiten, whiten


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

    def forward_and_log_det(
        self, x: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """x (..., dim) -> y (..., dim), log|det dy/dx| (...)."""
        layers = groups_of(self._config)
        x = jnp.flip(x, axis=-1) if self._backwards else x
        seen = bounded(x, self._config.input_bound)
        members, readers = radius_masks(self._config)
        energy = jnp.square(seen) @ jnp.asarray(members, seen.dtype)
        radius = log_radius(energy, jnp.asarray(prefixes(self._config), seen.dtype))
        hidden = jax.nn.gelu(
            masked_dense(self._params["hidden"], layers["hidden"], seen)
            + radius @ jnp.where(readers, self._params["radius"], 0.0)
        )
        log_scale = bounded(
            masked_dense(self._params["log_scale"], layers["log_scale"], hidden),
            self._config.log_scale_bound,
        )
        shift = masked_dense(self._params["shift"], layers["shift"], hidden)
        y = x * jnp.exp(log_scale) + shift
        y = jnp.flip(y, axis=-1) if self._backwards else y
        return y, jnp.sum(log_scale, axis=-1)

    def inverse_and_log_det(
        self, y: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """y (..., dim) -> x (..., dim), log|det dx/dy| (...).

        Every step finds one coordinate and adds its share to the hidden units' sums, so that all
        `dim` steps together cost about as much as one forward pass.
        """
        config, layers = self._config, groups_of(self._config)
        into = dense_matrix(self._params["hidden"], layers["hidden"], config.dim)
        scales = dense_matrix(self._params["log_scale"], layers["log_scale"], config.width)
        shifts = dense_matrix(self._params["shift"], layers["shift"], config.width)
        y = jnp.flip(y, axis=-1) if self._backwards else y

        _, readers = radius_masks(config)
        ends = prefixes(config) - 1
        # The prefix that ends at a coordinate is shown to the hidden units from there on.
        radius = jnp.zeros((config.dim, config.width))
        radius = radius.at[ends].set(jnp.where(readers, self._params["radius"], 0.0))

        def find(
            carry: tuple[Array, Array], row: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            sums, energy = carry
            y_i, length, into_i, radius_i, scale_i, shift_i, scale_bias, shift_bias = row
            hidden = jax.nn.gelu(sums)
            log_scale = bounded(hidden @ scale_i + scale_bias, config.log_scale_bound)
            x_i = (y_i - (hidden @ shift_i + shift_bias)) * jnp.exp(-log_scale)
            seen = bounded(x_i, config.input_bound)
            energy = energy + jnp.square(seen)
            sums = sums + seen[..., None] * into_i
            sums = sums + log_radius(energy, length)[..., None] * radius_i
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

    def forward_and_log_det(
        self, x: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """x (..., dim) -> y (..., dim), log|det dy/dx| (...)."""
        log_factor = self._log_gain + (self._exponent - 1.0) / 2.0 * log_mean_square(x)
        y = x * jnp.exp(log_factor)[..., None]
        return y, x.shape[-1] * log_factor + jnp.log(self._exponent)

    def inverse_and_log_det(
        self, y: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """y (..., dim) -> x (..., dim), log|det dx/dy| (...)."""
        log_rho = (log_mean_square(y) - 2.0 * self._log_gain) / self._exponent
        log_factor = self._log_gain + (self._exponent - 1.0) / 2.0 * log_rho
        x = y * jnp.exp(-log_factor)[..., None]
        return x, -(y.shape[-1] * log_factor + jnp.log(self._exponent))


def log_mean_square(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """log of ||x||^2 / dim, finite with finite gradients at the origin too."""
    return jnp.log(jnp.mean(jnp.square(x), axis=-1) + 1e-12)


class Whitening(distrax.Bijector):
    """`whiten`, which is fixed, as a bijector."""

    def __init__(self, params: Mapping[str, Array]):
        super().__init__(event_ndims_in=1)
        self._params = params

    def forward_and_log_det(
        self, x: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """w (..., dim) -> u (..., dim), log|det du/dw| (...)."""
        return whiten(self._params, x)

    def inverse_and_log_det(
        self, y: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """u (..., dim) -> w (..., dim), log|det dw/du| (...)."""
        return unwhiten(self._params, y)


def flow_bijector(params: Mapping[str, Any], config: FlowConfig) -> distrax.Chain:
    """All parts, from whitened coordinates to noise; (..., dim) -> (..., dim)."""
    parts: list[distrax.Bijector] = [
        AutoregressiveBlock(params[f"block{i}"], config, backwards=i % 2 == 1)
        for i in range(config.blocks)
    ]
    if config.radial:
        parts.append(RadialScaling(params["radial"]))
    return distrax.Chain(parts[::-1])  # a chain applies its last part first


def whole_bijector(
    whitening: Mapping[str, Array], flow: Mapping[str, Any], config: FlowConfig
) -> distrax.Chain:
    """From w to noise: (..., dim) -> (..., dim)."""
    return distrax.Chain([flow_bijector(flow, config), Whitening(whitening)])


def _normal(dim: int) -> distrax.Distribution:
    return distrax.MultivariateNormalDiag(jnp.zeros(dim), jnp.ones(dim))


def distribution(bijector: distrax.Bijector, dim: int) -> distrax.Transformed:
    """The distribution of what the bijector maps to standard normal noise."""
    return distrax.Transformed(_normal(dim), distrax.Inverse(bijector))


def noise_and_log_prob(
    bijector: distrax.Bijector, x: Float[Array, "*batch dim"]
) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
    """(f(x), log p(x)) for the bijector f from data to standard normal noise."""
    z: Any
    z, log_det = bijector.forward_and_log_det(x)
    log_prob: Any = _normal(z.shape[-1]).log_prob(z) + log_det
    return z, log_prob
