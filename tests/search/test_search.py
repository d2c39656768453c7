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


class Quadratic(Problem):
    """|x - target|^2 + weight |x|^2, by Adam."""

    weight: jax.Array | float = 0.0
    rate: jax.Array | float = 0.1

    def loss(self, context, start, variables):
        TRACES.append(1)
        x = variables["x"]
        size = self.weight * jnp.sum(x**2)
        return {"fit": jnp.sum((x - start["target"]) ** 2), "size": size}, x

    def learning_rate(self, progress):
        return self.rate * jnp.ones_like(progress)

    def optimiser(self):
        return optax.chain(optax.scale_by_adam(), optax.scale(-1.0))


def _run(problem=None, targets=((1.0, 2.0), (3.0, -1.0)), steps=300, **options):
    targets = jnp.asarray(targets)
    return search(
        Quadratic() if problem is None else problem,
        context=(),
        starts={"target": targets},
        variables={"x": jnp.zeros_like(targets)},
        keys=jax.random.split(jax.random.key(0), len(targets)),
        steps=steps,
        **options,
    )


def test_finds_the_minimum_of_each_start():
    result = _run(Quadratic(weight=1.0))
    expected = np.array([[0.5, 1.0], [1.5, -0.5]])  # of |x - t|^2 + |x|^2
    np.testing.assert_allclose(result.variables["x"], expected, atol=1e-3)
    np.testing.assert_allclose(result.loss, [2.5, 5.0], atol=1e-4)
    assert result.steps == 300 and not result.interrupted
    np.testing.assert_allclose(sum(result.terms.values()), result.loss, rtol=1e-6)
    assert set(result.history) == {"fit", "size"}
    assert result.history["fit"].shape == (300, 2)


def test_one_compilation_serves_all_steps_and_numbers():
    _run(steps=7)
    before = len(TRACES)
    for steps, weight in ((7, 0.5), (23, 0.1), (10, 2.0)):
        result = _run(Quadratic(weight=weight, rate=0.1 * weight), steps=steps)
        assert result.steps == steps
        assert all(np.isfinite(v).all() for v in result.history.values())
    assert len(TRACES) == before


def test_chunking_does_not_change_the_result():
    whole, pieces = _run(steps=40, chunk=40), _run(steps=40, chunk=7)
    np.testing.assert_array_equal(whole.variables["x"], pieces.variables["x"])
    np.testing.assert_array_equal(whole.history["fit"], pieces.history["fit"])


class Overshooting(Quadratic):
    """Least after five steps of 1 along a slope, later steps are worse."""

    def loss(self, context, start, variables):
        return {"loss": (jnp.sum(variables["x"]) - 5.0) ** 2}, ()

    def optimiser(self):
        return optax.stateless(lambda updates, _: jax.tree.map(jnp.ones_like, updates))


def test_best_is_kept_although_the_search_overshoots():
    result = _run(Overshooting(rate=1.0), targets=((0.0,), (1.0,)), steps=10)
    assert list(result.best_step) == [5, 5]
    np.testing.assert_array_equal(result.variables["x"], 5.0)


class Breaking(Quadratic):
    """NaN for targets above 2 once x has come half of the way."""

    def loss(self, context, start, variables):
        terms, output = super().loss(context, start, variables)
        target = start["target"][0]
        bad = (target > 2.0) & (variables["x"][0] > 0.5 * target)
        return {**terms, "trap": jnp.where(bad, jnp.nan, 0.0)}, output


class Tied(Breaking):
    """With a term that ties the starts, to no effect."""

    def batch_terms(self, context, starts, outputs):
        return {"tie": 0.0 * jnp.sum(outputs, axis=(1,))}


@pytest.mark.parametrize("problem", [Breaking(), Tied(tied=True)])
def test_a_start_that_turns_nan_is_frozen_and_leaves_the_others_alone(problem):
    result = _run(problem, steps=200)
    assert result.failed_at[0] == -1 and 5 < result.failed_at[1] < 50
    assert result.best_step[1] < result.failed_at[1] and np.isfinite(result.loss[1])
    np.testing.assert_allclose(result.variables["x"][0], [1.0, 2.0], atol=1e-2)
    alone = _run(targets=((1.0, 2.0),), steps=200)
    np.testing.assert_allclose(result.variables["x"][0], alone.variables["x"][0], rtol=1e-5)


def test_tied_starts_are_not_spread_over_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (engine.STARTS,))
    with pytest.raises(ValueError, match="tied together"):
        _run(Tied(tied=True), steps=1, mesh=mesh)


class Broken(Quadratic):
    def loss(self, context, start, variables):
        return {"loss": jnp.log(-1.0 - jnp.sum(variables["x"] ** 2))}, ()


def test_a_start_that_fails_at_once_has_infinite_loss():
    result = _run(Broken(), steps=5)
    assert np.isinf(result.loss).all() and list(result.failed_at) == [0, 0]


class InBall(Quadratic):
    def project(self, variables, anchor):
        offset = variables["x"] - anchor["x"]
        norm = jnp.linalg.norm(offset)
        return {"x": anchor["x"] + offset * jnp.minimum(1.0, 0.5 / jnp.maximum(norm, 1e-9))}


def test_projection_sees_the_anchor():
    result = _run(InBall())
    np.testing.assert_allclose(np.linalg.norm(result.variables["x"], axis=1), 0.5, atol=1e-3)


class Walking(Quadratic):
    """Goes where its keys say; says itself where it stands."""

    samples = True

    def optimiser(self):
        def update(updates, state, params=None, *, key, **_):
            place = {"x": jax.random.key_data(key).astype(jnp.float32) / 2.0**32}
            return jax.tree.map(jnp.subtract, place, params), updates

        return optax.GradientTransformationExtraArgs(lambda params: params, update)

    def learning_rate(self, progress):
        return jnp.ones_like(progress)

    def final_variables(self, optimiser_state):
        return optimiser_state


def test_keys_reach_the_optimiser_and_differ_by_start_and_step():
    # The gradient that the optimiser keeps is 2 (x - target) of the last x.
    draws = [np.asarray(_run(Walking(), steps=steps).variables["x"]) / 2 for steps in (5, 6)]
    assert np.unique(np.round(draws, 4)).size == 8


def test_a_sampler_says_where_it_ended_and_that_is_evaluated():
    result = _run(Walking(), steps=5)
    x = np.asarray(result.variables["x"])
    expected = np.sum((x - np.asarray([[1.0, 2.0], [3.0, -1.0]])) ** 2, axis=1)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-5)
    assert list(result.best_step) == [5, 5]


def test_ctrl_c_keeps_the_best_so_far():
    def interrupt(done, total, terms):
        if done >= 20:
            raise KeyboardInterrupt

    result = _run(steps=1000, on_progress=interrupt)
    assert result.interrupted and result.steps == 20
    assert (result.loss < [5.0, 10.0]).all()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_step_lowers_for_every_platform(platform):
    problem, targets = Quadratic(), jnp.ones((2, 3))
    variables = {"x": jnp.zeros((2, 3))}
    state = engine.begin(problem, (), {"target": targets}, variables)
    keys = jax.random.split(jax.random.key(0), 2)

    def run(problem, starts, raw_keys, total, state):
        keys = jax.random.wrap_key_data(raw_keys)
        return engine.advance(problem, (), starts, keys, total, state, length=3)

    exported = jax.export.export(jax.jit(run), platforms=[platform])(
        problem, {"target": targets}, jax.random.key_data(keys), jnp.asarray(3), state
    )
    assert exported.platforms == (platform,)
