"""From somebody's weight file to solutions, by the commands alone: fit a prior, then search."""

import json
import runpy
import sys

import jax
import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.loading import load_generator
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.solver.solve import upsample


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache, monkeypatch):
    """Runs a command as `python -m` would; returns its exit code."""
    monkeypatch.setenv("STYLESR_CACHE", str(cache))

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        # Another test's import would make runpy warn that the module runs twice.
        monkeypatch.delitem(sys.modules, f"stylesr_jax.{module}", raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(f"stylesr_jax.{module}", run_name="__main__")
        return stop.value.code or 0

    return call


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


SMALL = ("--steps", "4", "--batch", "32", "--blocks", "2", "--width", "64")
SMALL += ("--whitening-draws", "2000", "--quiet")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tf_legacy_generator_only_32.pkl", None),
        pytest.param("ada_pytorch_skip_32.pkl", None, marks=pytest.mark.slow),
        pytest.param("rosinality_32.pt", None, marks=pytest.mark.slow),
        pytest.param("ada_pytorch_conditional_32.pkl", 1, marks=pytest.mark.slow),
    ],
)
def test_a_weight_file_is_searched_as_it_is(run, photo, tmp_path, capsys, name, label):
    chosen = ["--generator", GOLDEN / name, *([] if label is None else ["--class", label])]
    out = tmp_path / "out"
    options = ("--steps", "3", "--solutions", "1", "--quiet")
    one_phase = ("--set", "rls.style_steps=0", "--set", "rls.coarse=false", "--set", "rls.tries=1")
    command = ("upsample", photo, "--out", out, *options, *one_phase, *chosen)
    # The four files hold three mapping networks: what one test fits, another one finds.
    if run(*command) != 0:
        assert "python -m stylesr_jax.fit_prior" in capsys.readouterr().err
        assert run("fit_prior", *chosen, *SMALL) == 0
        assert run(*command) == 0
    report = json.loads((out / "photo" / "report.json").read_text())
    assert report["status"] == "ok" and report["method"] == "rls"
    picture = Image.open(out / "photo" / "solution_0.png")
    assert picture.size == (32, 32)
    assert run("upsample", "--from", out / "photo" / "solutions.npz", "--out", out / "again") == 0
    again = Image.open(out / "again" / "solution_0.png")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(again))


def test_a_conditional_model_without_a_class_is_refused(run, photo, tmp_path, capsys):
    file = GOLDEN / "ada_pytorch_conditional_32.pkl"
    assert run("upsample", photo, "--out", tmp_path / "out", "--generator", file) == 2
    assert "--class 0 to" in capsys.readouterr().err


def test_the_functional_api_takes_a_converted_generator(run):
    file = GOLDEN / "tf_legacy_generator_only_32.pkl"
    generator = load_generator(file)
    try:
        prior = load_prior(generator)
    except UserError:  # the test above, which searches the same file, was left out
        assert run("fit_prior", "--generator", file, *SMALL) == 0
        prior = load_prior(generator)
    image = np.zeros((8, 8, 3), np.float32)
    result = upsample(
        image,
        generator=generator,
        prior=prior,
        solutions=1,
        settings={"style_steps": 0, "coarse": False, "tries": 1, "steps": 3},
        key=jax.random.key(0),
    )
    assert result.images.shape == (1, 32, 32, 3) and np.isfinite(result.images).all()
