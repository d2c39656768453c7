"""Whole search steps lower for accelerators that this machine does not have."""

import itertools

import jax
import jax.export
import jax.numpy as jnp
import pytest

from stylesr_jax.degradations import Bicubic
from stylesr_jax.methods import METHODS
from stylesr_jax.methods.base import stages_of
from stylesr_jax.methods.view import Beginning, Context, Start
from stylesr_jax.metrics.lpips import load_features
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.search.engine import advance, begin

ACCELERATORS = ("cuda", "tpu")
SLOW = ("ilo", "langevin", "rls+")  # four stages; RLS's stages and more
SEARCHES = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name, method in METHODS.items()
    if method().steps_in_all
]


def export_stages(name: str, generator, prior, *, size: int, count: int = 2):
    """Every stage of a method as the engine compiles it, from shapes alone: no step is made."""
    method = METHODS[name]().fitted(generator, size)
    perceptual = load_features("vgg16") if method.needs_perceptual else None
    context = Context(generator, prior, Bicubic(size=size), perceptual)
    one = Start(jnp.zeros((size, size, 3)), jnp.ones((size, size, 1)), jnp.zeros((), jnp.int32))
    raw_keys = jax.random.key_data(jax.random.split(jax.random.key(0), count))

    def repeated(tree):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)

    starts = jax.eval_shape(repeated, one)
    previous = None
    for stage in stages_of(method):

        def first(stage, context, raw_keys, starts, previous):
            keys = jax.random.wrap_key_data(raw_keys)
            start = jax.vmap(stage.start, in_axes=(Beginning(0, 0, None, 0, 0),))
            return start(Beginning(keys, jnp.arange(count), context, starts, previous))

        def run(stage, context, starts, raw_keys, total, state):
            keys = jax.random.wrap_key_data(raw_keys)
            return advance(stage, context, starts, keys, total, state, length=4)

        variables = jax.eval_shape(first, stage, context, raw_keys, starts, previous)
        state = jax.eval_shape(begin, stage, context, starts, variables)
        export = jax.export.export(jax.jit(run), platforms=ACCELERATORS)
        yield variables, export(stage, context, starts, raw_keys, jnp.asarray(4), state)
        previous = variables


@pytest.mark.parametrize("name", SEARCHES)
def test_every_stage_of_every_method_lowers(name, tiny, tiny_prior):
    prior = tiny_prior if METHODS[name].needs_prior else None
    count = 0
    for variables, exported in export_stages(name, tiny, prior, size=16):
        assert exported.platforms == ACCELERATORS
        sizes = {value.shape for value in exported.out_avals}
        assert {leaf.shape for leaf in jax.tree.leaves(variables)} <= sizes
        count += 1
    assert count == len(stages_of(METHODS[name]()))


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rls_on_the_embedded_generator_lowers(mobile, count):
    """The phase in W, then the one in W+."""
    portable = mobile.replace(config=mobile.config.portable())
    exports = export_stages("rls", portable, load_prior(mobile), size=16, count=4)
    stages = list(itertools.islice(exports, count))
    assert len(stages) == count
    for variables, exported in stages:
        assert exported.platforms == ACCELERATORS
        assert variables["latent"].shape in {(4, 1, 512), (4, 23, 512)}
        # The weights are arguments, not constants: the program stays small.
        assert len(exported.mlir_module_serialized) < 5e6
