"""Starts spread over devices: the same solutions whatever the mesh, on eight emulated devices."""

import json
from pathlib import Path

import numpy as np
import pytest

from emulated import run_on_eight_devices

SCRIPT = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh
from stylesr_jax import load_generator, load_prior
from stylesr_jax.methods import method_named
from stylesr_jax.solver.observation import place_on_canvas
from stylesr_jax.solver.solve import device_mesh, solve

generator = load_generator(sys.argv[1])
prior = load_prior(generator, sys.argv[2])
rng = np.random.default_rng(0)
observations = [place_on_canvas(rng.uniform(-1, 1, (8, 8, 3))) for _ in range(2)]
keys = list(jax.random.split(jax.random.key(3)))
assert jax.local_device_count() == 8
found = {}
one = Mesh(np.array(jax.devices()[:1]), ("starts",))
meshes = {"0": None, "1": one, "2": device_mesh(2), "8": device_mesh()}
for devices in sys.argv[6:]:
    mesh = meshes[devices]
    results = solve(
        observations, keys, generator=generator, prior=prior, solutions=3, mesh=mesh,
        method=method_named(sys.argv[4]).resolve("balanced", json.loads(sys.argv[5])),
    )
    found[devices] = np.stack([s.image for r in results for s in r.solutions])
    assert [len(r.solutions) for r in results] == [3, 3]
np.savez(sys.argv[3], **found)
"""


def _solve_on_meshes(
    tiny_files, out: Path, method: str, settings: dict, devices: str
) -> dict[str, np.ndarray]:
    """The pictures for each number of devices; 0 is without a mesh."""
    files = [str(tiny_files[name]) for name in ("generator", "prior")]
    run_on_eight_devices(SCRIPT, *files, str(out), method, json.dumps(settings), *devices)
    with np.load(out) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("method", "settings", "devices"),
    [
        ("csgm", {"steps": 4}, "08"),
        pytest.param(
            "rls",
            {"style_steps": 4, "coarse_steps": 4, "steps": 4, "activation_steps": 4, "tries": 9},
            "0128",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_mesh_does_not_change_solutions(tiny_files, tmp_path, method, settings, devices):
    found = _solve_on_meshes(tiny_files, tmp_path / "found.npz", method, settings, devices)
    assert found["8"].shape == (6, 32, 32, 3)
    assert np.unique(np.round(found["8"], 3), axis=0).shape[0] == 6  # six different pictures
    # The programs are compiled for different numbers of devices and round differently; Adam's first
    # steps are as long where the gradient is next to nothing. A level of 8 bits is 0.008.
    for number in devices:
        np.testing.assert_allclose(found[number], found["8"], atol=1e-3)


@pytest.mark.slow
def test_several_stages_and_projections_are_spread_too(tiny_files, tmp_path):
    settings = {"style_steps": 4, "coarse_steps": 4, "steps": 4, "weights_steps": 4}
    found = _solve_on_meshes(tiny_files, tmp_path / "plus.npz", "rls+", settings, "0128")
    for devices in "012":
        np.testing.assert_allclose(found[devices], found["8"], atol=1e-3)
