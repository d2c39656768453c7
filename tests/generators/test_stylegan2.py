"""StyleGAN2 against values of stylegan2-ada-pytorch, and its own promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from convert.state_dict import prepare, random_state
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.generators.layers import (
    conv3x3,
    demodulation,
    leaky_relu,
    sum_of_squares,
    up_conv3x3,
    upsample2x,
)
from stylesr_jax.generators.registry import config_from_dict, config_to_dict

NETWORKS = {
    "skip_32": "skip",
    "skip_clamp_64": "skip",
    "conditional_32": "skip",
    "nonoise_32": "skip",
    "resnet_32": "resnet",
    "orig_32": "orig",
}
SKELETONS = ("skip", "resnet", "orig")


def _generator(state, **options):
    params, config = prepare(state, name="test", **options)
    return Generator(
        params=jax.tree.map(jnp.asarray, params), statistics={}, label=None, config=config
    )


def _state(**options):
    sizes = {"resolution": 16, "channel_base": 128, "channel_max": 12, "z_dim": 16, "w_dim": 16}
    return random_state(seed=0, **{**sizes, **options})


def _state_of(values):
    return {k.removeprefix("state."): v for k, v in values.items() if k.startswith("state.")}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, golden):
    values = golden(f"stylegan2_{request.param}.npz")
    clamp = 256.0 if "clamp" in request.param else None
    return _generator(_state_of(values), conv_clamp=clamp), values, request.param


@jax.jit
def _synthesise(generator, ws, noise=None):
    return generator.synthesise(ws, noise)


@jax.jit
def _image_and_gradient(generator, ws, noise):
    def mean_abs(ws):
        images = generator.synthesise(ws, noise)
        return jnp.abs(images).mean(), images

    gradient, images = jax.grad(mean_abs, has_aux=True)(ws)
    return images, gradient


def _check_images(images, expected):
    expected = expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# --- the reference's numbers ----------------------------------------------------------------


def test_configuration_is_inferred(network):
    generator, values, name = network
    assert generator.config.skeleton == NETWORKS[name]
    assert generator.resolution == values["image_const"].shape[-1]
    assert generator.num_ws == values["ws"].shape[1]
    assert generator.label_dim == (values["c"].shape[1] if "c" in values else 0)
    assert len(generator.noise_shapes) == (0 if name == "nonoise_32" else generator.num_ws - 1)
    assert config_from_dict(config_to_dict(generator.config)) == generator.config


def test_mapping(network):
    generator, values, _ = network
    labels = jnp.asarray(values["c"]) if "c" in values else None
    w = generator.map_latents(jnp.asarray(values["z"]), labels)
    np.testing.assert_allclose(w, values["w"], rtol=0, atol=1e-5)


def test_images_and_gradient(network):
    generator, values, _ = network
    ws = jnp.asarray(values["ws"])
    images, gradient = _image_and_gradient(generator, ws, generator.stored_noise)
    _check_images(images, values["image_const"])
    expected = values["grad_ws_of_mean_abs_image_const"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    zeros = tuple(jnp.zeros(shape) for shape in generator.noise_shapes)
    _check_images(_image_and_gradient(generator, ws, zeros)[0], values["image_none"])
    same = jnp.repeat(jnp.asarray(values["w"])[:, None], generator.num_ws, axis=1)
    images, _ = _image_and_gradient(generator, same, generator.stored_noise)
    _check_images(images, values["image_of_z_const"])


# --- against the definition, written plainly ------------------------------------------------


def _plain_up(x, weight, taps):
    """Scatter the kernel with stride 2, then correlate with the filter (NumPy, one image)."""
    height, width, _ = x.shape
    full = np.zeros((2 * height + 3, 2 * width + 3, weight.shape[3]))  # one zero row around
    for a in range(height):
        for b in range(width):
            full[2 * a + 1 : 2 * a + 4, 2 * b + 1 : 2 * b + 4] += np.einsum(
                "i,klio->klo", x[a, b], weight
            )
    window = np.lib.stride_tricks.sliding_window_view(full, (4, 4), axis=(0, 1))
    return np.einsum("hwckl,k,l->hwc", window, taps, taps)


@pytest.mark.parametrize("taps", [(0.25, 0.75, 0.75, 0.25), (0.1, 0.5, 0.9, 0.5)])
def test_up_convolution_is_its_definition(taps):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
    weight = rng.normal(size=(3, 3, 4, 6)).astype(np.float32)
    result = up_conv3x3(jnp.asarray(x), jnp.asarray(weight), taps)
    for ours, image in zip(result, x, strict=True):
        np.testing.assert_allclose(ours, _plain_up(image, weight, taps), rtol=0, atol=1e-4)


@pytest.mark.parametrize("taps", [(0.25, 0.75, 0.75, 0.25), (0.1, 0.5, 0.9, 0.5)])
def test_image_upsampling_is_its_definition(taps):
    x = np.random.default_rng(0).normal(size=(1, 3, 5, 2)).astype(np.float32)
    zeros = np.zeros((9, 13, 2))
    zeros[2:8:2, 2:12:2] = x[0]
    window = np.lib.stride_tricks.sliding_window_view(zeros, (4, 4), axis=(0, 1))
    expected = np.einsum("hwckl,k,l->hwc", window, taps, taps)
    np.testing.assert_allclose(upsample2x(jnp.asarray(x), taps)[0], expected, atol=1e-6)


def _plain_layer(params, x, w, noise, *, up, gain, bound, taps):
    """A synthesis layer in the published order: weights modulated, gain and clamp last."""
    style = w @ params["affine"]["weight"] + params["affine"]["bias"]
    weight = params["weight"] * style[:, None]
    weight = weight / np.sqrt(np.square(weight).sum(axis=(0, 1, 2)) + 1e-8)
    if up:
        x = _plain_up(x, weight, taps)
    else:
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        window = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        x = np.einsum("hwikl,klio->hwo", window, weight)
    x = x + params["noise_strength"] * noise[..., None] + params["bias"]
    x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2.0) * gain
    return x if bound is None else np.clip(x, -bound * gain, bound * gain)


@pytest.mark.parametrize("skeleton", SKELETONS)
@pytest.mark.parametrize("bound", [None, 0.5])
def test_a_clamped_network_is_its_definition(skeleton, bound):
    """At 8 px, with a clamp that most values reach (the golden files' never acts)."""
    state = _state(resolution=8, skeleton=skeleton)
    generator = _generator(state, conv_clamp=bound, architecture=skeleton)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), generator.params["synthesis"])
    noise = [np.asarray(n, np.float64) for n in generator.stored_noise]
    ws = np.random.default_rng(1).normal(size=(generator.num_ws, generator.w_dim))

    def rgb(p, x, w):
        style = w @ p["affine"]["weight"] + p["affine"]["bias"]
        y = (x * style) @ p["weight"] + p["bias"]
        return y if bound is None else np.clip(y, -bound, bound)

    def up(image):
        return np.asarray(upsample2x(jnp.asarray(image[None], jnp.float32), taps)[0])

    taps = generator.config.taps
    first, second = params["b4"], params["b8"]
    gain = np.sqrt(0.5) if skeleton == "resnet" else 1.0
    options = {"bound": bound, "taps": taps}
    entering = _plain_layer(
        first["conv1"], params["constant"], ws[0], noise[0], up=False, gain=1.0, **options
    )
    x = _plain_layer(second["conv0"], entering, ws[1], noise[1], up=True, gain=1.0, **options)
    x = _plain_layer(second["conv1"], x, ws[2], noise[2], up=False, gain=gain, **options)
    if skeleton == "resnet":
        x = x + np.sqrt(0.5) * up(entering @ second["skip"]["weight"])
    image = rgb(second["torgb"], x, ws[3])
    if skeleton == "skip":
        image = image + up(rgb(first["torgb"], entering, ws[1]))
    result = _synthesise(generator, jnp.asarray(ws[None], jnp.float32))
    np.testing.assert_allclose(result[0], image, rtol=0, atol=1e-4 * np.abs(image).max())


OPERATORS = {
    "conv3x3": conv3x3,
    "up_conv3x3": lambda x, weight: up_conv3x3(x, weight, (0.1, 0.5, 0.9, 0.5)),
    "upsample2x": lambda x, weight: upsample2x(x, (0.1, 0.5, 0.9, 0.5)) * weight.sum(),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_own_gradient_rules_are_the_adjoints(name):
    """Each operator is linear in x and in the weight: <f(x, w), y> = <x, dx> = <w, dw>."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, 3, 4))
    weight = jax.random.normal(keys[1], (3, 3, 4, 6))
    operator = jax.jit(OPERATORS[name])
    y = jax.random.normal(keys[2], operator(x, weight).shape)
    grad_x, grad_weight = jax.jit(lambda *at: jax.vjp(OPERATORS[name], *at)[1](y))(x, weight)
    # A second pair of arguments: a rule for one x alone could be right by accident.
    for other in (x, jnp.flip(x, axis=1)):
        expected = jnp.vdot(operator(other, weight), y)
        np.testing.assert_allclose(jnp.vdot(grad_x, other), expected, rtol=1e-3, atol=1e-2)
    for other in (weight, jnp.flip(weight, axis=3)):
        expected = jnp.vdot(operator(x, other), y)
        np.testing.assert_allclose(jnp.vdot(grad_weight, other), expected, rtol=1e-3, atol=1e-2)


def test_demodulation_gives_unit_norms():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 3, 5, 7)).astype(np.float32)
    style = rng.normal(size=(2, 5)).astype(np.float32)
    factor = demodulation(jnp.asarray(style), sum_of_squares(jnp.asarray(weight)))
    modulated = weight * style[:, None, None, :, None] * np.asarray(factor)[:, None, None, None]
    norms = np.sqrt(np.square(modulated).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)


# --- noise, parts of the network, transformations -------------------------------------------


def test_noise_per_image_random_and_shared():
    generator = _generator(_state())
    ws = jax.random.normal(jax.random.key(0), (2, generator.num_ws, generator.w_dim))
    first = generator.random_noise(jax.random.key(1))
    second = generator.random_noise(jax.random.key(2))
    both = tuple(jnp.stack(pair) for pair in zip(first, second, strict=True))
    images = _synthesise(generator, ws, both)
    np.testing.assert_allclose(images[0], _synthesise(generator, ws, first)[0], atol=1e-4)
    np.testing.assert_allclose(images[1], _synthesise(generator, ws, second)[1], atol=1e-4)
    assert float(jnp.abs(_synthesise(generator, ws, first) - images)[1].max()) > 0.01
    with pytest.raises(ValueError, match="noise maps"):
        generator.synthesise(ws, first[:-1])


def test_noise_by_name_is_the_stored_maps_or_zeros():
    generator = _generator(_state(resolution=8))
    ws = jax.random.normal(jax.random.key(0), (1, generator.num_ws, generator.w_dim))
    zeros = tuple(jnp.zeros(shape) for shape in generator.noise_shapes)
    stored = _synthesise(generator, ws, generator.stored_noise)
    np.testing.assert_allclose(_synthesise(generator, ws), stored, atol=1e-5)
    none = jax.jit(lambda generator, ws: generator.synthesise(ws, "none"))(generator, ws)
    np.testing.assert_allclose(none, _synthesise(generator, ws, zeros), atol=1e-5)
    assert float(jnp.abs(none - stored).max()) > 0.01


@pytest.mark.parametrize("skeleton", SKELETONS)
def test_starting_from_features_gives_the_same_image(skeleton):
    generator = _generator(_state(skeleton=skeleton))
    ws = jax.random.normal(jax.random.key(0), (2, generator.num_ws, generator.w_dim))
    whole = _synthesise(generator, ws)
    for block in range(len(generator.config.block_resolutions)):
        features = jax.jit(lambda g, ws, k=block: g.features(ws, block=k))(generator, ws)
        rest = jax.jit(lambda g, ws, x, k=block: g.synthesise(ws, start=(k, x)))(
            generator, ws, features
        )
        np.testing.assert_allclose(rest, whole, rtol=0, atol=1e-5 * float(jnp.abs(whole).max()))
    with pytest.raises(UserError, match="blocks 0 to 2"):
        generator.features(ws, block=3)
    with pytest.raises(UserError, match="block 3 is not before"):
        generator.synthesise(ws, start=(3, features))


def test_stopping_early_is_the_smaller_network():
    state = _state(resolution=16)
    generator = _generator(state)
    ws = jax.random.normal(jax.random.key(0), (1, generator.num_ws, generator.w_dim))
    for resolution in (4, 8, 16):
        blocks = {f"b{size}." for size in (4, 8, 16) if size <= resolution}
        cut = {
            k: v
            for k, v in state.items()
            if k.startswith("mapping.") or any(b in k for b in blocks)
        }
        small = _generator(cut, architecture="skip")
        expected = _synthesise(small, ws[:, : small.num_ws])
        early = jax.jit(lambda g, ws, stop=resolution: g.synthesise(ws, stop=stop))
        np.testing.assert_allclose(early(generator, ws), expected, atol=1e-5)
        assert expected.shape == (1, resolution, resolution, 3)


@pytest.mark.parametrize("skeleton", ["resnet", "orig"])
def test_only_skip_networks_stop_early(skeleton):
    generator = _generator(_state(skeleton=skeleton))
    ws = jnp.zeros((1, generator.num_ws, generator.w_dim))
    whole = jax.eval_shape(lambda ws: generator.synthesise(ws, stop=16), ws)
    assert whole.shape == (1, 16, 16, 3)
    with pytest.raises(UserError, match="makes images of 16 px, not 8"):
        generator.synthesise(ws, stop=8)


@pytest.mark.parametrize("skeleton", SKELETONS)
def test_vmap_is_the_batch(skeleton):
    generator = _generator(_state(skeleton=skeleton))
    ws = jax.random.normal(jax.random.key(0), (3, generator.num_ws, generator.w_dim))
    one = jax.jit(jax.vmap(lambda g, w: g.synthesise(w[None])[0], in_axes=(None, 0)))
    np.testing.assert_allclose(one(generator, ws), _synthesise(generator, ws), atol=1e-4)


def _convolution_kernels(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.invars[1].aval.shape, equation.params["feature_group_count"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from _convolution_kernels(getattr(inner, "jaxpr", inner))


def test_weights_stay_unbatched_under_vmap_and_get_no_gradient_work():
    generator = _generator(_state())
    ws = jnp.zeros((5, generator.num_ws, generator.w_dim))

    def loss(ws):
        return jnp.sum(generator.synthesise(ws[None]))

    closed = jax.make_jaxpr(jax.vmap(jax.grad(loss)))(ws)
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True])  # as the compiler will
    kernels = list(_convolution_kernels(used))
    assert kernels
    for shape, groups in kernels:
        assert groups == 1
        assert max(shape) <= 12  # no axis has become larger than the channels


def test_one_trace_for_other_weights_of_the_same_shape():
    traces = 0

    @jax.jit
    def image(generator, ws):
        nonlocal traces
        traces += 1
        return generator.synthesise(ws)

    generator = _generator(_state())
    ws = jnp.zeros((1, generator.num_ws, generator.w_dim))
    first = image(generator, ws)
    other = generator.replace(params=jax.tree.map(lambda a: 1.5 * a, generator.params))
    assert float(jnp.abs(image(other, ws) - first).max()) > 0.0
    assert traces == 1


def test_gradients_reach_the_weights():
    """The weights' gradients, which fine-tuning needs, against finite differences."""
    generator = _generator(_state(resolution=8))
    ws = jax.random.normal(jax.random.key(0), (1, generator.num_ws, generator.w_dim))

    @jax.jit
    def loss(synthesis):
        params = {**generator.params, "synthesis": synthesis}
        return jnp.sum(jnp.square(generator.replace(params=params).synthesise(ws)))

    synthesis = generator.params["synthesis"]
    gradient = jax.grad(loss)(synthesis)
    for layer in ("conv0", "conv1"):
        direction = jax.random.normal(jax.random.key(1), synthesis["b8"][layer]["weight"].shape)

        def moved(step, layer=layer, direction=direction):
            weight = synthesis["b8"][layer]["weight"] + step * direction
            changed = {**synthesis["b8"], layer: {**synthesis["b8"][layer], "weight": weight}}
            return loss({**synthesis, "b8": changed})

        slope = (moved(2e-3) - moved(-2e-3)) / 4e-3
        expected = jnp.vdot(gradient["b8"][layer]["weight"], direction)
        np.testing.assert_allclose(expected, slope, rtol=2e-2)


@pytest.mark.parametrize(
    ("skeleton", "dtype", "bound"),
    [("skip", "float16", 2 / 255), ("resnet", "float16", 2 / 255), ("skip", "bfloat16", 4 / 255)],
)
def test_half_precision_stays_close(golden, skeleton, dtype, bound):
    """On images scaled to [-1, 1], as a trained network's are."""
    values = golden(f"stylegan2_{skeleton}_32.npz")
    generator = _generator(_state_of(values))
    half = generator.replace(config=dataclasses.replace(generator.config, compute_dtype=dtype))
    ws = jnp.asarray(values["ws"])
    images, gradient = _image_and_gradient(half, ws, generator.stored_noise)
    assert images.dtype == gradient.dtype == jnp.float32
    expected = values["image_const"].transpose(0, 2, 3, 1)
    difference = np.abs(images - expected) / np.abs(expected).max()
    assert 1e-5 < difference.max() <= bound
    direction = values["grad_ws_of_mean_abs_image_const"]
    cosine = np.vdot(gradient, direction) / (np.linalg.norm(gradient) * np.linalg.norm(direction))
    assert cosine > 0.97


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_accelerators(platform, dtype):
    generator = _generator(_state())
    generator = generator.replace(config=dataclasses.replace(generator.config, compute_dtype=dtype))
    ws = jnp.zeros((2, generator.num_ws, generator.w_dim))

    def value_and_gradient(synthesis, noise, ws):
        whole = generator.replace(params={"synthesis": synthesis, "noise": noise})
        return jax.value_and_grad(lambda ws: jnp.abs(whole.synthesise(ws)).mean())(ws)

    params = generator.params
    exported = jax.export.export(jax.jit(value_and_gradient), platforms=[platform])(
        params["synthesis"], params["noise"], ws
    )
    assert exported.platforms == (platform,)
    assert [a.shape for a in exported.out_avals] == [(), ws.shape]


# --- reading state dicts --------------------------------------------------------------------


@pytest.mark.parametrize(("resolution", "layers"), [(4, 1), (8, 2), (32, 8)])
def test_any_mapping_depth_width_and_resolution(resolution, layers):
    state = _state(
        resolution=resolution, mapping_layers=layers, mapping_width=24, label_dim=3, z_dim=8
    )
    generator = _generator(state)
    assert generator.config.mapping_widths == (24,) * (layers - 1) + (16,)
    assert (generator.z_dim, generator.label_dim, generator.config.embed_dim) == (8, 3, 16)
    w = generator.map_latents(jnp.ones((2, 8)), jnp.eye(3)[:2])
    ws = jnp.repeat(w[:, None], generator.num_ws, axis=1)
    images = _synthesise(generator, ws)
    assert images.shape == (2, resolution, resolution, 3)
    assert bool(jnp.isfinite(images).all())


def test_the_mapping_multiplier_only_moves_between_weights_and_gain():
    slow = _generator(_state(lr_multiplier=0.01))
    plain = _generator(_state(lr_multiplier=1.0), lr_multiplier=1.0)
    z = jnp.ones((1, 16))
    np.testing.assert_allclose(slow.map_latents(z), plain.map_latents(z), atol=1e-5)


def test_two_tap_filters_and_missing_filters():
    state = _state()
    without = {k: v for k, v in state.items() if "resample_filter" not in k}
    assert _generator(without).config == _generator(state).config
    box = {
        k: np.full((2, 2), 0.25, np.float32) if "resample_filter" in k else v
        for k, v in state.items()
    }
    assert _generator(box).config.taps == (0.0, 1.0, 1.0, 0.0)


def _without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


def _with(key, change):
    return lambda state: {**state, key: change(state[key])}


BROKEN = {
    "no mapping": (_without("mapping.fc0.weight"), r"no 'mapping\.fc0\.weight'"),
    "no constant": (_without("synthesis.b4.const"), r"no 'synthesis\.b4\.const'"),
    "no block": (_without("synthesis.b8.conv1.weight"), "blocks at 4, 8, 16"),
    "no up-sampling layer": (_without("synthesis.b8.conv0.weight"), "no 'synthesis.b8.conv0"),
    "wrong kernel": (
        _with("synthesis.b8.conv0.weight", lambda a: a[..., :1]),
        r"conv0\.weight' is of shape \(12, 12, 3, 1\)",
    ),
    "wrong style": (_with("synthesis.b8.conv1.affine.weight", lambda a: a[:, 1:]), "affine"),
    "not finite": (_with("synthesis.b4.const", lambda a: a * np.nan), "not finite"),
    "whole numbers": (_with("synthesis.b4.const", lambda a: a.astype(np.int32)), "int32"),
    "empty": (_with("mapping.fc0.weight", lambda a: a[:0]), "shape"),
    "mapping does not chain": (_with("mapping.fc1.weight", lambda a: a[:, 1:]), "mapping.fc1"),
    "grey": (_with("synthesis.b16.torgb.bias", lambda a: a[:1]), "1 channels, not RGB or grey"),
    "odd filter": (
        _with("synthesis.b4.resample_filter", lambda a: np.ones((3, 3), np.float32)),
        "filter of shape",
    ),
    "filter that is no product": (
        _with("synthesis.b4.resample_filter", lambda a: np.eye(4, dtype=np.float32)),
        "filter of shape",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named(case):
    change, message = BROKEN[case]
    with pytest.raises(UserError, match=message):
        prepare(change(_state()), name="broken")


def test_stated_architecture_and_activation_are_checked():
    with pytest.raises(UserError, match="said to be 'resnet', but its weights are 'skip'"):
        prepare(_state(), name="test", architecture="resnet")
    with pytest.raises(UserError, match="only 'lrelu'"):
        prepare(_state(), name="test", activation="relu")


def test_half_precision_weights_are_read_as_float32():
    state = {k: v.astype(np.float16) for k, v in _state().items() if "fc" not in k}
    state |= {k: v for k, v in _state().items() if "fc" in k}
    params, _ = prepare(state, name="test")
    assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_leaky_relu_is_homogeneous():
    x = jnp.linspace(-2.0, 2.0, 9)
    np.testing.assert_allclose(leaky_relu(x * 1.7), 1.7 * leaky_relu(x), rtol=1e-6)
