"""The objective's terms against their formulas in NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.degradations import Bicubic
from stylesr_jax.methods import terms as objective
from stylesr_jax.methods.view import Context, Latents, Start, View
from stylesr_jax.metrics.lpips import load_features


class _Identity:
    def __call__(self, image):
        return image


def _view(image=None, target=None, mask=None, ws=None, variables=None):
    image = jnp.zeros((4, 4, 3)) if image is None else jnp.asarray(image)
    target = jnp.zeros_like(image) if target is None else jnp.asarray(target)
    mask = jnp.ones((*target.shape[:2], 1)) if mask is None else jnp.asarray(mask)
    generator = SimpleNamespace(resolution=image.shape[0])
    context = Context(generator, None, _Identity(), None)  # type: ignore[arg-type]
    latents = Latents(jnp.ones((2, 3)) if ws is None else jnp.asarray(ws))
    return View(context, Start(target, mask, jnp.asarray(0)), latents, image, variables)


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_likelihoods_look_at_observed_pixels_only():
    image, target = _random(4, 4, 3), _random(4, 4, 3, seed=1)
    mask = np.zeros((4, 4, 1), np.float32)
    mask[1:3] = 1.0
    view = _view(image, target, mask)
    error = (image - target)[1:3]
    np.testing.assert_allclose(objective.l1_sum(view), np.abs(error).sum(), rtol=1e-5)
    np.testing.assert_allclose(objective.l1_mean(view), np.abs(error).mean(), rtol=1e-5)
    np.testing.assert_allclose(objective.l2_sum(view), (error**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(objective.mse(view), (error**2).mean(), rtol=1e-5)
    bits = ((error * 127.5) ** 2).mean()
    np.testing.assert_allclose(objective.mse_255(view), bits, rtol=1e-5)


@pytest.mark.parametrize(("eps", "floored"), [(0.0, False), (10.0, True)])
def test_pulse_floors_the_error_of_images_in_0_1(eps, floored):
    image = _random(4, 4, 3)
    view = _view(image)
    expected = 10.0 if floored else (((image + 1) / 2 - 0.5) ** 2).mean()
    np.testing.assert_allclose(objective.floored_mse(view, eps), expected, rtol=1e-5)


def test_geocross_is_its_formula():
    rows = _random(5, 8)
    total = 0.0
    for a in rows:
        for b in rows:
            angle = 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
            total += angle**2
    np.testing.assert_allclose(objective.geodesic_cross(rows), total / 25 * 8 / 8, rtol=1e-4)


def test_geocross_of_equal_styles_is_zero_with_a_finite_gradient():
    rows = jnp.broadcast_to(jnp.asarray(_random(8)), (5, 8))
    value, gradient = jax.value_and_grad(objective.geodesic_cross)(rows)
    assert value == 0.0
    assert np.isfinite(gradient).all()


def test_cross_is_the_sum_over_pairs():
    ws = _random(4, 6)
    pairs = sum(((ws[i] - ws[j]) ** 2).sum() for i in range(4) for j in range(i))
    np.testing.assert_allclose(objective.cross(_view(ws=ws)), pairs, rtol=1e-4)


def test_collinear_is_its_formula():
    ws = _random(4, 6)
    unit = ws / np.linalg.norm(ws, axis=1, keepdims=True)
    expected = np.abs(1 - unit @ unit.T).mean()
    np.testing.assert_allclose(objective.collinear(_view(ws=ws)), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 24])
def test_perceptual_term_ignores_what_was_not_observed(size):
    image, target = np.tanh(_random(size, size, 3)), np.tanh(_random(size, size, 3, seed=1))
    mask = np.ones((size, size, 1), np.float32)
    mask[:2] = 0.0
    params = load_features("vgg16")

    @jax.jit
    def term(image, params):
        view = _view(image, target, mask)
        view.context = view.context._replace(perceptual=params)
        return objective.perceptual(view)

    value = term(image, params)
    assert value > 0.05
    changed = image.copy()
    changed[:2] = 1.0
    np.testing.assert_allclose(term(changed, params), value, rtol=1e-4)
    np.testing.assert_allclose(term(target, params), 0.0, atol=1e-5)


def test_low_resolution_image_is_computed_once():
    calls = []

    class Counting(Bicubic):
        def __call__(self, x):
            calls.append(1)
            return super().__call__(x)

    view = _view(_random(8, 8, 3), _random(4, 4, 3))
    view.context = view.context._replace(degradation=Counting(size=4))
    objective.l1_sum(view) + objective.mse(view)
    assert len(calls) == 1
