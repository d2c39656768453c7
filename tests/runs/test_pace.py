"""How long solutions take here: remembered, or guessed."""

import dataclasses
from pathlib import Path

import pytest

from stylesr_jax.runs import pace
from stylesr_jax.runs.plan import Plan, variant
from stylesr_jax.runtime.weights import DEFAULT


@pytest.fixture
def plan(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "cache"))
    return Plan(variants=(variant("csgm"),), out=Path("out"), generator=tiny, lr_size=None)


def test_what_the_last_searches_took_is_remembered_by_kind(plan):
    assert pace.seconds_of_a_solution(plan) is None and pace.expected_seconds(plan, 3) is None
    pace.remember(plan, 8.0)
    assert pace.seconds_of_a_solution(plan) == 8.0
    pace.remember(plan, 4.0)
    assert pace.expected_seconds(plan, 3) == 18.0
    other = dataclasses.replace(plan, variants=(variant("csgm", evaluations=50),))
    assert pace.seconds_of_a_solution(other) is None


def test_the_embedded_generator_has_a_first_guess_that_grows_with_the_work(plan):
    config = dataclasses.replace(plan.generator.config, name=DEFAULT)
    named = dataclasses.replace(plan, generator=dataclasses.replace(plan.generator, config=config))
    few, many = (pace.expected_seconds(named, n) for n in (1, 10))
    assert few is not None and many is not None and 0 < few < many


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}', '{"a": null}', "[" * 100_000])
def test_a_damaged_record_is_none(plan, text):
    pace._file().parent.mkdir(parents=True)
    pace._file().write_text(text)
    assert pace.seconds_of_a_solution(plan) is None
    pace.remember(plan, 8.0)
    assert pace.seconds_of_a_solution(plan) == 8.0


def test_the_oldest_kinds_are_forgotten(plan, monkeypatch):
    monkeypatch.setattr(pace, "MOST", 2)
    plans = [
        dataclasses.replace(plan, variants=(variant("csgm", evaluations=n),)) for n in (1, 2, 3)
    ]
    for one in plans:
        pace.remember(one, 1.0)
    assert [pace.seconds_of_a_solution(one) for one in plans] == [None, 1.0, 1.0]


def test_a_cache_that_cannot_be_written_remembers_nothing(plan, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    pace.remember(plan, 8.0)
    assert pace.seconds_of_a_solution(plan) is None
