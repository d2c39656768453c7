"""The embedded prior serves every generator that shares its mapping network, and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.state_dict import prepare, random_state
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.priors.flow import load_prior


def _with_mapping_of(mobile: Generator, *, error: float = 0.0) -> Generator:
    """An untrained StyleGAN2 with the default's mapping, written as the official files are."""
    state = random_state(seed=1, resolution=8, channel_base=256)
    rng = np.random.default_rng(0)
    multiplier = 0.01
    for name, layer in mobile.params["mapping"].items():
        weight, bias = np.asarray(layer["weight"]), np.asarray(layer["bias"])
        scale = multiplier / np.sqrt(weight.shape[0])
        noise = 1.0 + error * rng.standard_normal(weight.shape, dtype=np.float32)
        state[f"mapping.{name}.weight"] = (weight * noise).T / np.float32(scale)
        state[f"mapping.{name}.bias"] = bias / np.float32(multiplier)
    params, config = prepare(state, name="renamed")
    return Generator(jax.tree.map(jnp.asarray, params), dict(mobile.statistics), None, config)


def test_the_mapping_network_is_recognised_whatever_the_file_is_called(mobile):
    own, other = load_prior(mobile), load_prior(_with_mapping_of(mobile))
    jax.tree.map(np.testing.assert_array_equal, own, other)


def test_another_mapping_network_is_told_which_command_fits_a_prior(mobile, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m stylesr_jax\.fit_prior"):
        load_prior(_with_mapping_of(mobile, error=0.05))
