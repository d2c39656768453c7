"""Images in horizontal strips: a chain of row-local layers with a working set that fits a cache.

On a CPU the large layers of a generator are bound by memory, not arithmetic. Running several
layers on a few rows at a time costs less than storing and reading every intermediate result
whole, and needs a fraction of the memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import sequential_vmap
from jaxtyping import Float

# A function of one strip, see `map_strips`:
# (neighbours, rows, shared, residuals or None) -> (rows out, residuals).
StripFunction = Callable[["Neighbours", Any, Any, Any], tuple[Array, Any]]


class Neighbours(NamedTuple):
    """Whether the strip has a strip above and one below, () bool each."""

    above: Array
    below: Array


def _neighbours(index: Array, strips: int) -> Neighbours:
    return Neighbours(index > 0, index < strips - 1)


def _take(whole: Array, index: Array, strips: int) -> Array:
    """The strip's rows with one more on either side, which is zero beyond the array."""
    height = whole.shape[0] // strips
    first, end = index * height, (index + 1) * height
    near = _neighbours(index, strips)
    rows = jax.lax.dynamic_slice_in_dim(whole, first, height)
    above = jax.lax.dynamic_slice_in_dim(whole, jnp.maximum(first - 1, 0), 1)
    below = jax.lax.dynamic_slice_in_dim(whole, jnp.minimum(end, whole.shape[0] - 1), 1)
    return jnp.concatenate([jnp.where(near.above, above, 0), rows, jnp.where(near.below, below, 0)])


def _add(whole: Array, part: Array, index: Array, strips: int) -> Array:
    """The transpose of `_take`, added to `whole`, in place inside a loop."""
    height = whole.shape[0] // strips
    first, end = index * height, (index + 1) * height
    near = _neighbours(index, strips)

    def add(whole: Array, rows: Array, at: Array) -> Array:
        sums = jax.lax.dynamic_slice_in_dim(whole, at, rows.shape[0]) + rows
        return jax.lax.dynamic_update_slice_in_dim(whole, sums, at, 0)

    whole = add(whole, part[1:-1], first)
    whole = add(whole, jnp.where(near.above, part[:1], 0), jnp.maximum(first - 1, 0))
    return add(whole, jnp.where(near.below, part[-1:], 0), jnp.minimum(end, whole.shape[0] - 1))


def _pack(x: Array) -> Array:
    """float32 rounded to bfloat16, as uint16: XLA's CPU backend copies whole bfloat16 arrays.

    The sign is exact, the value within 0.4 %.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return ((bits + jnp.uint32(0x8000)) >> jnp.uint32(16)).astype(jnp.uint16)


def _unpack(bits: Array) -> Array:
    wide = bits.astype(jnp.uint32) << jnp.uint32(16)
    return jax.lax.bitcast_convert_type(wide, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mapped(function: StripFunction, strips: int, whole: Any, shared: Any) -> Array:
    return _forward(function, strips, whole, shared)[0]


def _forward(
    function: StripFunction, strips: int, whole: Any, shared: Any
) -> tuple[Array, tuple[Any, Any, Any]]:
    @sequential_vmap
    def run(whole: Any, shared: Any) -> tuple[Array, Any]:
        def body(_: None, index: Array) -> tuple[None, tuple[Array, Any]]:
            rows = jax.tree.map(lambda a: _take(a, index, strips), whole)
            out, residuals = function(_neighbours(index, strips), rows, shared, None)
            residuals = jax.tree.map(_pack, residuals)
            # Fused with the write to the result, the last layer would run on one core.
            return None, jax.lax.optimization_barrier((out, residuals))

        _, results = jax.lax.scan(body, None, jnp.arange(strips))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), results)

    out, residuals = run(whole, shared)
    return out, (whole, shared, residuals)


def _backward(
    function: StripFunction, strips: int, saved: tuple[Any, Any, Any], grad: Array
) -> tuple[Any, Any]:
    @sequential_vmap
    def run(whole: Any, shared: Any, residuals: Any, grad: Array) -> tuple[Any, Any]:
        def body(sums: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], None]:
            def take(whole: Any) -> Any:
                return jax.tree.map(lambda a: _take(a, index, strips), whole)

            near = _neighbours(index, strips)
            unpacked = jax.tree.map(_unpack, take(residuals))
            height = grad.shape[0] // strips
            _, pull = jax.vjp(
                lambda rows, shared: function(near, rows, shared, unpacked)[0], take(whole), shared
            )
            parts = pull(jax.lax.dynamic_slice_in_dim(grad, index * height, height))
            parts = jax.lax.optimization_barrier(parts)
            add_rows = partial(_add, index=index, strips=strips)
            return (
                jax.tree.map(add_rows, sums[0], parts[0]),
                jax.tree.map(jnp.add, sums[1], parts[1]),
            ), None

        zeros = jax.tree.map(jnp.zeros_like, (whole, shared))
        return jax.lax.scan(body, zeros, jnp.arange(strips))[0]

    return run(*saved, grad)


_mapped.defvjp(_forward, _backward)


def map_strips(
    function: StripFunction, whole: Any, shared: Any, *, strips: int
) -> Float[Array, "..."]:
    """Run a row-local function of one image, at once or strip by strip.

    Strips run one after the other, also over the images of a batch under `vmap`. For the
    gradient the inputs and the function's residuals are kept, these in half precision.

    Args:
        function: (neighbours, rows, shared, residuals) -> (rows out, residuals), where `rows`
            holds h + 2 rows of each array of `whole` that has `strips * h` rows: h of the strip
            and one on either side, zero outside the image. The residuals returned hold rows of the
            strip alone; given back, with one more row on either side, they spare the function
            most of its work when it runs again for the gradient. It must not close over arrays.
        whole: pytree of (H_i, ...) arrays to be cut, each H_i a multiple of `strips`.
        shared: pytree of arrays that every strip needs.
        strips: 1 runs the function once, with ordinary differentiation.

    Returns:
        The strips' results one below the other.
    """
    if strips > 1:
        return _mapped(function, strips, whole, shared)
    rows = jax.tree.map(lambda a: jnp.pad(a, [(1, 1)] + [(0, 0)] * (a.ndim - 1)), whole)
    edge = jnp.array(False)
    return function(Neighbours(edge, edge), rows, shared, None)[0]
