"""How many starts are searched together: what fits in a device's memory, by XLA's own account."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stylesr_jax.degradations import Bicubic
from stylesr_jax.generators.base import Generator
from stylesr_jax.methods.base import Method, stages_of
from stylesr_jax.methods.view import Context
from stylesr_jax.search import engine
from stylesr_jax.solver import starts

SHARE = 0.8  # of a device's free memory: the rest is for rendering, scoring and fragmentation
MOST = 64  # starts on one device

Made = TypeVar("Made")


def search_bytes(
    batch: int,
    *,
    side: int,
    generator: Generator,
    prior: Any,
    perceptual: Any,
    method: Method,
    chunk: int = 10,
) -> int:
    """Bytes that the compiled steps of the largest stage take with `batch` starts on one device.

    Args:
        side: pixels of the low-resolution canvas.
    """
    method = method.fitted(generator, side)
    context = Context(generator, prior, Bicubic(size=side), perceptual)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    numbers = array(dtype=jnp.int32)
    drawn, _, _ = jax.eval_shape(
        partial(starts.draw_starts, **starts.draw_choices(method, generator)),
        *(keys, numbers, array(side, side, 3), array(side, side, 1), numbers),
        *(array(side, side, 1), method, generator),
    )
    most, variables = 0, None
    for stage in stages_of(method):
        number = jax.ShapeDtypeStruct((), jnp.uint32)
        begun = (stage, keys, numbers, context, drawn, variables, keys, number)
        variables, _ = jax.eval_shape(starts.begin_stage, *begun)
        state = jax.eval_shape(engine.begin, stage, context, drawn, variables)
        total = jax.ShapeDtypeStruct((), jnp.int32)
        args = (stage, context, drawn, keys, total, state)
        parts = engine.advance.lower(*args, length=chunk).compile().memory_analysis()
        if parts is not None:
            taken = parts.temp_size_in_bytes + parts.argument_size_in_bytes
            most = max(most, taken + parts.output_size_in_bytes)
    return most


def free_bytes() -> int | None:
    """Bytes that searches may take on every device; None on CPUs and where it is not known."""
    free = []
    for device in jax.local_devices():
        stats = None if device.platform == "cpu" else device.memory_stats()
        if not stats or "bytes_limit" not in stats:
            return None
        free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return int(SHARE * min(free))


def fitting(most: int, free: int, bytes_of: Callable[[int], int]) -> int:
    """The most starts, at most `most`, that take at most `free` bytes; at least 1.

    Their memory is taken to grow by the same amount with each; the answer is checked.
    """
    if most == 1:
        return 1
    bytes_of_one, bytes_of_two = bytes_of(1), bytes_of(2)
    if bytes_of_two > free:
        return 1
    size = min(most, 2 + int((free - bytes_of_two) / max(bytes_of_two - bytes_of_one, 1)))
    while size > 2 and bytes_of(size) > free:
        size = max(size * 3 // 4, 2)
    return size


def choose_batch(
    wanted: int | None,
    *,
    starts: int,
    solutions: int,
    mesh: Mesh | None,
    method: Method,
    **parts: Any,
) -> int:
    """Starts that each device searches together: `wanted`, or what fits; no more than there are.

    On CPUs it is 1, and nothing is compiled to find out: more starts gain little there and take
    several times the memory (benchmarks/results/solutions), and alone, results are the same to
    the last bit whatever else is searched. Elsewhere it is what fits, less what would not fill
    whole images.

    Args:
        wanted: None is "auto".
        starts: of all images.
        solutions: of each image.
        parts: `side`, `generator`, `prior` and `perceptual`, see `search_bytes`.
    """
    if not stages_of(method) or method.diversity:  # type: ignore[attr-defined]
        return 1  # nothing is searched, or an image's starts make up a batch of their own
    devices = 1 if mesh is None else mesh.size
    most = -(-starts // devices)
    if wanted is not None:
        return min(wanted, most)
    free = free_bytes()
    if free is None:
        return 1
    measure = partial(search_bytes, method=method, **parts)
    return whole_images(fitting(min(most, MOST), free, measure), devices, solutions)


def whole_images(batch: int, devices: int, solutions: int) -> int:
    """The most starts on a device, at most `batch`, that make up images without a rest.

    Else the images that fill whole batches together would be many, and all in memory at once.
    """
    for size in range(batch, 0, -1):
        if (size * devices) % solutions == 0 or solutions % (size * devices) == 0:
            return size
    return batch


def within_memory(batch: int, call: Callable[[int], Made]) -> tuple[Made, int]:
    """call(batch) with half as many starts until the device's memory suffices, and how many."""
    while True:
        try:
            return call(batch), batch
        except jax.errors.JaxRuntimeError as error:
            if batch == 1 or "RESOURCE_EXHAUSTED" not in str(error):
                raise
        batch //= 2
