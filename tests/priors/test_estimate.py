"""The linear estimate of a style from a low-resolution image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.cli import fit
from stylesr_jax.degradations import resize
from stylesr_jax.errors import UserError
from stylesr_jax.fit_estimate import main as fit_estimate_command
from stylesr_jax.generators.base import PULSE_SLOPE
from stylesr_jax.generators.layers import leaky_relu
from stylesr_jax.loading import generator_from_file
from stylesr_jax.methods import method_named
from stylesr_jax.priors import estimate
from stylesr_jax.priors.estimate import estimated_style, fit_estimate, with_known_estimate
from stylesr_jax.priors.whitening import draw_w
from stylesr_jax.runtime import weights
from stylesr_jax.solver.solve import upsample

KEY = jax.random.key(5)


def quiet(text):
    pass


@pytest.fixture(scope="module")
def fitted(tiny, tmp_path_factory):
    keep = tmp_path_factory.mktemp("estimate") / "sums"
    return fit_estimate(KEY, tiny, draws=640, keep=keep, say=quiet)


@pytest.fixture(scope="module")
def informed(tiny, fitted):
    return tiny.replace(statistics={**tiny.statistics, "estimate": fitted[0]})


def drawn(generator, count):
    """Fresh w (count, w_dim) and their images."""
    w = draw_w(jax.random.key(77), generator, count)
    ws = jnp.broadcast_to(w[:, None], (count, generator.num_ws, generator.w_dim))
    return w, generator.synthesise(ws)


def test_the_estimate_is_nearer_than_the_mean(tiny, fitted):
    params, figures = fitted
    assert figures["error"] < 0.9 * figures["mean_error"]
    w, images = drawn(tiny, 24)
    found = jax.vmap(lambda image: estimated_style(params, image, jnp.ones((32, 32, 1))))(images)
    errors = jnp.mean(jnp.square(leaky_relu(found, PULSE_SLOPE) - leaky_relu(w, PULSE_SLOPE)))
    assert errors < 0.9 * figures["mean_error"]


def test_normal_equations_have_the_solution_of_least_squares(tiny, fitted, monkeypatch, tmp_path):
    """Without a ridge to speak of, a linear world is found exactly."""
    truth = np.asarray(jax.random.normal(KEY, (4, tiny.w_dim)))
    basis = np.asarray(jax.random.normal(jax.random.key(6), (4, 32 * 32 * 3)))

    def draws(key, generator):
        z = jax.random.normal(key, (estimate.BATCH, 4))
        return z @ basis + 0.5, z @ truth - 1.0

    monkeypatch.setattr(estimate, "_draws", draws)
    monkeypatch.setattr(estimate, "RIDGE", 1e-6)
    params, figures = fit_estimate(KEY, tiny, draws=320, keep=tmp_path / "sums", say=quiet)
    assert figures["error"] < 1e-6 * figures["mean_error"]
    image = (2.0 * basis[1] + 0.5).reshape(32, 32, 3)
    found = estimated_style(params, image, jnp.ones((32, 32, 1)))
    np.testing.assert_allclose(
        leaky_relu(found, PULSE_SLOPE), 2.0 * truth[1] - 1.0, rtol=1e-3, atol=1e-3
    )


def test_what_was_not_observed_says_nothing(fitted):
    params, _ = fitted
    nothing = estimated_style(params, jnp.full((16, 16, 3), 0.7), jnp.zeros((16, 16, 1)))
    np.testing.assert_allclose(leaky_relu(nothing, PULSE_SLOPE), params["mean"], rtol=1e-5)
    mask = jnp.ones((32, 32, 1)).at[:, 16:].set(0.0)
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (32, 32, 3)), jnp.float32)
    other = image.at[:, 16:].set(0.0)
    same = (estimated_style(params, image, mask), estimated_style(params, other, mask))
    np.testing.assert_array_equal(*same)
    assert jnp.abs(estimated_style(params, image, jnp.ones_like(mask)) - same[0]).max() > 1e-4


@pytest.mark.parametrize("shape", [(8, 8, 3), (32, 32, 1), (64, 64, 3)])
def test_images_of_all_sizes_are_read(fitted, shape):
    params, _ = fitted
    found = estimated_style(params, jnp.zeros(shape), jnp.ones((*shape[:2], 1)))
    assert found.shape == params["mean"].shape and jnp.isfinite(found).all()


def test_a_killed_fit_goes_on(tiny, fitted, tmp_path, monkeypatch):
    keep, said = tmp_path / "sums", []
    monkeypatch.setattr(estimate, "KEEP_EVERY", 64)

    def killed(text):
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_estimate(KEY, tiny, draws=640, keep=keep, say=killed)
    assert int(weights.load(keep)[0]["draws"]) == 128
    params, _ = fit_estimate(KEY, tiny, draws=640, keep=keep, say=said.append)
    assert said[2] == "draw 192/640"
    np.testing.assert_allclose(params["matrix"], fitted[0]["matrix"], rtol=1e-5, atol=1e-8)
    with pytest.raises(UserError, match="another fit; delete it"):
        fit_estimate(jax.random.key(9), tiny, draws=640, keep=keep, say=quiet)


def test_the_command_writes_what_loading_finds(tiny, tiny_files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "cache"))
    command = ["--generator", str(tiny_files["generator"]), "--draws", "64"]
    assert fit_estimate_command(command) == 0
    out = capsys.readouterr().out.splitlines()[-1]
    assert not list(tmp_path.glob("**/*.sums"))
    header = weights.read_header(out)
    assert header["fit"] == {"draws": 64, "ridge": estimate.RIDGE} and header["figures"]
    loaded = generator_from_file(tiny_files["generator"])
    assert loaded.statistics["estimate"]["matrix"].shape == (32 * 32 * 3, tiny.w_dim)
    mapping = jax.tree.map(jnp.negative, tiny.params["mapping"])
    other = tiny.replace(params={**tiny.params, "mapping": mapping})
    assert "estimate" not in with_known_estimate(other).statistics


def test_conditional_generators_are_refused(tiny_files, monkeypatch, capsys):
    class Conditional:
        name, label_dim = "cats", 3

    monkeypatch.setattr(fit, "generator_from_file", lambda path: Conditional)
    assert fit_estimate_command(["--generator", str(tiny_files["generator"])]) == 2
    assert "cats is conditional" in capsys.readouterr().err


def first_style(generator, prior, image, **changes):
    """Where RLS's first solution begins, as styles in W."""
    method = method_named("rls").resolve("balanced", {"style_steps": 0, "steps": 0, **changes})
    method = method.replace(activation_steps=0, coarse=False)
    result = upsample(image, generator=generator, prior=prior, method=method, solutions=1, key=KEY)
    return result.solutions[0].latents.ws[0]


def test_searches_begin_at_the_estimate(tiny, informed, tiny_prior):
    _, images = drawn(tiny, 1)
    low = np.clip(np.asarray(resize(images[0], (8, 8))), -1.0, 1.0)
    mean = first_style(informed, tiny_prior, low, estimate=0.0)
    np.testing.assert_allclose(mean, tiny.statistics["w_mean"], atol=1e-5)
    suggested = estimated_style(informed.statistics["estimate"], low, jnp.ones((8, 8, 1)))
    whole = first_style(informed, tiny_prior, low, estimate=1.0)
    np.testing.assert_allclose(whole, suggested, rtol=1e-3, atol=1e-4)
    half = first_style(informed, tiny_prior, low)
    middle = (tiny_prior.whiten(mean) + tiny_prior.whiten(suggested)) / 2.0
    np.testing.assert_allclose(tiny_prior.whiten(half), middle, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(first_style(tiny, tiny_prior, low), mean, atol=1e-5)
