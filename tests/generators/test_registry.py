"""An architecture is a configuration in a file of its own, and an entry in the registry."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Config
from stylesr_jax.generators.registry import ARCHITECTURES, config_from_dict, config_to_dict
from stylesr_jax.loading import load_generator
from stylesr_jax.runtime import weights


@dataclasses.dataclass(frozen=True)
class FlatConfig(Config):
    """Images of one colour, which is linear in the style."""

    sizes: tuple[int, ...] = (4, 8)

    architecture = "flat"

    @property
    def noise_shapes(self):
        return ()

    @property
    def block_resolutions(self):
        return self.sizes

    def synthesis_module(self):
        return FlatSynthesis(self)


class FlatSynthesis(nn.Module):
    config: FlatConfig

    @nn.compact
    def __call__(self, ws, noise, *, start=None, stop=None):
        colour = ws[:, 0] @ self.param("weight", nn.initializers.normal(), (ws.shape[-1], 3))
        size = self.config.resolution
        return jnp.broadcast_to(colour[:, None, None], (len(ws), size, size, 3))


CONFIG = FlatConfig(
    name="flat-8", resolution=8, num_ws=1, w_dim=2, z_dim=2, mapping_widths=(2,), sizes=(8,)
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, FlatConfig.architecture, FlatConfig)


def test_a_registered_architecture_is_loaded_from_a_file(registered, tmp_path):
    path = tmp_path / "flat.safetensors"
    colours = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], np.float32)
    params = {
        "mapping": {"fc0": {"weight": np.eye(2, dtype=np.float32), "bias": np.zeros(2, "f4")}},
        "synthesis": {"weight": colours},
        "noise": {},
    }
    statistics = {name: np.zeros(2, "f4") for name in ("w_mean", "pulse_mean", "pulse_std")}
    header = {"kind": "generator", "config": config_to_dict(CONFIG)}
    weights.save(path, {"params": params, "statistics": statistics}, header)
    generator = load_generator(path)
    assert generator.config == CONFIG
    assert generator.map_latents(jnp.ones((1, 2))).shape == (1, 2)
    images = jax.jit(lambda g, ws: g.synthesise(ws))(generator, jnp.array([[[2.0, 3.0]]]))
    np.testing.assert_allclose(images[0, 5, 2], [2.0, 3.0, 2.5])


def test_a_configuration_comes_back_from_json(registered):
    values = config_to_dict(CONFIG)
    values["sizes"] = [8]  # as JSON has it
    assert config_from_dict(values) == CONFIG


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "flat"}, "unknown generator architecture 'flat'.*mobile, stylegan2"),
        ({}, "unknown generator architecture None"),
        ({"architecture": "mobile", "colour": 3}, "does not fit this version"),
    ],
)
def test_a_header_of_another_version_is_an_error(values, message):
    with pytest.raises(UserError, match=message):
        config_from_dict(values)
