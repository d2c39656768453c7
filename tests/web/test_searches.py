"""Searches as the page sees them, on an untrained 32 px generator."""

import threading

import numpy as np
import pytest

from stylesr_jax.errors import UserError
from stylesr_jax.solver.observation import key_of, place_on_canvas
from stylesr_jax.solver.solve import solve
from stylesr_jax.web.request import Request, method_of
from stylesr_jax.web.searches import Models, updates

pytestmark = pytest.mark.usefixtures("kept_programs")
FEW = {
    "style_steps": "10",
    "coarse_steps": "0",
    "activation_steps": "0",
    "steps": "20",
}  # settings that the page has no fields for


@pytest.fixture(scope="module")
def models(tiny_files):
    return Models(generator=str(tiny_files["generator"]), prior=str(tiny_files["prior"]))


@pytest.fixture(scope="module")
def observation():
    values = np.random.default_rng(0).uniform(-0.6, 0.6, (8, 8, 3))
    return place_on_canvas(values.astype(np.float32))


def _request(**fields) -> Request:
    return Request(**({"method": "rls", "changes": FEW, "solutions": 2, "seed": 3} | fields))


def _heard(models, observation, request, stop=None, **options):
    stop = stop or threading.Event()
    return updates(models, observation, request, name="photo", stop=stop, pause=0.0, **options)


def test_the_page_finds_what_the_solver_finds(models, observation):
    *steps, last = _heard(models, observation, _request())
    (expected,) = solve(
        [observation],
        [key_of(3, "photo")],
        generator=models.generator,
        prior=models.prior,
        method=method_of(_request()),
        solutions=2,
    )
    np.testing.assert_array_equal(last.result.images, expected.images)
    told = [(one.solution, one.step, one.steps) for one in steps if one.preview is None]
    assert told == [(k, step, 30) for k in (0, 1) for step in (10, 20, 30)]


def test_losses_are_of_one_solution(models, observation):
    steps = [one for one in _heard(models, observation, _request()) if one.result is None]
    assert [len(one.losses) for one in steps if one.preview is None] == [1, 2, 3] * 2


def test_the_last_preview_is_the_best_so_far(models, observation):
    request = _request(solutions=1, changes={**FEW, "fidelity": "0"})
    *steps, last = _heard(models, observation, request)
    previews = [one.preview for one in steps if one.preview is not None]
    assert len(previews) == 3 and previews[0].shape == (32, 32, 3)
    generated = last.result.solutions[0].generated
    first, end = (np.abs(one - generated).mean() for one in (previews[0], previews[-1]))
    assert end < 0.1 * first


def test_stop_keeps_the_best(models, observation):
    stop = threading.Event()
    heard = _heard(models, observation, _request(), stop)
    assert next(heard).step == 10
    stop.set()
    *_, last = heard
    assert last.result.interrupted and len(last.result.solutions) == 1
    assert len(last.result.solutions[0].history["l1"]) in (20, 30)


def test_a_reader_that_goes_ends_the_search(models, observation):
    stop = threading.Event()
    heard = _heard(models, observation, _request(solutions=8), stop)
    next(heard)
    heard.close()
    assert stop.is_set()
    assert not [one for one in threading.enumerate() if "_search" in one.name]


def test_noise_is_where_it_was_drawn(models, observation):
    mask = np.zeros((64, 64), np.float32)
    mask[:16, :32] = 1.0  # the observation's upper two rows, left half
    request = _request(solutions=1, mask=mask, noise="0.4")
    *_, last = _heard(models, observation, request)
    missed = np.abs(last.result.solutions[0].low - observation.image).max(-1)
    assert missed[:2, :4].mean() > 20 * missed[4:, 5:].mean()


def test_a_search_begins_from_a_solution(models, observation):
    *_, first = _heard(models, observation, _request(solutions=1))
    start = np.asarray(first.result.solutions[0].latents.ws)
    *_, longer = _heard(models, observation, _request(solutions=1), start=start)
    assert longer.result.solutions[0].history["l1"][0] < first.result.solutions[0].history["l1"][0]


def test_a_method_without_a_search_has_a_result_alone(models, observation):
    (only,) = _heard(models, observation, _request(method="bicubic", changes={}, solutions=1))
    assert only.result.solutions[0].latents is None


def test_errors_reach_the_reader(models, observation):
    with pytest.raises(UserError, match="cannot begin from given styles"):
        list(_heard(models, observation, _request(method="csgm", changes={}), start=np.zeros(3)))
    with pytest.raises(UserError, match="solutions"):
        list(_heard(models, observation, _request(solutions=99)))
