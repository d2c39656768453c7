"""The one search engine: gradient steps compiled once, batched over starts.

It knows nothing of faces. A `Problem` says how one start turns variables into a loss; the engine
evaluates a batch of starts, updates, projects, keeps each start's best variables and freezes a
start whose loss or gradient stops being finite.

The layout follows optax (pure functions, state in a NamedTuple) and optimistix (the loop is
written once, solvers plug in).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int, Key

from stylesr_jax.runtime.pytrees import PyTreeNode

STARTS = "starts"  # the mesh axis that the starts of a batch are spread over
Variables = Any  # a pytree of float arrays: what is searched for one start
Context = Any  # a pytree that all starts share: generator, prior, degradation
Start = Any  # a pytree of what belongs to one start: target, mask
Terms = dict[str, Array]  # name -> scalar, weighted: they sum to the loss


class Problem(PyTreeNode):
    """What is minimised, and how: a pytree whose numbers are leaves and whose choices are static.

    Numbers can so be changed without compiling again; one compilation serves all problems of a
    class with equal choices.

    Attributes:
        steps: gradient steps of the search; the engine's callers read it.
        tied: whether `batch_terms` ties the starts of a batch together.
    """

    steps: Array | int = 0
    tied: bool = struct.field(pytree_node=False, default=False)
    samples: ClassVar[bool] = False  # whether `final_variables` says where the search ended

    def loss(self, context: Context, start: Start, variables: Variables) -> tuple[Terms, Any]:
        """Weighted terms of one start, and an output for `batch_terms`."""
        raise NotImplementedError

    def learning_rate(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """The rate of a step, `progress` in [0, 1)."""
        raise NotImplementedError

    def optimiser(self) -> optax.GradientTransformation:
        """Yields a *descent direction of unit rate*, such as Adam's followed by scale(-1).

        One that takes extra arguments is given the step's `rate`, a `key` and the start's `loss`.
        """
        raise NotImplementedError

    def project(self, variables: Variables, anchor: Variables) -> Variables:
        """Variables after an update, put back where they belong; `anchor` is where they began."""
        return variables

    def batch_terms(self, context: Context, starts: Start, outputs: Any) -> Terms:
        """Terms (B,) that tie the starts of a batch; outputs of failed starts come as zeros."""
        return {}

    def final_variables(self, optimiser_state: Any) -> Variables:
        """Of a problem that samples: where the search stands, by its optimiser's state."""
        raise NotImplementedError


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

    variables: Variables  # (B, ...): the best, or where a sampler stands
    loss: np.ndarray  # (B,) loss of these variables
    terms: dict[str, np.ndarray]  # (B,) each: their weighted terms
    best_step: np.ndarray  # (B,) the step that they come from
    failed_at: np.ndarray  # (B,) -1 where all went well
    history: dict[str, np.ndarray]  # term -> (steps, B)
    optimiser: Any  # (B, ...): the optimiser's last state
    steps: int  # steps that were made
    interrupted: bool  # by Ctrl-C


Progress = Callable[[int, int, dict[str, np.ndarray]], None]  # step, total, terms of the last step


def select(chosen: Array | np.ndarray, a: Any, b: Any) -> Any:
    """Per start: a where chosen (B,), else b."""

    def pick(x: Array, y: Array) -> Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(pick, a, b)


def _all_finite(tree: Any) -> Array:
    """(B,) whether every number of each start is finite."""
    leaves = jax.tree.leaves(tree)
    flags = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in leaves]
    return jnp.stack(flags).all(axis=0)


@jax.jit
def begin(problem: Problem, context: Context, starts: Start, variables: Variables) -> SearchState:
    """The state before the first step; variables have the starts as their leading axis."""
    n_starts = jax.tree.leaves(variables)[0].shape[0]
    _, terms = jax.eval_shape(evaluate, problem, context, starts, variables)
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        anchor=variables,
        optimiser=jax.vmap(problem.optimiser().init)(variables),
        best=variables,
        best_loss=jnp.full((n_starts,), jnp.inf, jnp.float32),
        best_terms={name: jnp.full((n_starts,), jnp.inf, jnp.float32) for name in terms},
        best_step=jnp.zeros((n_starts,), jnp.int32),
        failed_at=jnp.full((n_starts,), -1, jnp.int32),
    )


# Jitted inside other jitted functions, `evaluate` and `step` are traced once for all their uses:
# with a generator in the loss, tracing takes longer than loading the compiled program.
@jax.jit
def evaluate(
    problem: Problem, context: Context, starts: Start, variables: Variables
) -> tuple[Float[Array, " B"], dict[str, Float[Array, " B"]]]:
    """Loss and weighted terms of each start, shape (B,)."""
    terms, outputs = jax.vmap(partial(problem.loss, context))(starts, variables)
    losses = sum(terms.values())
    if problem.tied:
        sound = jnp.isfinite(losses)
        zeros = jax.tree.map(jnp.zeros_like, outputs)
        ties = problem.batch_terms(context, starts, select(sound, outputs, zeros))
        terms = {**terms, **ties}
        losses = losses + sum(ties.values())
    return losses, terms  # type: ignore[return-value]


@jax.jit
def step(
    problem: Problem,
    context: Context,
    starts: Start,
    keys: Key[Array, " B"],
    total: Int[Array, ""],
    state: SearchState,
) -> tuple[SearchState, dict[str, Float[Array, " B"]]]:
    """One step of every start: value, gradient, update, projection, book-keeping.

    A start's gradient depends on its own variables only (unless the problem is tied), so that the
    sum over starts can be differentiated at once without one start's NaN reaching another.
    """
    progress = state.step.astype(jnp.float32) / total.astype(jnp.float32)

    def summed(variables: Variables) -> tuple[Array, tuple[Array, Terms]]:
        losses, terms = evaluate(problem, context, starts, variables)
        return jnp.sum(losses), (losses, terms)

    gradient, (losses, terms) = jax.grad(summed, has_aux=True)(state.variables)
    running = state.failed_at < 0
    finite = jnp.isfinite(losses) & _all_finite(gradient)
    better = running & jnp.isfinite(losses) & (losses < state.best_loss)

    rate = problem.learning_rate(progress)
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step)
    optimiser = optax.with_extra_args_support(problem.optimiser())

    def update(gradient: Any, state: Any, variables: Any, key: Array, loss: Array) -> Any:
        own_key = jax.random.fold_in(key, 1)
        return optimiser.update(gradient, state, variables, rate=rate, key=own_key, loss=loss)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
        direction, optimiser_state = jax.vmap(update)(
            gradient, state.optimiser, state.variables, step_keys, losses
        )
    moved = jax.tree.map(lambda v, d: v + rate * d, state.variables, direction)
    moved = jax.vmap(problem.project)(moved, state.anchor)
    going = running & finite
    return (
        SearchState(
            step=state.step + 1,
            variables=select(going, moved, state.variables),
            anchor=state.anchor,
            optimiser=select(going, optimiser_state, state.optimiser),
            best=select(better, state.variables, state.best),
            best_loss=jnp.where(better, losses, state.best_loss),
            best_terms=select(better, terms, state.best_terms),
            best_step=jnp.where(better, state.step, state.best_step),
            failed_at=jnp.where(running & ~finite, state.step, state.failed_at),
        ),
        terms,
    )


# Everything but the step counter has the starts as its leading axis.
_STATE = SearchState._make([P(), *[P(STARTS)] * (len(SearchState._fields) - 1)])


def spread(
    run: Callable[..., Any], mesh: Mesh | None, inputs: Any, outputs: Any
) -> Callable[..., Any]:
    """`run` on every device's own part; unchecked, as the devices exchange nothing.

    Without a mesh it is `run` itself.
    """
    if mesh is None:
        return run
    return jax.shard_map(run, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


@partial(jax.jit, static_argnames=("length", "mesh"))
def advance(
    problem: Problem,
    context: Context,
    starts: Start,
    keys: Key[Array, " B"],
    total: Int[Array, ""],
    state: SearchState,
    *,
    length: int,
    mesh: Mesh | None = None,
) -> tuple[SearchState, dict[str, Float[Array, "length B"]]]:
    """Up to `length` steps in one compiled scan; steps beyond `total` are skipped.

    On a mesh every device runs the same program on its own part of the starts, so a start's
    numbers depend on how many starts a device holds, not on how many devices there are.

    Returns:
        The new state and each term's history (length, B), NaN where steps were skipped.
    """
    parts = (P(), P(), P(STARTS), P(STARTS), P(), _STATE)
    run = spread(partial(_advance, length), mesh, parts, (_STATE, P(None, STARTS)))
    return run(problem, context, starts, keys, total, state)


def _advance(
    length: int,
    problem: Problem,
    context: Context,
    starts: Start,
    keys: Array,
    total: Array,
    state: SearchState,
) -> tuple[SearchState, Terms]:
    step_once = partial(step, problem, context, starts, keys, total)
    _, shapes = jax.eval_shape(step_once, state)

    def skip(state: SearchState) -> tuple[SearchState, Terms]:
        return state, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    def body(state: SearchState, _: None) -> tuple[SearchState, Terms]:
        return jax.lax.cond(state.step < total, step_once, skip, state)

    return jax.lax.scan(body, state, None, length=length)


@partial(jax.jit, static_argnames=("mesh",))
def _evaluate_end(
    problem: Problem,
    context: Context,
    starts: Start,
    state: SearchState,
    *,
    mesh: Mesh | None = None,
) -> SearchState:
    """Evaluate the variables that a sampler's optimiser ended with."""
    run = spread(_evaluate_final, mesh, (P(), P(), P(STARTS), _STATE), _STATE)
    return run(problem, context, starts, state)


def _evaluate_final(
    problem: Problem, context: Context, starts: Start, state: SearchState
) -> SearchState:
    final = jax.vmap(problem.final_variables)(state.optimiser)
    losses, terms = evaluate(problem, context, starts, final)
    steps = jnp.full_like(state.best_step, state.step)
    return state._replace(best=final, best_loss=losses, best_terms=terms, best_step=steps)


def search(
    problem: Problem,
    *,
    context: Context,
    starts: Start,
    variables: Variables,
    keys: Array,
    steps: int,
    chunk: int = 10,
    mesh: Mesh | None = None,
    begin: Callable[..., SearchState] = begin,
    advance: Callable[..., tuple[SearchState, Terms]] = advance,
    on_progress: Progress | None = None,
    on_state: Callable[[SearchState], None] | None = None,
) -> SearchResult:
    """Run a search to its end, or to Ctrl-C, and return the best of each start.

    Args:
        problem: what is minimised; a compiled argument.
        context: pytree that all starts share; a compiled argument, never a constant.
        starts: pytree with leading axis B.
        variables: where the starts begin, leading axis B.
        keys: (B,) one PRNG key per start, for problems that draw as they go.
        steps: gradient steps; not part of what is compiled.
        chunk: steps per compiled call, between which progress is reported.
        mesh: devices to spread the starts over, along its axis "starts"; B is a multiple of
            their number, and no tied problem may be spread.
        begin, advance: the functions of these names, perhaps kept compiled in another way.
        on_progress: called after each chunk.
        on_state: the same, with where the search stands.

    Returns:
        The result; a start that failed before its first finite loss has loss +inf.
    """
    if mesh is not None:
        if problem.tied:
            raise ValueError("starts that are tied together cannot be spread over devices")
        problem, context = jax.device_put((problem, context), NamedSharding(mesh, P()))
        parts = NamedSharding(mesh, P(STARTS))
        starts, variables, keys = jax.device_put((starts, variables, keys), parts)
    state = begin(problem, context, starts, variables)
    run = partial(advance, problem, context, starts, keys, length=chunk, mesh=mesh)
    records: list[dict[str, np.ndarray]] = []
    done, interrupted = 0, False
    try:
        while done < steps:
            state, terms = run(jnp.asarray(steps, jnp.int32), state)
            kept = min(chunk, steps - done)
            records.append({name: np.asarray(value)[:kept] for name, value in terms.items()})
            done += kept
            if on_progress is not None:
                on_progress(done, steps, {name: v[-1] for name, v in records[-1].items()})
            if on_state is not None:
                on_state(state)
            if bool((state.failed_at >= 0).all()):
                break
    except KeyboardInterrupt:
        interrupted = True
    if problem.samples:
        state = _evaluate_end(problem, context, starts, state, mesh=mesh)
    elif not interrupted:
        # One more step, which is not counted, evaluates the variables after the last update.
        after, _ = run(jnp.asarray(steps + 1, jnp.int32), state)
        kept = {"variables": state.variables, "optimiser": state.optimiser}
        state = after._replace(step=state.step, failed_at=state.failed_at, **kept)
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
