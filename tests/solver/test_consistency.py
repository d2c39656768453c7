"""Solutions are consistent by construction: the correction, for every linear degradation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.degradations import Bicubic, Compose, Mask, parse
from stylesr_jax.solver.consistency import coloured, corrected, correction, powers_of
from stylesr_jax.solver.covariance import Covariance

SIZE = 64
BOX = np.zeros((16, 16), np.float32)
BOX[4:12, 2:14] = 1.0
LINEAR = {
    "bicubic": parse("bicubic(16)"),
    "bicubic, not square": parse("bicubic(12x16)"),
    "bicubic, no reduction": parse("bicubic(64)"),
    "area": parse("area(16)"),
    "pulse": parse("pulse(x4)"),
    "blur": parse("blur(2)|bicubic(16)"),
    "motion": parse("motion(9,30)|bicubic(16)"),
    "grey": parse("bicubic(16)|grey()"),
    "mask": Compose((Bicubic(size=16), Mask(jnp.asarray(BOX)))),
    "chain": Compose((*parse("blur(1)|motion(5,60)|area(16)").stages, Mask(jnp.asarray(BOX)))),
}


def _images(seed=0):
    """A smooth image and another one, (SIZE, SIZE, 3), within [-0.8, 0.8]."""
    keys = jax.random.split(jax.random.key(seed), 2)
    small = (jax.random.uniform(key, (12, 12, 3), minval=-0.5, maxval=0.5) for key in keys)
    return tuple(jax.image.resize(image, (SIZE, SIZE, 3), "cubic") for image in small)


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_corrected_degrades_to_the_target(name):
    degradation = LINEAR[name]
    image, other = _images()
    target = degradation(other)
    z = jax.jit(correction)(image, target, degradation)
    once = corrected(image, z)
    error = degradation(once) - target
    assert jnp.abs(degradation(image) - target).max() > 0.1
    assert jnp.abs(error).max() < 3.9e-3  # half a level of 255
    # Again, there is next to nothing to correct.
    twice = corrected(once, correction(once, target, degradation))
    assert jnp.abs(twice - once).max() < 7.8e-3  # a level


@pytest.mark.parametrize("name", LINEAR)
def test_the_adjoint_of_every_linear_degradation(name):
    degradation = LINEAR[name]
    x, _ = _images()
    y = jax.random.normal(jax.random.key(3), degradation(x).shape)
    (back,) = jax.linear_transpose(degradation, x)(y)
    np.testing.assert_allclose(jnp.vdot(degradation(x), y), jnp.vdot(x, back), rtol=1e-3)


def test_it_is_as_the_formula_says():
    degradation = parse("bicubic(6)")
    image, other = (jax.image.resize(x, (24, 24, 3), "cubic") for x in _images(1))
    target, variance = degradation(other), 0.002
    # B and A B as matrices, one channel.
    basis = jnp.eye(144).reshape(144, 12, 12, 1)
    smooth = jax.vmap(Bicubic(size=24))(basis).reshape(144, -1).T
    seen = jax.vmap(lambda b: degradation(Bicubic(size=24)(b)))(basis).reshape(144, -1).T
    shades = jax.vmap(coloured)(basis).reshape(144, -1).T
    residual = (target - degradation(image)).reshape(36, 3)
    kernel = seen @ shades @ seen.T

    def explained(c):
        return (kernel @ c.reshape(36, 3)).reshape(c.shape)

    noise = Covariance(variance=variance)
    scale = powers_of(residual.reshape(6, 6, 3), explained, noise).scale
    moments = (jnp.mean(residual**2) - variance) / (jnp.trace(kernel) / 36)
    assert scale == pytest.approx(float(moments), rel=0.4)
    kernel = scale * kernel
    gain = scale * smooth @ shades @ seen.T @ np.linalg.inv(kernel + variance * np.eye(36))
    expected = image + (gain @ residual).reshape(24, 24, 3)
    z = correction(image, target, degradation, Covariance(variance=variance))
    np.testing.assert_allclose(corrected(image, z), jnp.clip(expected, -1, 1), atol=1e-4)


@pytest.mark.parametrize("size", ["32", "64", "128", "96x128"])
def test_it_converges_for_large_inputs_too(size):
    keys = jax.random.split(jax.random.key(0), 2)
    shape = (256, 256, 3)
    details = jax.random.uniform(keys[0], (128, 128, 3), minval=-0.4, maxval=0.4)
    image = jnp.clip(jax.image.resize(details, shape, "cubic"), -1, 1)
    shapes = jax.random.uniform(keys[1], (9, 9, 3), minval=-0.9, maxval=0.9)
    other = jnp.clip(jax.image.resize(shapes, shape, "cubic") + 0.3 * image, -1, 1)
    degradation = parse(f"bicubic({size})")
    target = degradation(other)
    z = jax.jit(correction)(image, target, degradation)
    error = degradation(corrected(image, z)) - target
    assert 10 * jnp.log10(4 / jnp.mean(jnp.square(error))) > 55


def test_clipping_is_part_of_it():
    degradation = parse("bicubic(16)")
    image, other = _images()
    bright = jnp.clip(3.0 * other, -1.0, 1.0)
    assert jnp.mean(jnp.abs(bright) == 1.0) > 0.02
    target = degradation(bright)
    fixed = corrected(image, correction(image, target, degradation))
    assert jnp.abs(fixed).max() <= 1.0
    error = degradation(fixed) - target
    assert 10 * jnp.log10(4.0 / jnp.mean(error**2)) > 45.0


def test_fidelity_and_noise_say_how_much_is_taken():
    degradation = parse("bicubic(16)")
    image, other = _images()
    target = degradation(other)

    def left(**options):
        error = degradation(corrected(image, correction(image, target, degradation, **options)))
        return float(jnp.mean(jnp.abs(error - target)))

    whole = float(jnp.mean(jnp.abs(degradation(image) - target)))
    assert left() < 1e-3 * whole
    assert left(fidelity=0.0) == pytest.approx(whole)
    assert left(fidelity=0.5) == pytest.approx(0.5 * whole, rel=0.02)
    assert 0.02 * whole < left(noise=Covariance(variance=0.1)) < whole
    # Where a value is noise, it is left alone.
    noisy = jnp.zeros((16, 16, 1)).at[:, :8].set(1e6)
    error = degradation(
        corrected(image, correction(image, target, degradation, Covariance(variance=noisy)))
    )
    error = jnp.abs(error - target)
    assert error[:, 10:].max() < 5e-3 and error[:, :6].mean() > 0.5 * whole


def test_gradients_are_finite():
    degradation = parse("bicubic(16)")
    image, other = _images()

    def distance(x):
        z = correction(x, degradation(other), degradation)
        return jnp.sum(jnp.square(corrected(x, z) - other))

    gradient = jax.grad(distance)(image)
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 1e-3
