"""The phases of the robust method, and a style for each filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.generators.base import Generator
from stylesr_jax.methods.base import render
from stylesr_jax.methods.robust import FilterStage, MeanStyleStage, Robust
from stylesr_jax.methods.view import Beginning, Context, Latents, Start

BEGIN = (jax.random.key(0), jnp.asarray(0))
START = Start(jnp.zeros((4, 4, 3)), jnp.ones((4, 4, 1)), jnp.asarray(0))


def _styles(generator: Generator):
    z = jax.random.normal(jax.random.key(1), (generator.num_ws, generator.z_dim))
    return generator.map_latents(z)


def _filters(generator):
    context, stage = Context(generator, None, None, None), FilterStage(method=Robust())
    styles = _styles(generator)
    begun = stage.start(Beginning(*BEGIN, context, START, {"latent": styles}))
    return context, stage, styles, begun


@pytest.mark.parametrize("which", ["tiny", "mobile"])
def test_filters_that_share_their_layers_style_change_nothing(which, request):
    generator = request.getfixturevalue(which)
    context, stage, styles, variables = _filters(generator)
    found = render(generator, stage.decode(context, variables))
    expected = render(generator, Latents(styles))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_every_layer_has_a_style_for_each_of_its_filters(tiny):
    context, stage, _, variables = _filters(tiny)
    assert len(variables["filters"]) == len(tiny.config.styled_layers) > 3
    synthesis = tiny.params["synthesis"]
    for layer in tiny.config.styled_layers:
        name = "/".join(layer.path)
        params = synthesis
        for key in layer.path:
            params = params[key]
        filters = variables["filters"][name]
        assert filters.shape == (params[layer.weight].shape[-1], tiny.w_dim)
        moved = filters.at[0].add(1.0)
        changed = {**variables, "filters": {**variables["filters"], name: moved}}
        difference = render(tiny, stage.decode(context, changed)) - render(
            tiny, stage.decode(context, variables)
        )
        assert jnp.abs(difference).max() > 1e-6, name


def test_the_paper_has_three_phases_at_their_rates():
    stages = tuple(Robust.resolve("paper").make_stages())
    assert [int(stage.steps) for stage in stages] == [150, 150, 150]
    assert [float(stage.rate) for stage in stages] == [0.08, 0.02, 0.005]
    assert [type(s) for s in stages] == [MeanStyleStage, MeanStyleStage, FilterStage]
    assert [s.space for s in stages[:2]] == ["w", "w+"]
