"""The engine on small analytic problems."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stylesr_jax.search import engine
from stylesr_jax.search.engine import Problem, search

TRACES = []


def _adam(shared):
    return optax.chain(optax.scale_by_adam(), optax.scale(-1.0))


def _quadratic(shared, example, variables, progress):
    TRACES.append(1)
    residual = variables["x"] - example["target"]
    return {"fit": jnp.sum(residual**2), "size": shared["weight"] * jnp.sum(variables["x"] ** 2)}, (
        variables["x"]
    )


def _constant(progress):
    return jnp.ones(())


QUADRATIC = Problem(
    loss=_quadratic, optimiser=_adam, learning_rate=lambda shared: shared["rate"], rate=_constant
)


def _run(problem=QUADRATIC, targets=((1.0, 2.0), (3.0, -1.0)), steps=300, weight=0.0, **options):
    targets = jnp.asarray(targets)
    return search(
        problem,
        shared={"weight": jnp.asarray(weight), "rate": jnp.asarray(0.1)},
        examples={"target": targets},
        variables={"x": jnp.zeros_like(targets)},
        keys=jax.random.split(jax.random.key(0), len(targets)),
        steps=steps,
        **options,
    )


def test_finds_the_minimum_of_each_start():
    result = _run(weight=1.0)
    expected = np.array([[0.5, 1.0], [1.5, -0.5]])  # of |x - t|^2 + |x|^2
    np.testing.assert_allclose(result.variables["x"], expected, atol=1e-3)
    np.testing.assert_allclose(result.loss, [2.5, 5.0], atol=1e-4)
    assert result.steps == 300 and not result.interrupted
    np.testing.assert_allclose(sum(result.terms.values()), result.loss, rtol=1e-6)
    assert set(result.history) == {"fit", "size"}
    assert result.history["fit"].shape == (300, 2)


def test_one_compilation_serves_all_steps_and_settings():
    _run(steps=7)
    before = len(TRACES)
    for steps, weight in ((7, 0.5), (23, 0.1), (10, 2.0)):
        result = _run(steps=steps, weight=weight)
        assert result.steps == steps
        assert all(np.isfinite(v).all() for v in result.history.values())
    assert len(TRACES) == before


def test_chunking_does_not_change_the_result():
    whole, pieces = _run(steps=40, chunk=40), _run(steps=40, chunk=7)
    np.testing.assert_array_equal(whole.variables["x"], pieces.variables["x"])
    np.testing.assert_array_equal(whole.history["fit"], pieces.history["fit"])


def test_best_is_kept_although_the_search_overshoots():
    def rising(shared, example, variables, progress):
        # Least at progress 0.5, whatever the variables: later steps are worse.
        return {"loss": (progress - 0.5) ** 2 + 0.0 * jnp.sum(variables["x"])}, ()

    result = _run(Problem(rising, _adam, lambda s: s["rate"], _constant), steps=10)
    assert list(result.best_step) == [5, 5]


def test_a_start_that_turns_nan_is_frozen_and_leaves_the_others_alone():
    def breaks(shared, example, variables, progress):
        terms, output = _quadratic(shared, example, variables, progress)
        bad = (example["target"][0] > 2.0) & (progress >= 0.25)
        return {**terms, "trap": jnp.where(bad, jnp.nan, 0.0)}, output

    def couple(shared, examples, outputs):
        return {"tie": 0.0 * jnp.sum(outputs, axis=(1,))}

    for tie in (None, couple):
        problem = Problem(breaks, _adam, lambda s: s["rate"], _constant, couple=tie)
        result = _run(problem, steps=200)
        assert list(result.failed_at) == [-1, 50]
        assert result.best_step[1] < 50 and np.isfinite(result.loss[1])
        np.testing.assert_allclose(result.variables["x"][0], [1.0, 2.0], atol=1e-2)
        alone = _run(QUADRATIC, targets=((1.0, 2.0),), steps=200)
        np.testing.assert_allclose(result.variables["x"][0], alone.variables["x"][0], rtol=1e-5)


def test_a_start_that_fails_at_once_has_infinite_loss():
    def broken(shared, example, variables, progress):
        return {"loss": jnp.log(-1.0 - jnp.sum(variables["x"] ** 2))}, ()

    result = _run(Problem(broken, _adam, lambda s: s["rate"], _constant), steps=5)
    assert np.isinf(result.loss).all() and list(result.failed_at) == [0, 0]


def test_projection_sees_the_anchor():
    def ball(shared, example, key, variables, anchor):
        offset = variables["x"] - anchor["x"]
        norm = jnp.linalg.norm(offset)
        return {"x": anchor["x"] + offset * jnp.minimum(1.0, 0.5 / jnp.maximum(norm, 1e-9))}

    result = _run(Problem(_quadratic, _adam, lambda s: s["rate"], _constant, ball))
    np.testing.assert_allclose(np.linalg.norm(result.variables["x"], axis=1), 0.5, atol=1e-3)


def test_keys_reach_the_projection_and_differ_by_start_and_step():
    def walk(shared, example, key, variables, anchor):
        return {"x": variables["x"] + jax.random.normal(key, variables["x"].shape)}

    problem = Problem(_quadratic, _adam, lambda s: s["rate"], _constant, walk, keep="last")
    one, two = _run(problem, steps=5), _run(problem, steps=6)
    assert np.unique(np.round(two.variables["x"] - one.variables["x"], 4)).size == 4


def test_ctrl_c_keeps_the_best_so_far():
    def interrupt(done, total, terms):
        if done >= 20:
            raise KeyboardInterrupt

    result = _run(steps=1000, on_progress=interrupt)
    assert result.interrupted and result.steps == 20
    assert (result.loss < [5.0, 10.0]).all()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_step_lowers_for_every_platform(platform):
    shared = {"weight": jnp.asarray(0.0), "rate": jnp.asarray(0.1)}
    targets = jnp.ones((2, 3))
    variables = {"x": jnp.zeros((2, 3))}
    state = engine.begin(QUADRATIC, shared, {"target": targets}, variables)
    keys = jax.random.split(jax.random.key(0), 2)

    def run(shared, examples, raw_keys, total, state):
        keys = jax.random.wrap_key_data(raw_keys)
        return engine.advance(shared, examples, keys, total, state, problem=QUADRATIC, length=3)

    exported = jax.export.export(jax.jit(run), platforms=[platform])(
        shared, {"target": targets}, jax.random.key_data(keys), jnp.asarray(3), state
    )
    assert exported.platforms == (platform,)
