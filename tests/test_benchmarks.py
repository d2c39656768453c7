"""The benchmarks' arithmetic; nothing here is timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common import count_gflop, interleaved, machine_line, ratios
from benchmarks.references import ADA, MOBILE, detect, mobile_noise, mobile_state, style_inverse
from benchmarks.step import PROBLEM, per_start
from stylesr_jax.errors import UserError
from stylesr_jax.runtime import describe_machine


def test_gflop_of_products_and_convolutions():
    a, b = jnp.zeros((10, 20)), jnp.zeros((20, 30))
    assert count_gflop(jnp.dot, a, b) == pytest.approx(2 * 10 * 20 * 30 / 1e9)
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3) / 1e9
    assert count_gflop(convolve, image, kernel) == pytest.approx(expected)
    # Inside other compiled functions, and whatever is element-wise left out.
    nested = jax.jit(lambda image, kernel: jnp.tanh(jax.jit(convolve)(image, kernel)))
    assert count_gflop(nested, image, kernel) == pytest.approx(expected)


def test_everyone_takes_a_turn_in_every_round():
    order = []

    def call(name, seconds):
        return lambda: order.append(name) or seconds.pop(0)

    found = interleaved({"a": call("a", [1.0, 2.0, 4.0]), "b": call("b", [3.0, 4.0, 40.0])}, 3)
    assert order == ["a", "b"] * 3
    assert found == {"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 40.0]}
    assert ratios(found, "a") == {"a": 1.0, "b": 3.0}  # of 3, 2 and 10


def test_a_start_is_compared_with_the_same_generators_first_case():
    cases = [
        {"generator": name, "batch": batch, "seconds": seconds}
        for name, batch, seconds in (("a", 1, 1.0), ("a", 4, 3.0), ("b", 2, 8.0), ("b", 4, 8.0))
    ]
    assert [per_start(case, cases) for case in cases] == [1.0, 0.75, 1.0, 0.5]


def test_the_machine_fits_on_a_line():
    machine = describe_machine()
    line = machine_line(machine)
    assert "\n" not in line and machine["date"] in line and machine["device"] in line
    assert f"jax {jax.__version__}" in line


def test_the_step_is_an_l1_distance_to_block_means():
    class Flat:
        def synthesise(self, ws):
            return jnp.full((1, 32, 32, 3), 0.25)

    terms, _ = PROBLEM.loss(Flat(), jnp.full((16, 16, 3), 1.0), jnp.zeros((2, 4)), jnp.zeros(()))
    assert float(terms["l1"]) == pytest.approx(0.75)


# --- references -----------------------------------------------------------------------------


def test_checkouts_are_told_apart(tmp_path):
    for kind, files in (
        (ADA, ("training/networks.py", "dnnlib/util.py")),
        (MOBILE, ("core/models/mobile_synthesis_network.py",)),
    ):
        for name in files:
            file = tmp_path / kind / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        assert detect(tmp_path / kind) == kind
    with pytest.raises(UserError, match="no checkout"):
        detect(tmp_path)


def test_demodulation_is_undone():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 8, 3, 3))
    inverse, scale = rng.uniform(0.5, 2.0, 8), 0.1

    def norms(weight, inverse):
        scaled = scale * inverse[:, None, None] * weight
        return np.sqrt(np.square(scaled).sum(axis=(1, 2, 3)))

    demodulated = weight / norms(weight, inverse)[:, None, None, None]
    found = style_inverse(demodulated, scale)
    np.testing.assert_allclose(norms(demodulated, found), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, inverse, rtol=1e-3)  # more equations than unknowns
    # Fewer equations than unknowns have many solutions, some of them with negative squares.
    few = rng.normal(size=(6, 6, 3, 3)) * rng.uniform(0.1, 3.0, (6, 6, 1, 1))
    few /= norms(few, np.ones(6))[:, None, None, None]
    assert np.isfinite(style_inverse(few, scale)).all()


def test_mobile_weights_go_back_to_the_references_layout(mobile):
    params, channels = mobile.params, mobile.config.channels
    state = mobile_state(params, channels)
    assert state["conv1.conv.weight"].shape == (512, 512, 3, 3)
    assert state["layers.0.conv1.conv.weight_dw"].shape == (128, 1, 3, 3)
    assert state["layers.6.conv2.conv.weight_permute"].shape == (64, 64, 1, 1)
    assert state["layers.6.to_img.conv.weight"].shape == (12, 64, 1, 1)
    assert all(value.dtype == np.float32 for value in state.values())
    # The reference's second high band of the first channel is our first channel of the third band.
    ours = np.asarray(params["synthesis"]["block0"]["up_modulation"]["bias"])
    assert state["layers.0.up.modulation.bias"][128 + 1] == ours[2 * 128]
    noise = mobile_noise(params["noise"])
    assert [n.shape for n in noise[:2]] == [(1, 1, 4, 4), (2, 1, 8, 8)]
    assert len(noise) == len(channels)
