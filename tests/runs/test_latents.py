"""Latents of files: our own, and those that other tools save."""

import os

import numpy as np
import pytest

from stylesr_jax.errors import UserError
from stylesr_jax.runs.latents import read_styles


@pytest.fixture
def wplus(tiny):
    shape = (3, tiny.num_ws, tiny.w_dim)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_solutions_are_counted_from_0(tiny, wplus, tmp_path):
    np.savez(tmp_path / "solutions.npz", ws=wplus, config="{}")
    np.testing.assert_array_equal(read_styles(str(tmp_path / "solutions.npz"), tiny), wplus[0])
    np.testing.assert_array_equal(read_styles(f"{tmp_path}/solutions.npz#2", tiny), wplus[2])
    with pytest.raises(UserError, match="holds 3, counted from 0"):
        read_styles(f"{tmp_path}/solutions.npz#3", tiny)
    with pytest.raises(UserError, match="holds 3, counted from 0"):
        read_styles(f"{tmp_path}/solutions.npz#{'9' * 5000}", tiny)


def test_arrays_of_other_tools(tiny, wplus, tmp_path):
    np.savez(tmp_path / "projected_w.npz", w=wplus[1:2])  # stylegan2-ada-pytorch's projector
    np.testing.assert_array_equal(read_styles(str(tmp_path / "projected_w.npz"), tiny), wplus[1])
    for name, array in (("plus", wplus[1]), ("double", wplus[1:2].astype(np.float64))):
        np.save(tmp_path / f"{name}.npy", array)
        found = read_styles(str(tmp_path / f"{name}.npy"), tiny)
        np.testing.assert_array_equal(found, wplus[1])
        assert found.dtype == np.float32


@pytest.mark.parametrize("shape", [(16,), (1, 16), (1, 1, 16)])
def test_one_style_is_every_layers(tiny, wplus, tmp_path, shape):
    np.save(tmp_path / "w.npy", wplus[0, 0].reshape(shape))
    found = read_styles(str(tmp_path / "w.npy"), tiny)
    np.testing.assert_array_equal(found, np.repeat(wplus[:1, 0], tiny.num_ws, axis=0))


def test_a_name_may_end_like_a_number(tiny, wplus, tmp_path):
    with open(tmp_path / "a#1", "wb") as file:
        np.save(file, wplus)
    np.testing.assert_array_equal(read_styles(f"{tmp_path}/a#1", tiny), wplus[0])
    np.testing.assert_array_equal(read_styles(f"{tmp_path}/a#1#2", tiny), wplus[2])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((18, 512), np.float32), r"takes W \(16,\) or W\+ \(\d+, 16\)"),
        (np.zeros((0, 16), np.float32), "takes W"),
        (np.float32(1.0), "takes W"),
        (np.full(16, np.nan, np.float32), "finite"),
        (np.full(16, np.inf, np.float32), "finite"),
        (np.full(16, 1e30), "numbers below"),
        (np.full(16, -(2**63)), "numbers below"),  # which has no absolute value in its type
        (np.array(["text"] * 16), "not numbers"),
        (np.ones(16, np.complex64), "not numbers"),
    ],
)
def test_other_arrays_are_refused(tiny, tmp_path, array, says):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=says):
        read_styles(str(tmp_path / "a.npy"), tiny)


def _torn(data):
    return data[: len(data) // 2]


def _huge(data):
    """The header says that there are 10^13 numbers."""
    shape = b"(16,), }"
    assert shape in data
    return data.replace(shape + b" " * 14, b"(16, 1000000000000), }")


@pytest.mark.parametrize("harm", [_torn, _huge, lambda _: b"", lambda _: b"PK\3\4 no archive"])
def test_damaged_files_are_said_in_a_line(tiny, tmp_path, harm):
    np.save(tmp_path / "a.npy", np.zeros(16))
    (tmp_path / "a.npy").write_bytes(harm((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(UserError, match="damaged, or no file of arrays"):
        read_styles(str(tmp_path / "a.npy"), tiny)


def test_nothing_in_a_file_is_executed(tiny, tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}] * 16, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged, or no file of arrays"):
        read_styles(str(tmp_path / "a.npy"), tiny)


def test_nobody_waits_at_a_pipe(tiny, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="a device or pipe"):
        read_styles(str(tmp_path / "pipe.npz"), tiny)


def test_missing_files_and_names_are_told(tiny, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_styles(str(tmp_path / "none.npz"), tiny)
    np.savez(tmp_path / "other.npz", mean=np.zeros(16))
    with pytest.raises(UserError, match="holds mean, but no array called ws"):
        read_styles(str(tmp_path / "other.npz"), tiny)
