"""Sets that methods keep their variables on: spheres and l1 balls, for pytrees of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

MOST_STEPS = 50  # of Newton's method; heavy-tailed vectors take about twenty


def on_sphere(
    x: Float[Array, "*shape"], start: Float[Array, "*shape"], *, axis: int | tuple[int, ...]
) -> Float[Array, "*shape"]:
    """x rescaled along `axis` to the Euclidean norm of `start`; a zero x stays.

    Source: PULSE, section 3.3 (and its code's SphericalOptimizer).
    """
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True))
    radius = jnp.sqrt(jnp.sum(jnp.square(start), axis=axis, keepdims=True))
    return x * (radius / jnp.maximum(norm, 1e-9))


def l1_norm(tree: Any) -> Float[Array, ""]:
    """Sum of absolute values over all leaves."""
    return sum((jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree)), start=jnp.zeros(()))


def onto_l1_ball(tree: Any, radius: Float[Array, ""] | float) -> Any:
    """The nearest point of {x: ||x||_1 <= radius}, all leaves taken as one vector.

    Soft thresholding; the threshold is found by Newton's method, which needs no sorting: the
    excess norm is convex and piecewise linear in the threshold, so from 0 the iterates rise to
    the root without passing it. Source: Duchi et al., "Efficient projections onto the l1-ball",
    ICML 2008, equation 4.
    """
    leaves = jax.tree.leaves(tree)

    def excess(threshold: Array) -> tuple[Array, Array]:
        over = [jnp.maximum(jnp.abs(x) - threshold, 0.0) for x in leaves]
        count = sum(jnp.sum((x > 0.0).astype(jnp.float32)) for x in over)
        return l1_norm(over) - radius, jnp.maximum(count, 1.0)

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        threshold, above, count, step = state
        # Once a Newton step no longer changes the threshold, rounding has the last word.
        return (above > 0.0) & (threshold + above / count > threshold) & (step < MOST_STEPS)

    def improve(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        threshold, above, count, step = state
        threshold = threshold + above / count
        return (threshold, *excess(threshold), step + 1)

    zero = jnp.zeros(())
    first = (zero, *excess(zero), jnp.zeros((), jnp.int32))
    threshold = jax.lax.while_loop(unfinished, improve, first)[0]
    return jax.tree.map(lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0), tree)


def near(tree: Any, centre: Any, radius: Float[Array, ""] | float) -> Any:
    """The nearest point to `tree` in the l1 ball of `radius` around `centre`."""
    offset = jax.tree.map(jnp.subtract, tree, centre)
    return jax.tree.map(jnp.add, centre, onto_l1_ball(offset, radius))
