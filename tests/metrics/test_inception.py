"""FID's Inception against pytorch-fid's on random weights, and the files it is loaded from."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.embedded import inception as convert_inception
from convert.raw import map_file
from stylesr_jax.errors import UserError
from stylesr_jax.loading import inception_path
from stylesr_jax.metrics.inception import WIDTH, inception_features, kernel_shapes, load_inception
from stylesr_jax.runtime import files, weights
from where import GOLDEN, WEIGHTS


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """The state dict that pytorch-fid's network had when it gave the golden features."""
    rng = np.random.default_rng(5)
    arrays: dict[str, np.ndarray] = {}
    for name, (h, w, channels, features) in sorted(kernel_shapes().items()):
        kernel = (rng.random((features, channels, h, w)) - 0.5) * np.sqrt(24 / (h * w * channels))
        arrays[f"{name}.conv.weight"] = kernel.astype(np.float32)
        spans = {"weight": (0.5, 1.0), "bias": (-0.3, 0.6)}
        spans |= {"running_mean": (-0.3, 0.6), "running_var": (0.5, 1.0)}
        for part, (low, width) in spans.items():
            arrays[f"{name}.bn.{part}"] = (low + width * rng.random(features)).astype(np.float32)
    return arrays


def test_features_equal_pytorch_fid(state, golden, tmp_path):
    path = tmp_path / "inception.safetensors"
    weights.save(path, convert_inception.fold(state), {"kind": "inception"})
    params = load_inception(path)
    images = jnp.asarray(golden("lpips_pairs.npz")["a"][:2] / 127.5 - 1.0, jnp.float32)
    features = jax.jit(lambda x, params: inception_features(x, params=params))
    actual = jnp.stack([features(x, params) for x in images])
    expected = golden("inception_random.npz")["features"]
    assert actual.shape == (2, WIDTH)
    assert expected.max() > 50.0
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_other_arrays_are_refused(state):
    fewer = {name: array for name, array in state.items() if name != "Mixed_7c.branch1x1.bn.bias"}
    with pytest.raises(UserError, match=r"Mixed_7c\.branch1x1\.bn\.bias is missing"):
        convert_inception.fold(fewer)
    # torchvision's own network has other widths of the pools.
    other = state | {"Mixed_5b.branch_pool.conv.weight": np.zeros((64, 192, 1, 1), np.float32)}
    with pytest.raises(
        UserError, match=r"Mixed_5b\.branch_pool\.conv\.weight is \(64, 192, 1, 1\)"
    ):
        convert_inception.fold(other)


def test_torch_files_are_read_and_other_networks_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    arrays = convert_inception.read_state_dict(map_file(GOLDEN / "rosinality_32.pt"))
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    with pytest.raises(UserError, match="not FID's Inception weights"):
        inception_path(GOLDEN / "rosinality_32.pt")
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(UserError, match="does not hold FID's Inception"):
        load_inception(inception_path(WEIGHTS / "niqe.safetensors"))
    with pytest.raises(UserError, match="does not exist"):
        inception_path(tmp_path / "absent.pth")


def test_addresses_are_downloaded_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "cache"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=GOLDEN)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/rosinality_32.pt"
        path = convert_inception.download_weights(address)
        server.shutdown()
    assert path.is_relative_to(tmp_path / "cache")
    assert files.sha256(path) == files.sha256(GOLDEN / "rosinality_32.pt")
    # The server is gone: what follows finds the download in the cache.
    with pytest.raises(UserError, match="not FID's Inception weights"):
        inception_path(address)


def test_images_need_three_channels():
    with pytest.raises(UserError, match=r"\(height, width, 3\)"):
        inception_features(jnp.zeros((32, 32)), params={})
