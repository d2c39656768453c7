"""Terms of the objective, and ILO's projection, on numbers small enough to do by hand."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.methods import terms as objective
from stylesr_jax.methods.base import stages_of
from stylesr_jax.methods.ilo import ILO, LayerStage
from stylesr_jax.methods.view import Context, Latents, Start, View

KINDS = ("latent", "noise", "activation")
SLOPE = 5.0  # of the leaky ReLU that whitening begins with


@dataclasses.dataclass
class _Known:
    """A prior whose noise and log-density are given."""

    noise: np.ndarray
    log_prob: np.ndarray

    def gaussianize_and_log_prob(self, ws):
        assert len(ws) == len(self.noise)
        return jnp.asarray(self.noise, jnp.float32), jnp.asarray(self.log_prob, jnp.float32)


def _view(*, image=None, target=None, mask=None, ws=None, prior=None, mean=None, variables=None):
    """A view of what a term looks at; the degradation leaves images as they are."""
    image = np.zeros((2, 2, 3)) if image is None else np.asarray(image)
    target = np.zeros_like(image) if target is None else target
    mask = np.ones((*image.shape[:2], 1)) if mask is None else mask
    image, target, mask = (jnp.asarray(x, jnp.float32) for x in (image, target, mask))
    statistics = {} if mean is None else {"w_mean": jnp.asarray(mean, jnp.float32)}
    generator = SimpleNamespace(resolution=image.shape[0], statistics=statistics)
    context = Context(generator, prior, lambda x: x, None)  # type: ignore[arg-type]
    latents = Latents(jnp.asarray([[0.0]] if ws is None else ws, jnp.float32))
    return View(context, Start(target, mask, jnp.asarray(0)), latents, image, variables)


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- Likelihoods ----------------------------------------------------------------------------


def test_l1_is_a_sum_over_pixels_and_channels():
    image = np.full((2, 2, 3), 0.5)
    assert objective.l1_sum(_view(image=image, target=-image)) == 12.0


def test_l1_counts_masked_pixels_as_zero():
    image = np.zeros((2, 2, 3))
    image[0, 0], image[0, 1], image[1, 0] = 0.25, [1.0, -1.0, 0.5], 7.0
    mask = np.asarray([[[1.0], [1.0]], [[0.0], [1.0]]])
    assert objective.l1_sum(_view(image=image, mask=mask)) == 3.25
    whole = np.abs(image).sum()
    assert objective.l1_sum(_view(image=image)) == whole == 24.25


@pytest.mark.parametrize(("eps", "expected"), [(0.0, 0.0625), (0.06, 0.0625), (0.07, 0.07)])
def test_pulse_error_is_of_images_in_0_1_with_a_floor(eps, expected):
    # 0.5 in [-1, 1] is 0.25 in [0, 1]: its square is 0.0625.
    view = _view(image=np.full((2, 2, 3), 0.5))
    np.testing.assert_allclose(objective.floored_mse(view, eps), expected, rtol=1e-6)


def test_pulse_error_is_a_mean_over_what_was_observed():
    image, target = _random(4, 4, 3), _random(4, 4, 3, seed=1)
    mask = np.zeros((4, 4, 1))
    mask[:3, 1:] = 1.0
    view = _view(image=image, target=target, mask=mask)
    difference = ((image + 1) / 2 - (target + 1) / 2)[:3, 1:]
    np.testing.assert_allclose(objective.floored_mse(view, 0.0), np.mean(difference**2), rtol=1e-5)


def test_pulse_error_below_its_floor_pulls_no_more():
    def loss(scale):
        view = _view()
        view.image = scale * jnp.ones((2, 2, 3))
        return objective.floored_mse(view, 0.1)

    assert jax.grad(loss)(0.5) == 0.0  # a mean square of 0.0625
    np.testing.assert_allclose(jax.grad(loss)(0.8), 0.4, rtol=1e-5)


# --- Prior ----------------------------------------------------------------------------------


def test_prior_is_minus_the_mean_log_density():
    known = _Known(np.zeros((3, 4)), np.asarray([-2.0, -3.0, 11.0]))
    assert objective.negative_log_prior(_view(ws=np.zeros((3, 4)), prior=known)) == -2.0


def test_gaussian_norm_is_the_distance_to_the_shell():
    noise = np.asarray([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    view = _view(ws=np.ones((3, 4)), prior=_Known(noise, np.zeros(3)))
    # Norms of 5, 2 and 0, and sqrt(d) of 2.
    np.testing.assert_allclose(objective.gaussian_norm(view), (9 + 0 + 4) / 3, rtol=1e-5)


def test_gaussian_norm_is_its_formula():
    noise = 3.0 * _random(5, 7)
    view = _view(ws=np.ones((5, 7)), prior=_Known(noise, np.zeros(5)))
    expected = np.mean((np.linalg.norm(noise, axis=1) - np.sqrt(7)) ** 2)
    np.testing.assert_allclose(objective.gaussian_norm(view), expected, rtol=1e-5)


def _bent(prior):
    """The prior with a flow that is not the identity."""
    leaves, structure = jax.tree.flatten(prior.flow)
    moved = [
        leaf + 0.2 * jax.random.normal(jax.random.key(i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return prior.replace(flow=jax.tree.unflatten(structure, moved))


@jax.jit
def _prior_terms(prior, ws):
    view = _view(ws=ws, prior=prior)
    return objective.negative_log_prior(view), objective.negative_log_prior_whitened(view)


def _styles(generator, count):
    z = jax.random.normal(jax.random.key(5), (count, generator.z_dim))
    return np.asarray(jax.jit(lambda generator, z: generator.map_latents(z))(generator, z))


def test_whitened_prior_leaves_out_the_whitenings_determinant(tiny, tiny_prior):
    ws, bent = _styles(tiny, 4), _bent(tiny_prior)
    jacobians = np.asarray(jax.jit(jax.vmap(jax.jacobian(bent.whiten)))(ws), np.float64)
    log_det = np.linalg.slogdet(jacobians)[1]  # log|det du/dw|, log p(w) = log p(u) + it
    in_w, in_u = _prior_terms(bent, ws)
    assert np.ptp(log_det) > 1.0 and abs(log_det.mean()) > 1.0
    np.testing.assert_allclose(in_u, in_w + log_det.mean(), atol=1e-2)


def test_whitened_prior_of_an_identity_flow_is_a_normal_density(tiny, tiny_prior):
    ws = _styles(tiny, 4)
    matrix, mean = (np.asarray(tiny_prior.whitening[n], np.float64) for n in ("matrix", "mean"))
    u = (np.where(ws < 0.0, SLOPE * ws, ws) - mean) @ matrix
    expected = 0.5 * np.mean(np.sum(u**2, axis=1)) + 0.5 * ws.shape[1] * np.log(2 * np.pi)
    np.testing.assert_allclose(_prior_terms(tiny_prior, ws)[1], expected, rtol=1e-4)


def test_whitened_prior_does_not_jump_where_a_style_changes_sign(tiny, tiny_prior):
    bent, ws = _bent(tiny_prior), _styles(tiny, 4)
    above, below = ws.copy(), ws.copy()
    above[1, 3], below[1, 3] = 5e-7, -5e-7
    (w_above, u_above), (w_below, u_below) = (_prior_terms(bent, x) for x in (above, below))
    # One of four styles: the density of w there is five times as high on the negative side.
    np.testing.assert_allclose(w_above - w_below, np.log(SLOPE) / 4, atol=1e-2)
    np.testing.assert_allclose(u_above, u_below, atol=1e-2)


# --- Styles ---------------------------------------------------------------------------------


def test_cross_sums_squared_distances_of_pairs():
    ws = np.asarray([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    # 25 + 1 + (9 + 9), each pair once.
    np.testing.assert_allclose(objective.cross(_view(ws=ws)), 44.0, rtol=1e-6)
    assert objective.cross(_view(ws=np.ones((3, 2)))) == 0.0
    far = _random(5, 6) + 10.0
    pairs = sum(np.sum((far[i] - far[j]) ** 2) for i in range(5) for j in range(i))
    np.testing.assert_allclose(objective.cross(_view(ws=far)), pairs, rtol=1e-4)


def test_mean_style_is_the_scaled_mean_square_offset():
    ws, mean = np.asarray([[3.0, 1.0], [1.0, 5.0]]), np.asarray([1.0, 1.0])
    # Offsets of 2, 0, 0 and 4, over a deviation of 2: 1, 0, 0 and 4 squared.
    value = objective.mean_style(_view(ws=ws, mean=mean), 2.0)
    np.testing.assert_allclose(value, (1 + 0 + 0 + 4) / 4, rtol=1e-6)


def test_collinear_is_the_mean_over_all_ordered_pairs():
    ws = np.asarray([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    # 1 - cos is 1, 2 and 1 for the three pairs, 0 for a style with itself.
    np.testing.assert_allclose(objective.collinear(_view(ws=ws)), 2 * (1 + 2 + 1) / 9, rtol=1e-5)
    parallel = np.asarray([[1.0, 2.0], [3.0, 6.0]])
    np.testing.assert_allclose(objective.collinear(_view(ws=parallel)), 0.0, atol=1e-6)


def test_latent_norm_is_squared_and_of_z():
    view = _view(ws=[[9.0, 9.0]], variables={"z": jnp.asarray([3.0, -4.0])})
    assert objective.latent_norm(view) == 25.0


# --- ILO's projection -----------------------------------------------------------------------


def _l1(x, y):
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return sum(np.abs(np.asarray(a, np.float64) - np.asarray(b)).sum() for a, b in pairs)


def _layer_variables(seed, activation=True):
    found = {
        "latent": jnp.asarray(_random(4, 6, seed=seed)),
        "noise": tuple(jnp.asarray(_random(n, n, seed=seed + n)) for n in (4, 8)),
    }
    if activation:
        parts = {"x": _random(8, 8, 5, seed=seed + 20), "image": _random(8, 8, 3, seed=seed + 21)}
        found["activation"] = jax.tree.map(jnp.asarray, parts)
    return found


@jax.jit
def _project(stage, variables, anchor):
    return stage.project(variables, anchor)


def _layer(**radii):
    return LayerStage(**{f"radius_{kind}": radius for kind, radius in radii.items()})


def test_layer_ends_in_small_balls_around_its_start():
    anchor, moved = _layer_variables(0), _layer_variables(100)
    radii = {"latent": 0.5, "noise": 1.5, "activation": 2.5}
    found = _project(_layer(**radii), moved, anchor)
    assert found.keys() == moved.keys() and len(found["noise"]) == 2
    # What was outside ends on the border, each noise map in a ball of its own.
    parts = [(found[kind], anchor[kind], radii[kind]) for kind in ("latent", "activation")]
    maps = zip(found["noise"], anchor["noise"], strict=True)
    for end, start, radius in [*parts, *((end, start, radii["noise"]) for end, start in maps)]:
        np.testing.assert_allclose(_l1(end, start), radius, rtol=1e-3)


def test_radius_zero_means_spheres_only():
    anchor, moved = _layer_variables(0), _layer_variables(100)
    found = _project(_layer(latent=0.0, noise=0.0, activation=0.0), moved, anchor)
    assert _l1(found["activation"], moved["activation"]) < 1e-4

    def on_sphere(free, start, axis):
        norms = (np.linalg.norm(x, axis=axis, keepdims=True) for x in (start, free))
        return free * np.divide(*norms)

    latent = on_sphere(moved["latent"], anchor["latent"], axis=1)  # a sphere for each style
    np.testing.assert_allclose(found["latent"], latent, atol=1e-5)
    for end, free, start in zip(found["noise"], moved["noise"], anchor["noise"], strict=True):
        np.testing.assert_allclose(end, on_sphere(free, start, axis=None), atol=1e-5)


def test_large_radii_leave_the_spheres_alone():
    anchor, moved = _layer_variables(0), _layer_variables(100)
    free, held = (
        _project(_layer(latent=r, noise=r, activation=r), moved, anchor) for r in (0.0, 1000.0)
    )
    assert _l1(held, free) == 0.0


def test_first_stage_has_no_activation():
    anchor, moved = _layer_variables(0, activation=False), _layer_variables(100, activation=False)
    found = _project(_layer(latent=0.5, noise=0.0), moved, anchor)
    assert found.keys() == {"latent", "noise"}
    np.testing.assert_allclose(_l1(found["latent"], anchor["latent"]), 0.5, rtol=1e-3)


def test_stages_of_ilo_project_with_their_own_radii():
    changes = {
        f"radius_{kind}_2": value for kind, value in zip(KINDS, (1.0, 2.0, 3.0), strict=True)
    }
    stages = stages_of(ILO.resolve("paper", changes))
    radii = [tuple(getattr(stage, f"radius_{kind}") for kind in KINDS) for stage in stages]
    assert radii == [(0.0,) * 3, (1000.0,) * 3, (1.0, 2.0, 3.0), (6000.0,) * 3]
