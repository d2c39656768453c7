"""The default generator against values computed with OpenVINO and the original network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.generators.layers import depthwise_conv3x3, haar_synthesis


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

    gradient, image = image_and_gradient(mobile, jnp.asarray(reference["ws"]))
    _check_image(np.asarray(image)[0], reference, "image_ws")
    expected = reference["grad_ws_of_mean_abs_image"]
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
            g.config.synthesis_module().apply(
                {"params": g.params["synthesis"]},
                g.features(w, block=3),
                w,
                g.stored_noise,
                3,
                5,
                method="_run",
            ),
        )
    )(mobile, ws)
    np.testing.assert_allclose(whole, continued, atol=1e-5)


def test_statistics_are_those_of_the_mapping(mobile):
    from stylesr_jax.generators import measure_statistics

    fresh = measure_statistics(jax.random.key(7), mobile, draws=20_000)
    for name, value in fresh.items():
        stored = mobile.statistics[name]
        spread = float(jnp.std(stored))
        assert float(jnp.abs(value - stored).max()) < 0.2 * spread, name


def test_depthwise_convolution_and_its_gradients():
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 6, 5, 4))
    weight = jax.random.normal(keys[1], (3, 3, 4))

    def grouped(x, weight):
        return jax.lax.conv_general_dilated(
            x,
            weight[:, :, None, :],
            (1, 1),
            "SAME",
            feature_group_count=4,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    np.testing.assert_allclose(depthwise_conv3x3(x, weight), grouped(x, weight), atol=1e-5)
    gradients = [
        jax.grad(lambda x, w, f=f: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1))(x, weight)
        for f in (depthwise_conv3x3, grouped)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)


def test_haar_synthesis_is_orthonormal_and_ordered():
    bands = jax.random.normal(jax.random.key(0), (1, 2, 3, 8))
    pixels = haar_synthesis(bands)
    assert pixels.shape == (1, 4, 6, 2)
    np.testing.assert_allclose(jnp.sum(pixels**2), jnp.sum(bands**2), rtol=1e-5)
    low_high = haar_synthesis(jnp.zeros((1, 1, 1, 4)).at[..., 1].set(2.0))[0, :, :, 0]
    np.testing.assert_array_equal(low_high, [[1.0, 1.0], [-1.0, -1.0]])
    high_low = haar_synthesis(jnp.zeros((1, 1, 1, 4)).at[..., 2].set(2.0))[0, :, :, 0]
    np.testing.assert_array_equal(high_low, [[1.0, -1.0], [1.0, -1.0]])
