"""The default generator against values computed with OpenVINO and the original network."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.generators.layers import leaky_relu
from stylesr_jax.generators.mobile.blocks import block_rows
from stylesr_jax.generators.mobile.separable import (
    SeparableWeights,
    haar_analysis,
    haar_synthesis,
    modulated_pointwise,
    separable_rows,
)
from stylesr_jax.generators.mobile.strips import map_strips


@pytest.fixture(scope="module")
def reference(golden):
    return golden("mobile_stylegan_ffhq_1024.npz")


@jax.jit
def _images(generator, ws):
    return generator.synthesise(ws)


def _check_image(image, reference, name):
    c, y, x = reference["pixel_chw"].astype(int).T
    np.testing.assert_allclose(image[y, x, c], reference[f"{name}_pixels"], atol=5e-4)
    blocks = image.reshape(64, 16, 64, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(blocks, reference[f"{name}_area64"], atol=5e-4)


def test_mapping(mobile, reference):
    w = mobile.map_latents(jnp.asarray(reference["z"]))
    np.testing.assert_allclose(w, reference["w"], atol=1e-5)


@pytest.mark.parametrize("index", [0, 1])
def test_one_style_for_all_layers(mobile, reference, index):
    ws = jnp.repeat(jnp.asarray(reference["w"])[index, None, None], mobile.num_ws, axis=1)
    _check_image(np.asarray(_images(mobile, ws))[0], reference, f"image{index}")


def test_w_plus_image_and_gradient(mobile, reference):
    @jax.jit
    def image_and_gradient(generator, ws):
        def mean_abs(ws):
            image = generator.synthesise(ws)
            return jnp.abs(image).mean(), image

        return jax.grad(mean_abs, has_aux=True)(ws)

    expected = reference["grad_ws_of_mean_abs_image"]
    gradient, image = image_and_gradient(mobile, jnp.asarray(reference["ws"]))
    _check_image(np.asarray(image)[0], reference, "image_ws")
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


def test_noise_is_optional_and_per_layer(mobile):
    small = jnp.broadcast_to(mobile.statistics["w_mean"], (1, mobile.num_ws, mobile.w_dim))

    @jax.jit
    def features(generator, ws, noise):
        return generator.features(ws, noise, block=4)

    stored = features(mobile, small, mobile.stored_noise)
    batched = features(mobile, small, tuple(m[None] for m in mobile.stored_noise))
    np.testing.assert_array_equal(stored, batched)
    zeros = jax.jit(lambda g, w: g.features(w, "none", block=4))(mobile, small)
    other = features(mobile, small, mobile.random_noise(jax.random.key(0)))
    assert float(jnp.abs(stored - zeros).max()) > 1e-3
    assert float(jnp.abs(stored - other).max()) > 1e-3
    with pytest.raises(ValueError, match="15 noise maps"):
        mobile.synthesise(small, mobile.stored_noise[:3])


def test_start_continues_from_features(mobile):
    ws = jnp.broadcast_to(mobile.statistics["w_mean"], (1, mobile.num_ws, mobile.w_dim))
    whole, continued = jax.jit(
        lambda g, w: (
            g.features(w, block=5),
            g.features(w, block=5, start=(3, g.features(w, block=3))),
        )
    )(mobile, ws)
    np.testing.assert_allclose(whole, continued, atol=1e-5)


def test_statistics_are_those_of_the_mapping(mobile):
    from stylesr_jax.generators.base import measure_statistics

    fresh = measure_statistics(jax.random.key(7), mobile, draws=20_000)
    for name, value in fresh.items():
        stored = mobile.statistics[name]
        spread = float(jnp.std(stored))
        assert float(jnp.abs(value - stored).max()) < 0.2 * spread, name


def _layer_weights(key, channels, features):
    keys = jax.random.split(key, 3)
    return SeparableWeights(
        depthwise=jax.random.normal(keys[0], (3, 3, channels)),
        pointwise=jax.random.normal(keys[1], (channels, features)) / channels,
        noise_strength=jnp.array(0.3),
        bias=jax.random.normal(keys[2], (features,)),
    )


def _check_gradients(function, expected, arguments):
    """The same values, and the same gradients of a random functional."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(function, arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(jax.random.normal(jax.random.key(9), out.shape))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max())),
        run(function, arguments),
        run(expected, arguments),
    )


def test_separable_layer_and_its_gradients():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (8, 5, 4))
    noise, style = jax.random.normal(keys[1], (6, 5)), jax.random.normal(keys[2], (4,))
    valid = jnp.ones(8).at[0].set(0.0)

    def grouped(x, noise, style, weights):
        x = (x * style).at[0].set(0.0)[None]
        x = jax.lax.conv_general_dilated(
            x,
            weights.depthwise[:, :, None, :],
            (1, 1),
            ((0, 0), (1, 1)),
            feature_group_count=4,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]
        x = jnp.einsum("rwc,cf->rwf", x, weights.pointwise)
        return leaky_relu(x + (weights.noise_strength * noise)[..., None] + weights.bias)

    _check_gradients(
        lambda x, noise, style, weights: separable_rows(x, valid, noise, style, weights),
        grouped,
        (x, noise, style, _layer_weights(keys[3], 4, 7)),
    )


def test_modulated_pointwise_and_its_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    _check_gradients(
        modulated_pointwise,
        lambda x, style, weight: jnp.einsum("rwc,cf->rwf", x * style, weight),
        (
            jax.random.normal(keys[0], (3, 5, 4)),
            jax.random.normal(keys[1], (4,)),
            jax.random.normal(keys[2], (4, 12)),
        ),
    )


@pytest.mark.parametrize("with_image", [False, True])
def test_strips_change_nothing(with_image):
    """Values are equal; gradients to half precision's rounding of the modulations' inputs."""
    keys = jax.random.split(jax.random.key(0), 9)
    whole = {
        "x": jax.random.normal(keys[0], (8, 6, 8)),
        "noise1": jax.random.normal(keys[1], (16, 12)),
        "noise2": jax.random.normal(keys[2], (16, 12)),
    }
    styles = {"up": (8,), "conv1": (2,), "conv2": (3,), "image": (3,)}
    shared = {
        "styles": {
            name: 1 + 0.2 * jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys[3:7], styles.items(), strict=True)
        },
        "weights": {
            "conv1": _layer_weights(keys[7], 2, 3),
            "conv2": _layer_weights(keys[8], 3, 3),
            "image": {"weight": jax.random.normal(keys[6], (3, 12)), "bias": jnp.ones(12)},
        },
    }
    if not with_image:
        del shared["styles"]["image"], shared["weights"]["image"]
    batch = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), whole)

    def run(strips):
        def loss(whole, shared):
            out = jax.vmap(lambda w: map_strips(block_rows, w, shared, strips=strips))(whole)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(batch, shared)

    (_, at_once), expected = run(1)
    (_, in_strips), gradients = run(4)
    np.testing.assert_allclose(in_strips, at_once, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3 * np.abs(b).max()),
        gradients,
        expected,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max())),
        gradients[0],
        expected[0],
    )


@pytest.mark.parametrize("in_strips", [False, True])
def test_step_lowers_for_accelerators(mobile, in_strips):
    config = dataclasses.replace(mobile.config.portable(), in_strips=in_strips)
    generator = mobile.replace(config=config)

    def step(generator, ws):
        return jax.value_and_grad(lambda ws: jnp.abs(generator.synthesise(ws)).mean())(ws)

    shapes = jax.eval_shape(lambda: (generator, jnp.zeros((2, config.num_ws, config.w_dim))))
    exported = jax.export.export(jax.jit(step), platforms=["cuda", "tpu"])(*shapes)
    assert exported.platforms == ("cuda", "tpu")
    assert exported.out_avals[1].shape == (2, config.num_ws, config.w_dim)


def test_haar_synthesis_is_orthonormal_and_ordered():
    bands = jax.random.normal(jax.random.key(0), (2, 3, 8))
    pixels = haar_synthesis(bands)
    assert pixels.shape == (4, 6, 2)
    np.testing.assert_allclose(haar_analysis(pixels), bands, atol=1e-6)
    low_high = haar_synthesis(jnp.zeros((1, 1, 4)).at[..., 1].set(2.0))[:, :, 0]
    np.testing.assert_array_equal(low_high, [[1.0, 1.0], [-1.0, -1.0]])
    high_low = haar_synthesis(jnp.zeros((1, 1, 4)).at[..., 2].set(2.0))[:, :, 0]
    np.testing.assert_array_equal(high_low, [[1.0, -1.0], [1.0, -1.0]])
    direction = jax.random.normal(jax.random.key(1), pixels.shape)
    gradient = jax.grad(lambda bands: jnp.sum(direction * haar_synthesis(bands)))(bands)
    np.testing.assert_allclose(gradient, haar_analysis(direction), atol=1e-6)


def test_random_noise_is_that_of_one_draw_for_each_map(mobile):
    key = jax.random.key(5)
    keys = jax.random.split(key, len(mobile.noise_shapes))
    maps = mobile.random_noise(key)
    for k, shape, drawn in zip(keys, mobile.noise_shapes, maps, strict=True):
        np.testing.assert_allclose(drawn, jax.random.normal(k, shape), rtol=1e-5, atol=1e-6)
