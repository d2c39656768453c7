"""The flow prior: masks, determinants, inverses, densities, and how a prior finds its network."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stylesr_jax.errors import UserError
from stylesr_jax.priors import autoregressive, bijectors, flow
from stylesr_jax.priors.whitening import draw_w, fit_whitening
from stylesr_jax.runtime import weights
from toy_mapping import toy_generator

KEY = jax.random.key(7)
SMALL = autoregressive.FlowConfig(dim=6, blocks=3, width=16, log_scale_bound=2.0)


RADIAL = dataclasses.replace(SMALL, radial=True)
RADIAL_PARAMS = {"log_gain": jnp.float32(0.2), "exponent": jnp.float32(0.7)}


def random_flow(config: autoregressive.FlowConfig, key=KEY, size: float = 0.3):
    """A flow whose every entry, masked ones included, is random."""
    params = autoregressive.init_flow(key, config)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    blocks = jax.tree.unflatten(structure, moved)
    if config.radial:
        return {**blocks, "radial": RADIAL_PARAMS}
    return blocks


def random_whitening(dim: int):
    """A well-conditioned whitening that is not symmetric."""
    rng = np.random.default_rng(3)
    matrix = np.eye(dim) + 0.3 * rng.normal(size=(dim, dim))
    parts = {
        "mean": rng.normal(size=dim),
        "matrix": matrix,
        "inverse": np.linalg.inv(matrix),
        "log_det": np.linalg.slogdet(matrix)[1],
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in parts.items()}


def random_prior(config: autoregressive.FlowConfig) -> flow.Prior:
    return flow.Prior(random_whitening(config.dim), random_flow(config), config)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_jacobian_of_each_block_is_triangular(backwards, columns):
    config = dataclasses.replace(SMALL, columns=columns)
    params = random_flow(config, size=1.0)

    @jax.jit
    def jacobian_of(block, x):
        bijector = bijectors.AutoregressiveBlock(block, config, backwards=backwards)
        return jax.jacobian(bijector.forward)(x)

    for block in params.values():
        jacobian = np.asarray(jacobian_of(block, jax.random.normal(KEY, (6,))))
        half, other = (np.triu, np.tril) if backwards else (np.tril, np.triu)
        np.testing.assert_array_equal(other(jacobian, -1 if backwards else 1), 0.0)
        assert np.all(np.diag(jacobian) > 0)
        # Every coordinate that may be used is used.
        assert np.count_nonzero(half(jacobian)) == 6 * 7 // 2


def test_column_groups_do_not_change_the_flow():
    outputs = []
    for columns in (1, 2, 3):
        config = dataclasses.replace(SMALL, columns=columns)
        wide = autoregressive.init_flow(KEY, dataclasses.replace(config, columns=1))
        rng = np.random.default_rng(0)
        for block, name in itertools.product(wide.values(), ("hidden", "log_scale", "shift")):
            full = rng.normal(size=(6, 16) if name == "hidden" else (16, 6)).astype(np.float32)
            groups = autoregressive.groups_of(config)[name]
            edges = np.cumsum([0] + [mask.shape[1] for _, mask in groups])
            block[name] = {"bias": block[name]["bias"]} | {
                f"columns{i}": jnp.asarray(full[:used, edges[i] : edges[i + 1]])
                for i, (used, _) in enumerate(groups)
            }
        outputs.append(bijectors.flow_bijector(wide, config).forward(jnp.linspace(-1.0, 1.0, 6)))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5)
    np.testing.assert_allclose(outputs[2], outputs[0], rtol=1e-5)


def test_a_fresh_flow_is_the_identity():
    u = jax.random.normal(KEY, (5, 6))
    z, log_det = bijectors.flow_bijector(
        autoregressive.init_flow(KEY, SMALL), SMALL
    ).forward_and_log_det(u)
    np.testing.assert_array_equal(z, u)
    np.testing.assert_array_equal(log_det, 0.0)


@pytest.mark.parametrize("config", [SMALL, RADIAL], ids=["blocks", "radial"])
def test_log_determinants_are_those_of_the_jacobians(config):
    prior = random_prior(config)
    u = jax.random.normal(KEY, (4, 6))
    for bijector in (
        bijectors.flow_bijector(prior.flow, config),
        bijectors.Whitening(prior.whitening),
        prior._whole(),
    ):
        both = jax.jit(
            lambda u, bijector=bijector: (
                jax.vmap(jax.jacobian(bijector.forward))(u),
                bijector.forward_log_det_jacobian(u),
            )
        )
        jacobians, log_det = both(u)
        _, expected = np.linalg.slogdet(np.asarray(jacobians, np.float64))
        np.testing.assert_allclose(log_det, expected, atol=2e-3)


@pytest.mark.parametrize("config", [SMALL, RADIAL], ids=["blocks", "radial"])
def test_forward_and_inverse_agree(config):
    prior = random_prior(config)
    x = 2.0 * jax.random.normal(KEY, (3, 4, 6))
    for bijector in (
        bijectors.flow_bijector(prior.flow, config),
        bijectors.Whitening(prior.whitening),
        prior._whole(),
    ):
        y, log_det = jax.jit(bijector.forward_and_log_det)(x)
        back, inverse_log_det = jax.jit(bijector.inverse_and_log_det)(y)
        np.testing.assert_allclose(back, x, atol=2e-3)
        np.testing.assert_allclose(inverse_log_det, -log_det, atol=2e-3)
        assert log_det.shape == (3, 4)


def density_on_a_grid(log_prob, reach: float, *, points: int = 800):
    """(axis (n,), density (n, n) with [i, j] at (axis[j], axis[i])) in two dimensions.

    The points are the middles of cells of which none reaches across zero, where the density of w
    jumps.
    """
    axis = ((np.arange(points) + 0.5) * (2 * reach / points) - reach).astype(np.float32)
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(axis), jnp.asarray(axis)), axis=-1)
    return axis, np.exp(np.asarray(jax.jit(log_prob)(grid), np.float64))


@pytest.mark.parametrize(
    ("whitened", "radial"),
    [
        (False, True),
        *(pytest.param(*v, marks=pytest.mark.slow) for v in ((True, True), (False, False))),
        (True, False),
    ],
)
def test_density_integrates_to_one_in_two_dimensions(whitened, radial):
    config = autoregressive.FlowConfig(dim=2, blocks=3, width=12, radial=radial)
    size = 0.3 if whitened else 0.1  # w is five times denser where it is negative
    prior = flow.Prior(random_whitening(2), random_flow(config, size=size), config)
    log_prob = prior.log_prob_whitened if whitened else prior.log_prob
    axis, density = density_on_a_grid(log_prob, 40 if whitened else 12)
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=0.01)


def test_the_two_densities_differ_by_the_log_determinant():
    prior = random_prior(SMALL)
    w = jax.random.normal(KEY, (50, 6))
    log_det = bijectors.Whitening(prior.whitening).forward_log_det_jacobian(w)

    def values_and_gradient(log_prob):
        return jax.jit(jax.vmap(jax.value_and_grad(log_prob)))(w)

    values, gradient = values_and_gradient(prior.log_prob)
    others, other = values_and_gradient(lambda w: prior.log_prob_whitened(prior.whiten(w)))
    np.testing.assert_allclose(values, others + log_det, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(gradient, other, rtol=1e-3, atol=1e-3)


def test_one_pass_gives_both_values_and_batches_do_not_matter():
    prior = random_prior(SMALL)
    w = jax.random.normal(KEY, (2, 3, 6))
    z, log_prob = jax.jit(lambda p, w: p.gaussianize_and_log_prob(w))(prior, w)
    assert z.shape == (2, 3, 6)
    assert log_prob.shape == (2, 3)
    ways = (prior.log_prob, jax.vmap(jax.vmap(prior.log_prob)), prior.distribution().log_prob)
    for other in ways:
        np.testing.assert_allclose(jax.jit(other)(w), log_prob, rtol=1e-5, atol=1e-4)


def test_whitening_coordinates_round_trip():
    prior = random_prior(SMALL)
    w = 3.0 * jax.random.normal(KEY, (20, 6))
    np.testing.assert_allclose(prior.unwhiten(prior.whiten(w)), w, atol=1e-4)


def test_samples_follow_the_density():
    prior = random_prior(SMALL)
    w = jax.jit(lambda p, k: p.sample(k, 4000))(prior, KEY)
    assert w.shape == (4000, 6)
    # Samples Gaussianize back to standard normal noise, coordinate by coordinate and jointly.
    z = np.asarray(jax.jit(prior.gaussianize_and_log_prob)(w)[0])
    assert np.abs(z.mean(axis=0)).max() < 0.07
    assert np.abs(np.cov(z.T) - np.eye(6)).max() < 0.1
    assert stats.kstest((z**2).sum(axis=1), stats.chi2(6).cdf).pvalue > 1e-3


def test_samples_fall_where_the_density_says():
    prior = random_prior(autoregressive.FlowConfig(dim=2, blocks=2, width=8))
    u = np.asarray(jax.jit(lambda p, k: p.whiten(p.sample(k, 20_000)))(prior, KEY))
    axis, density = density_on_a_grid(prior.log_prob_whitened, 40)
    cell = (axis[1] - axis[0]) ** 2
    x, y = np.meshgrid(axis, axis)
    for level in (-1.0, 0.0, 1.0):
        for inside, drawn in ((x < level, u[:, 0] < level), (x + y < level, u.sum(1) < level)):
            assert drawn.mean() == pytest.approx(density[inside].sum() * cell, abs=0.02)


def test_far_points_have_finite_density_and_gradient():
    points = jnp.stack([jnp.zeros(6), jnp.full(6, 5.0), jnp.full(6, -1e3)])
    for prior in (random_prior(SMALL), random_prior(RADIAL)):
        value, gradient = jax.jit(jax.vmap(jax.value_and_grad(prior.log_prob_whitened)))(points)
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()
    # The flow's own origin, where the radial scaling has no direction.
    radial = bijectors.RadialScaling(RADIAL_PARAMS)
    gradient = jax.jit(jax.grad(radial.forward_log_det_jacobian))(jnp.zeros(6))
    np.testing.assert_array_equal(gradient, 0.0)


def test_radial_scaling_spreads_squared_norms_as_a_chi_square():
    generator = toy_generator()
    whitening = fit_whitening(KEY, generator, floor=1e-2, draws=20_000)
    config = autoregressive.FlowConfig(dim=3, blocks=1, width=8, noise=0.5)
    plain = flow.Prior(whitening, autoregressive.init_flow(KEY, config), config)
    plain.flow["block0"]["shift"]["bias"] += 2.0  # squared norms far from those of noise
    radial = flow.with_radial(KEY, plain, generator)
    u = flow.noisy_draws(jax.random.key(1), generator, whitening, 0.5, 20_000)

    def log_norms_and_density(prior):
        z, log_prob = jax.jit(prior.gaussianize_and_log_prob_whitened)(u)
        return np.log(np.square(np.asarray(z)).sum(axis=1)), float(log_prob.mean())

    expected = np.log(stats.chi2(3).rvs(100_000, random_state=0))
    log_norms, density = log_norms_and_density(radial)
    others, other = log_norms_and_density(plain)
    assert log_norms.mean() == pytest.approx(expected.mean(), abs=0.05)
    assert log_norms.std() == pytest.approx(expected.std(), rel=0.05)
    assert others.mean() > expected.mean() + 0.5 and density > other
    assert not flow.without_radial(radial).config.radial
    jax.tree.map(np.testing.assert_array_equal, flow.without_radial(radial).flow, plain.flow)


def test_fitted_whitening_whitens_and_floors():
    generator = toy_generator()
    # A direction without variance, which only the floor keeps finite.
    mix = generator.params["mapping"]["mix"].at[:, 2].set(generator.params["mapping"]["mix"][:, 1])
    generator = dataclasses.replace(generator, params={"mapping": {"mix": mix}})
    whitening = fit_whitening(KEY, generator, floor=1e-2, draws=20_000)
    w = draw_w(jax.random.key(1), generator, 20_000)
    u = np.asarray(bijectors.Whitening(whitening).forward(w))
    covariance = np.cov(u.T)
    assert np.abs(u.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.05)
    assert np.diag(covariance).max() == pytest.approx(1.0, abs=0.1)
    product = np.asarray(whitening["matrix"] @ whitening["inverse"])
    np.testing.assert_allclose(product, np.eye(3), atol=1e-4)
    log_det = np.linalg.slogdet(np.asarray(whitening["matrix"], np.float64))[1]
    assert float(whitening["log_det"]) == pytest.approx(log_det, abs=1e-4)


def test_fit_draws_have_the_noise_and_its_tail():
    generator = toy_generator()
    config = autoregressive.FlowConfig(dim=3, noise=2.0, tail=0.25, reach=8.0)
    # A whitening that shrinks w away leaves the noise alone.
    whitening = {
        "mean": jnp.zeros(3), "matrix": jnp.zeros((3, 3)), "log_det": jnp.zeros(()),
    }  # fmt: skip
    draws = np.asarray(flow.fit_draws(KEY, generator, whitening, config, 40_000))
    plain = np.asarray(flow.noisy_draws(KEY, generator, whitening, config.noise, 40_000))
    assert plain.std() == pytest.approx(2.0, rel=0.02)
    # E[reach^2u] = (reach^2 - 1) / (2 ln reach)
    wide = (8.0**2 - 1) / (2 * np.log(8.0))
    assert draws.var() == pytest.approx(4.0 * (0.75 + 0.25 * wide), rel=0.05)
    assert np.median(np.abs(draws)) < 1.3 * np.median(np.abs(plain))


def save_toy_prior(path, generator):
    config = autoregressive.FlowConfig(dim=generator.w_dim, blocks=2, width=8)
    prior = flow.stored_precision(random_prior(config))
    flow.save_prior(path, prior, generator, header={"noise": config.noise})
    return prior


def test_a_prior_survives_its_file(tmp_path):
    generator = toy_generator()
    prior = save_toy_prior(tmp_path / "p.safetensors", generator)
    loaded = flow.load_prior(generator, tmp_path / "p.safetensors")
    assert loaded.config == prior.config
    jax.tree.map(np.testing.assert_array_equal, loaded, prior)
    header = weights.read_header(tmp_path / "p.safetensors")
    assert header["kind"] == "prior"
    assert header["mapping_sha256"] == flow.mapping_sha256(generator)


def test_a_prior_is_found_by_its_mapping_network_not_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    generator = toy_generator()
    prior = save_toy_prior(flow.priors_folder() / "any-name.safetensors", generator)
    # Another generator whose mapping network agrees to float precision only.
    mix = generator.params["mapping"]["mix"] * (1 + 1e-6)
    twin = dataclasses.replace(generator, params={"mapping": {"mix": mix}}, name="twin")
    assert flow.mapping_sha256(twin) != flow.mapping_sha256(generator)
    jax.tree.map(np.testing.assert_array_equal, flow.load_prior(twin), prior)
    other = dataclasses.replace(generator, params={"mapping": {"mix": mix * 1.01}})
    with pytest.raises(UserError, match="fit_prior --generator"):
        flow.load_prior(other)
    with pytest.raises(UserError, match="another mapping network"):
        flow.load_prior(other, flow.priors_folder() / "any-name.safetensors")
    with pytest.raises(UserError, match="no flow prior"):
        flow.load_prior(toy_generator(dim=4))


def test_files_that_are_no_priors_are_refused(tmp_path):
    generator = toy_generator()
    path = tmp_path / "x.safetensors"
    weights.save(path, {"a": np.zeros(1)}, {"kind": "generator"})
    with pytest.raises(UserError, match="not a prior"):
        flow.load_prior(generator, path)
    weights.save(path, {"a": np.zeros(1)}, {"kind": "prior", "config": {"depth": 3}})
    with pytest.raises(UserError, match="does not fit this version"):
        flow.load_prior(generator, path)


@pytest.fixture(scope="module")
def embedded(mobile):
    return SimpleNamespace(generator=mobile, prior=flow.load_prior(mobile))


@pytest.mark.slow
def test_embedded_prior_describes_fresh_noisy_draws(embedded):
    figures = jax.tree.map(float, flow.prior_figures(KEY, embedded.prior, embedded.generator))
    assert figures["norm2_mean"] == pytest.approx(512, abs=6)
    assert figures["norm2_std"] <= 40
    # A full-covariance Gaussian on the same coordinates: unit variance, plus the noise.
    u = flow.noisy_draws(
        jax.random.key(1), embedded.generator, embedded.prior.whitening,
        embedded.prior.config.noise, 5000,
    )  # fmt: skip
    _, log_det = np.linalg.slogdet(np.cov(np.asarray(u, np.float64).T))
    gaussian = 0.5 * (512 * (1 + np.log(2 * np.pi)) + log_det)
    assert figures["nll"] < gaussian - 20
    assert abs(figures["log_p_jittered"] - figures["log_p_data"]) < 100


def test_embedded_prior_has_finite_gradients_where_searches_go(embedded):
    prior = embedded.prior
    direction = jax.random.normal(KEY, (512,))
    points = {
        "mean w": prior.whiten(embedded.generator.statistics["w_mean"]),
        "origin": jnp.zeros(512),
        "5 standard deviations out": 5.0 * direction,
    }
    density = jax.jit(jax.value_and_grad(lambda u, prior: prior.log_prob_whitened(u)))
    gradient_in_w = jax.jit(jax.grad(lambda w, prior: prior.log_prob(w)))
    for name, u in points.items():
        value, gradient = density(u, prior)
        assert np.isfinite(value), name
        assert np.isfinite(gradient).all(), name
        assert np.isfinite(gradient_in_w(prior.unwhiten(u), prior)).all(), name


def test_embedded_prior_samples_look_like_mapped_latents(embedded):
    prior = embedded.prior
    sampled = prior.whiten(jax.jit(lambda p, k: p.sample(k, 24))(prior, KEY))
    noise = prior.config.noise
    drawn = flow.noisy_draws(KEY, embedded.generator, prior.whitening, noise, 500)
    # Medians: a share of the samples comes from the wider noise of the fit's tail.
    log_prob = jax.jit(lambda prior, u: prior.log_prob_whitened(u))
    typical = float(jnp.median(log_prob(prior, drawn)))
    assert float(jnp.median(log_prob(prior, sampled))) == pytest.approx(typical, rel=0.1)
    norms = [float(jnp.median(jnp.sum(jnp.square(u), axis=-1))) for u in (sampled, drawn)]
    assert norms[0] == pytest.approx(norms[1], rel=0.1)
