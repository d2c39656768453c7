"""The one search engine: gradient steps compiled once, batched over starts.

It knows nothing of faces. A `Problem` says how one start turns variables into a loss; the engine
evaluates it for a batch of starts, updates, projects, keeps each start's best variables and
freezes a start whose loss or gradient stops being finite.

The layout follows optax (pure functions, state in a NamedTuple) and optimistix (the loop is
written once, solvers plug in).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stylesr_jax.runtime import program_cache as programs

STARTS = "starts"  # the mesh axis that the starts of a batch are spread over
Variables = Any  # a pytree of float arrays: what is searched for one start
Shared = Any  # a pytree that all starts share: generator, prior, settings
Example = Any  # a pytree of what belongs to one start: target, mask
Terms = dict[str, Array]  # name -> scalar, weighted: they sum to the loss
Rate = Callable[[Array], Array]  # progress in [0, 1) -> factor of the learning rate


def _identity(
    shared: Shared, example: Example, key: Array, variables: Variables, anchor: Variables
) -> Variables:
    return variables


@dataclass(frozen=True)
class Problem:
    """What the engine needs to know; hashable, so that one compilation serves all its runs.

    Attributes:
        loss: (shared, example, variables, progress) -> (terms, output) for one start.
        optimiser: shared -> optax transformation that yields a *descent direction of unit
            rate*, such as scale_by_adam followed by scale(-1). One that takes extra arguments
            is given the step's `rate`, a `key` and the start's `loss`.
        learning_rate: shared -> scalar; `rate` multiplies it along the search.
        project: (shared, example, key, variables, anchor) -> variables after each update;
            `anchor` holds the variables that the search began with.
        couple: (shared, examples, outputs) -> terms of shape (B,) that tie the starts of a
            batch together, or None; outputs of failed starts come as zeros.
        keep: "best" returns each start's variables of least loss, "last" those of the end.
        terms: the names of the loss's terms; empty has them found by tracing it.
        pick: optimiser state -> variables: returns what it says of the end instead.
        refresh: (shared, example, variables) -> example, called before the first and then every
            `refresh_every` steps, where a loss holds only near the variables it was set up at.
    """

    loss: Callable[[Shared, Example, Variables, Array], tuple[Terms, Any]]
    optimiser: Callable[[Shared], optax.GradientTransformation]
    learning_rate: Callable[[Shared], Array]
    rate: Rate
    project: Callable[[Shared, Example, Array, Variables, Variables], Variables] = _identity
    couple: Callable[[Shared, Example, Any], Terms] | None = None
    keep: Literal["best", "last"] = "best"
    terms: tuple[str, ...] = ()
    pick: Callable[[Any], Variables] | None = None
    refresh: Callable[[Shared, Example, Variables], Example] | None = None
    refresh_every: int = 20


class SearchState(NamedTuple):
    """Everything that changes along a search; leading axis B (starts) but for `step`."""

    step: Array  # int32 scalar
    variables: Variables
    anchor: Variables  # the variables at the beginning
    optimiser: Any
    best: Variables
    best_loss: Array  # (B,) float32, +inf before the first evaluation
    best_terms: Terms  # (B,) each: the terms of the best
    best_step: Array  # (B,) int32
    failed_at: Array  # (B,) int32: the step whose loss or gradient was not finite, else -1


class SearchResult(NamedTuple):
    """What a search returns; numpy arrays but for the variables."""

    variables: Variables  # (B, ...): the best, or the last, as the problem says
    loss: np.ndarray  # (B,) loss of these variables
    terms: dict[str, np.ndarray]  # (B,) each: their weighted terms
    best_step: np.ndarray  # (B,) the step that they come from
    failed_at: np.ndarray  # (B,) -1 where all went well
    history: dict[str, np.ndarray]  # term -> (steps, B)
    optimiser: Any  # (B, ...): the optimiser's last state
    steps: int  # steps that were made
    interrupted: bool  # by Ctrl-C


Progress = Callable[[int, int, dict[str, np.ndarray]], None]  # step, total, terms of the last step


def _select(chosen: Array, a: Any, b: Any) -> Any:
    """Per start: a where chosen (B,), else b."""

    def pick(x: Array, y: Array) -> Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(pick, a, b)


def _all_finite(tree: Any) -> Array:
    """(B,) whether every number of each start is finite."""
    leaves = jax.tree.leaves(tree)
    flags = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in leaves]
    return jnp.stack(flags).all(axis=0)


@partial(jax.jit, static_argnames=("problem",))
def begin(problem: Problem, shared: Shared, examples: Example, variables: Variables) -> SearchState:
    """The state before the first step; variables have the starts as their leading axis."""
    n_starts = jax.tree.leaves(variables)[0].shape[0]
    terms: Any = problem.terms
    if not terms:
        run = partial(evaluate, problem)
        _, terms = jax.eval_shape(run, shared, examples, variables, jnp.zeros(()))
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        anchor=variables,
        optimiser=jax.vmap(problem.optimiser(shared).init)(variables),
        best=variables,
        best_loss=jnp.full((n_starts,), jnp.inf, jnp.float32),
        best_terms={name: jnp.full((n_starts,), jnp.inf, jnp.float32) for name in terms},
        best_step=jnp.zeros((n_starts,), jnp.int32),
        failed_at=jnp.full((n_starts,), -1, jnp.int32),
    )


# Jitted inside other jitted functions, `evaluate` and `step` are traced once for all their uses:
# with a generator in the loss, tracing takes longer than loading the compiled program.
@partial(jax.jit, static_argnames=("problem",))
def evaluate(
    problem: Problem, shared: Shared, examples: Example, variables: Variables, progress: Array
) -> tuple[Array, Terms]:
    """Loss and weighted terms of each start, shape (B,)."""
    one = partial(problem.loss, shared)
    terms, outputs = jax.vmap(one, in_axes=(0, 0, None))(examples, variables, progress)
    losses = sum(terms.values())
    if problem.couple is not None:
        sound = jnp.isfinite(losses)
        zeros = jax.tree.map(jnp.zeros_like, outputs)
        ties = problem.couple(shared, examples, _select(sound, outputs, zeros))
        terms = {**terms, **ties}
        losses = losses + sum(ties.values())
    return losses, terms  # type: ignore[return-value]


@partial(jax.jit, static_argnames=("problem",))
def step(
    problem: Problem,
    shared: Shared,
    examples: Example,
    keys: Array,
    total: Array,
    state: SearchState,
) -> tuple[SearchState, Terms]:
    """One step of every start: value, gradient, update, projection, book-keeping.

    A start's gradient depends on its own variables only (unless `couple` ties them), so that the
    sum over starts can be differentiated at once without one start's NaN reaching another.
    """
    progress = state.step.astype(jnp.float32) / total.astype(jnp.float32)

    def summed(variables: Variables) -> tuple[Array, tuple[Array, Terms]]:
        losses, terms = evaluate(problem, shared, examples, variables, progress)
        return jnp.sum(losses), (losses, terms)

    gradient, (losses, terms) = jax.grad(summed, has_aux=True)(state.variables)
    running = state.failed_at < 0
    finite = jnp.isfinite(losses) & _all_finite(gradient)
    better = running & jnp.isfinite(losses) & (losses < state.best_loss)

    rate = problem.learning_rate(shared) * problem.rate(progress)
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step)
    optimiser = optax.with_extra_args_support(problem.optimiser(shared))

    def update(gradient: Any, state: Any, variables: Any, key: Array, loss: Array) -> Any:
        own_key = jax.random.fold_in(key, 1)  # the projection draws from `key`
        return optimiser.update(gradient, state, variables, rate=rate, key=own_key, loss=loss)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
        direction, optimiser_state = jax.vmap(update)(
            gradient, state.optimiser, state.variables, step_keys, losses
        )
    moved = jax.tree.map(lambda v, d: v + rate * d, state.variables, direction)
    moved = jax.vmap(partial(problem.project, shared))(examples, step_keys, moved, state.anchor)
    going = running & finite
    return (
        SearchState(
            step=state.step + 1,
            variables=_select(going, moved, state.variables),
            anchor=state.anchor,
            optimiser=_select(going, optimiser_state, state.optimiser),
            best=_select(better, state.variables, state.best),
            best_loss=jnp.where(better, losses, state.best_loss),
            best_terms=_select(better, terms, state.best_terms),
            best_step=jnp.where(better, state.step, state.best_step),
            failed_at=jnp.where(running & ~finite, state.step, state.failed_at),
        ),
        terms,
    )


# Everything but the step counter has the starts as its leading axis.
_STATE = SearchState._make([P(), *[P(STARTS)] * (len(SearchState._fields) - 1)])


def spread(run: Callable[..., Any], mesh: Mesh, inputs: Any, outputs: Any) -> Callable[..., Any]:
    """`run` on every device's own part; unchecked, as the devices exchange nothing."""
    return jax.shard_map(run, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


@partial(jax.jit, static_argnames=("problem", "length", "mesh"))
def advance(
    shared: Shared,
    examples: Example,
    keys: Array,
    total: Array,
    state: SearchState,
    *,
    problem: Problem,
    length: int,
    mesh: Mesh | None = None,
) -> tuple[SearchState, Terms]:
    """Up to `length` steps in one compiled scan; steps beyond `total` are skipped.

    On a mesh every device runs the same program on its own part of the starts, so a start's
    numbers depend on how many starts a device holds, not on how many devices there are.

    Returns:
        The new state and each term's history (length, B), NaN where steps were skipped.
    """
    run = partial(_advance, problem, length)
    if mesh is not None:
        parts = (P(), P(STARTS), P(STARTS), P(), _STATE)
        run = spread(run, mesh, parts, (_STATE, P(None, STARTS)))
    return run(shared, examples, keys, total, state)


def _advance(
    problem: Problem,
    length: int,
    shared: Shared,
    examples: Example,
    keys: Array,
    total: Array,
    state: SearchState,
) -> tuple[SearchState, Terms]:
    examples = _refreshed(problem, shared, examples, state.variables)
    one = partial(step, problem, shared, examples, keys, total)
    _, shapes = jax.eval_shape(one, state)

    def skip(state: SearchState) -> tuple[SearchState, Terms]:
        return state, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    def body(state: SearchState, _: None) -> tuple[SearchState, Terms]:
        return jax.lax.cond(state.step < total, one, skip, state)

    return jax.lax.scan(body, state, None, length=length)


def _refreshed(
    problem: Problem, shared: Shared, examples: Example, variables: Variables
) -> Example:
    if problem.refresh is None:
        return examples
    return jax.vmap(partial(problem.refresh, shared))(examples, variables)


@partial(jax.jit, static_argnames=("problem", "mesh"))
def _close(
    problem: Problem,
    shared: Shared,
    examples: Example,
    state: SearchState,
    *,
    mesh: Mesh | None = None,
) -> SearchState:
    """Evaluate the variables that the optimiser's state says it ended with."""
    run = partial(_evaluate_picked, problem)
    if mesh is not None:
        run = spread(run, mesh, (P(), P(STARTS), _STATE), _STATE)
    return run(shared, examples, state)


def _evaluate_picked(
    problem: Problem, shared: Shared, examples: Example, state: SearchState
) -> SearchState:
    assert problem.pick is not None
    picked = jax.vmap(problem.pick)(state.optimiser)
    examples = _refreshed(problem, shared, examples, picked)
    losses, terms = evaluate(problem, shared, examples, picked, jnp.ones(()))
    steps = jnp.full_like(state.best_step, state.step)
    return state._replace(best=picked, best_loss=losses, best_terms=terms, best_step=steps)


def _closed(problem: Problem, state: SearchState, after: SearchState, terms: Terms) -> SearchState:
    """The state at the end, from one more step (`after`, with its `terms`) that is not counted.

    That step evaluates the variables after the last update, so that no update is wasted, in a
    program that is compiled already.
    """
    if problem.keep == "best":
        kept = {"variables": state.variables, "optimiser": state.optimiser}
        return after._replace(step=state.step, failed_at=state.failed_at, **kept)
    last = {name: values[0] for name, values in terms.items()}
    return state._replace(
        best=state.variables,
        best_loss=sum(last.values()),
        best_terms=last,
        best_step=jnp.full_like(state.best_step, state.step),
    )


def search(
    problem: Problem,
    *,
    shared: Shared,
    examples: Example,
    variables: Variables,
    keys: Array,
    steps: int,
    chunk: int = 10,
    mesh: Mesh | None = None,
    close: bool = True,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Run a search to its end, or to Ctrl-C, and return the best of each start.

    Args:
        problem: what is searched for.
        shared: pytree that all starts share; a compiled argument, never a constant.
        examples: pytree with leading axis B.
        variables: where the starts begin, leading axis B.
        keys: (B,) one PRNG key per start, for problems that draw as they go.
        steps: gradient steps; not part of what is compiled.
        chunk: steps per compiled call, between which progress is reported; a problem with a
            `refresh` has its own.
        mesh: devices to spread the starts over, along its axis "starts"; B is a multiple of
            their number, and no problem with a `couple` may be spread.
        close: evaluate the variables after the last update too, which a problem that keeps the
            last ones needs for its result's loss and terms; the history does not have them.
        on_progress: called after each chunk.

    Returns:
        The result; a start that failed before its first finite loss has loss +inf.
    """
    if mesh is not None:
        if problem.couple is not None:
            raise ValueError("starts that are tied together cannot be spread over devices")
        shared = jax.device_put(shared, NamedSharding(mesh, P()))
        parts = NamedSharding(mesh, P(STARTS))
        examples, variables, keys = jax.device_put((examples, variables, keys), parts)
    state = begin(problem, shared, examples, variables)
    total = jnp.asarray(steps, jnp.int32)
    chunk = chunk if problem.refresh is None else problem.refresh_every

    def run(total: Array, state: SearchState) -> tuple[SearchState, Terms]:
        args = (shared, examples, keys, total, state)
        options = {"problem": problem, "length": chunk, "mesh": mesh}
        out = (state, state.best_terms)
        return programs.call(advance, *args, out=out, keep=mesh is None, **options)

    records: list[dict[str, np.ndarray]] = []
    done, interrupted = 0, False
    try:
        while done < steps:
            state, terms = run(total, state)
            kept = min(chunk, steps - done)
            records.append({name: np.asarray(value)[:kept] for name, value in terms.items()})
            done += kept
            if on_progress is not None:
                on_progress(done, steps, {name: v[-1] for name, v in records[-1].items()})
            if bool((state.failed_at >= 0).all()):
                break
    except KeyboardInterrupt:
        interrupted = True
    if not close:
        pass
    elif problem.pick is not None:
        state = _close(problem, shared, examples, state, mesh=mesh)
    elif not interrupted or (problem.keep == "last" and done):
        after, terms = run(total + 1, state)
        state = _closed(problem, state, after, terms)
    elif problem.keep == "last":
        state = state._replace(best=state.variables)  # not evaluated yet: their loss is inf
    names = records[0] if records else {}
    return SearchResult(
        variables=state.best,
        loss=np.asarray(state.best_loss),
        terms={name: np.asarray(value) for name, value in state.best_terms.items()},
        best_step=np.asarray(state.best_step),
        failed_at=np.asarray(state.failed_at),
        history={name: np.concatenate([r[name] for r in records]) for name in names},
        optimiser=state.optimiser,
        steps=int(state.step),
        interrupted=interrupted,
    )
