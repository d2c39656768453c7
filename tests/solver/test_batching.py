"""How many starts are searched together."""

import jax
import jax.numpy as jnp
import pytest

from convert.state_dict import prepare, random_state
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.methods import method_named
from stylesr_jax.solver import batching
from stylesr_jax.solver.batching import (
    choose_batch,
    fitting,
    search_bytes,
    whole_images,
    within_memory,
)
from stylesr_jax.solver.solve import device_mesh


@pytest.mark.parametrize(
    ("free", "most", "found"),
    [(99, 8, 1), (150, 8, 1), (160, 8, 2), (219, 8, 2), (221, 8, 3), (10**6, 8, 8), (10**6, 1, 1)],
)
def test_as_many_starts_as_fit(free, most, found):
    assert fitting(most, free, lambda batch: 40 + 60 * batch) == found


def test_what_was_predicted_is_checked():
    """Memory that grows faster than the first two starts let expect."""
    size = fitting(64, 10_000, lambda batch: batch**2 * 10)
    assert size > 1 and size**2 * 10 <= 10_000


def _choose(wanted, **changes):
    options = {"starts": 8, "solutions": 1, "mesh": None, "method": method_named("rls")()}
    parts = {"side": 8, "generator": None, "prior": None, "perceptual": None}
    return choose_batch(wanted, **{**options, **parts, **changes})


def test_cpus_search_one_start_at_a_time_and_measure_nothing(monkeypatch):
    monkeypatch.setattr(batching, "search_bytes", None)
    assert _choose(None) == 1
    assert _choose(4) == 4 and _choose(100) == 8  # what is asked for, but no more than there is


def test_accelerators_take_what_fits(monkeypatch):
    monkeypatch.setattr(batching, "free_bytes", lambda: 1000)
    monkeypatch.setattr(batching, "search_bytes", lambda batch, **_: 100 + 200 * batch)
    assert _choose(None) == 4 and _choose(None, starts=3) == 3
    assert _choose(None, method=method_named("bicubic")()) == 1
    tied = method_named("rls").resolve(changes={"diversity": 0.1})
    assert _choose(None, method=tied) == 1


@pytest.mark.parametrize(
    ("batch", "devices", "solutions", "found"),
    [
        (61, 1, 4, 60),
        (64, 1, 4, 64),
        (7, 1, 4, 4),
        (3, 1, 4, 2),
        (1, 1, 4, 1),
        (5, 2, 4, 4),
        (3, 8, 5, 0),
        (61, 1, 1, 61),
    ],
)
def test_a_measured_batch_holds_whole_images(batch, devices, solutions, found):
    """So that those which fill whole batches together are few; where none does, it stays."""
    assert whole_images(batch, devices, solutions) == (found or batch)


def test_devices_report_what_is_free(monkeypatch):
    class Device:
        platform = "gpu"

        def __init__(self, limit, used):
            self.stats = {"bytes_limit": limit, "bytes_in_use": used}

        def memory_stats(self):
            return self.stats

    assert batching.free_bytes() is None  # a CPU
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(1000, 100), Device(1000, 500)])
    assert batching.free_bytes() == int(batching.SHARE * 500)


def test_starts_are_halved_until_memory_suffices():
    tried = []

    def call(batch):
        tried.append(batch)
        if batch > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return "done"

    assert within_memory(14, call) == ("done", 3) and tried == [14, 7, 3]

    def broken(batch):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        within_memory(8, broken)


def test_the_compiler_says_what_starts_take(tiny_prior):
    state = random_state(seed=0, resolution=8, channel_base=128, z_dim=16, w_dim=16)
    params, config = prepare(state, name="tiny-8")
    generator = Generator(jax.tree.map(jnp.asarray, params), {}, None, config)
    generator = generator.replace(statistics=measure_statistics(jax.random.key(0), generator))
    options = {"side": 4, "generator": generator, "prior": tiny_prior, "perceptual": None}
    options["method"] = method_named("rls")()
    one, two = (search_bytes(batch, **options) for batch in (1, 2))
    weights = sum(x.nbytes for x in jax.tree.leaves(generator))
    assert weights < one < two < 2 * one
    assert device_mesh() is None  # the tests' own process has one device
