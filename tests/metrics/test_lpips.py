"""LPIPS against the reference package, its gradients, its traps, and the weights' converter."""

import hashlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.embedded import lpips as convert_lpips
from stylesr_jax.errors import UserError
from stylesr_jax.metrics import lpips
from stylesr_jax.runtime import files, weights
from where import WEIGHTS

NETS = ("vgg16", "alexnet")


@pytest.fixture(scope="module", params=NETS)
def network(request):
    return request.param, lpips.load_features(request.param)


# VGG's gradients take half a minute each: AlexNet's stand for them where time is short.
sampled = pytest.mark.parametrize(
    "network", [pytest.param("vgg16", marks=pytest.mark.slow), "alexnet"], indirect=True
)


def _unit(levels: np.ndarray) -> jax.Array:
    return jnp.asarray(levels / 127.5 - 1.0, jnp.float32)


_lpips = jax.jit(lpips.lpips, static_argnames="net")
_activations = jax.jit(lpips.activations, static_argnames="net")


def test_lpips_equals_the_reference_package_on_ten_pairs(network, golden):
    net, params = network
    pairs = golden("lpips_pairs.npz")
    assert len(pairs["a"]) == 10
    actual = [
        _lpips(_unit(a), _unit(b), net=net, params=params)
        for a, b in zip(pairs["a"], pairs["b"], strict=True)
    ]
    np.testing.assert_allclose(actual, pairs[net], atol=1e-4)


def test_lpips_is_a_distance_from_equal_images(network, golden):
    net, params = network
    pairs = golden("lpips_pairs.npz")
    a, b = _unit(pairs["a"][0]), _unit(pairs["b"][0])
    assert _lpips(a, a, net=net, params=params) == 0.0
    forth = _lpips(a, b, net=net, params=params)
    np.testing.assert_allclose(_lpips(b, a, net=net, params=params), forth, rtol=1e-5)


@sampled
def test_embeddings_compare_as_lpips_does_and_map_over_images(network, golden):
    net, params = network
    pairs = golden("lpips_pairs.npz")
    a, b = _unit(pairs["a"][:3]), _unit(pairs["b"][:3])

    @jax.jit
    @jax.vmap
    def embed(x):
        return lpips.lpips_embedding(x, net=net, params=params)

    distances = jax.vmap(lpips.embedding_distance)(embed(a), embed(b))
    np.testing.assert_allclose(distances, pairs[net][:3], atol=1e-4)


@sampled
def test_a_step_against_the_gradient_lowers_lpips(network, golden):
    net, params = network
    pairs = golden("lpips_pairs.npz")
    a, b = _unit(pairs["a"][2])[:48, :40], _unit(pairs["b"][2])[:48, :40]
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda b: lpips.lpips(a, b, net=net, params=params))
    )
    before, gradient = value_and_grad(b)
    after, _ = value_and_grad(b - 0.01 * gradient / jnp.max(jnp.abs(gradient)))
    assert after < before


def test_gradients_are_finite_where_features_vanish(network):
    net, params = network
    flat = jnp.full((32, 32, 3), -1.0)
    dead = jax.tree.map(jnp.zeros_like, params) | {
        name: value for name, value in params.items() if name.startswith("head")
    }
    gradient = jax.jit(jax.grad(lambda x, y, params: lpips.lpips(x, y, net=net, params=params)))
    np.testing.assert_allclose(gradient(flat, flat, params), 0.0, atol=1e-7)
    np.testing.assert_array_equal(gradient(flat, flat + 0.5, dead), 0.0)


def test_smallest_images(network):
    net, params = network
    side = {"vgg16": 16, "alexnet": 31}[net]
    taps = _activations(jnp.zeros((side, side, 3)), net=net, params=params)
    assert all(min(tap.shape) >= 1 for tap in taps)
    assert tuple(tap.shape[-1] for tap in taps) == lpips.tap_widths(net)
    with pytest.raises(UserError, match=f"at least {side} pixels"):
        lpips.activations(jnp.zeros((side - 1, side, 3)), net=net, params=params)


def test_pooled_features_are_the_mean_of_the_last_activation():
    params = lpips.load_features("vgg16")
    x = jax.random.uniform(jax.random.key(0), (32, 48, 3), minval=-1.0)
    last = _activations(x, net="vgg16", params=params)[-1]
    assert last.shape == (2, 3, 512)
    pooled = jax.jit(lambda x, params: lpips.pooled_features(x, params=params))(x, params)
    np.testing.assert_allclose(pooled, last.mean(axis=(0, 1)), rtol=1e-5)


def test_wrong_input_is_refused(network, tmp_path):
    net, params = network
    x = jnp.zeros((32, 32, 3))
    with pytest.raises(UserError, match="one shape"):
        lpips.lpips(x, x[:31], net=net, params=params)
    with pytest.raises(UserError, match=r"\(height, width, 3\)"):
        lpips.activations(x[..., :1], net=net, params=params)
    with pytest.raises(UserError, match="one of vgg16, alexnet"):
        lpips.load_features("vgg")  # pyright: ignore[reportArgumentType]
    other = "vgg16" if net == "alexnet" else "alexnet"
    with pytest.raises(UserError, match=f"does not hold the feature network {other}"):
        lpips.load_features(other, WEIGHTS / f"lpips-{net}.safetensors")
    weights.save(
        tmp_path / "few.safetensors", {"head0": np.ones(64)}, {"kind": "features", "net": net}
    )
    with pytest.raises(UserError, match="does not hold the parameters"):
        lpips.load_features(net, tmp_path / "few.safetensors")


def test_weights_are_those_that_their_page_names(network):
    net, _ = network
    page = (WEIGHTS / "FEATURES.md").read_text()
    assert files.sha256(WEIGHTS / f"lpips-{net}.safetensors") in page
    assert weights.read_header(WEIGHTS / f"lpips-{net}.safetensors")["licence"]
    assert convert_lpips.ARCHIVE_SHA256 in page


def _checkpoint(rng: np.random.Generator) -> dict:
    tree: dict = {"AlexNet_0": {}}
    for name, shape in lpips.param_shapes("alexnet").items():
        number = name[4:]
        if name.startswith("conv"):
            parts = {part: rng.uniform(0, 1, size) for part, size in shape.items()}
            tree["AlexNet_0"][f"Conv_{number}"] = {
                k: v.astype(np.float32) for k, v in parts.items()
            }
        else:
            value = rng.uniform(0, 1, shape).astype(np.float32)
            tree[f"NetLinLayer_{number}"] = {"Conv_0": {"kernel": value.reshape(1, 1, -1, 1)}}
    return tree


def test_checkpoints_are_read_as_data():
    tree = _checkpoint(np.random.default_rng(0))
    params = convert_lpips.read_checkpoint(pickle.dumps(tree, protocol=3), "alexnet")
    kernel = tree["AlexNet_0"]["Conv_1"]["kernel"]
    np.testing.assert_allclose(params["conv1"]["kernel"], kernel, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(
        params["head2"], tree["NetLinLayer_2"]["Conv_0"]["kernel"].reshape(-1)
    )
    with pytest.raises(UserError, match="lacks VGG16_0"):
        convert_lpips.read_checkpoint(pickle.dumps(tree, protocol=3), "vgg16")
    tree["NetLinLayer_2"]["Conv_0"]["kernel"][0, 0, 0] = -1.0
    with pytest.raises(UserError, match="head2 has negative weights"):
        convert_lpips.read_checkpoint(pickle.dumps(tree, protocol=3), "alexnet")


def test_other_archives_are_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(UserError, match=digest):
        convert_lpips.make(tmp_path / "a.tar.gz", tmp_path)
