"""What heads are fitted to: styles as a search meets them, pictures that outlive a killed run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.degradations import resize
from stylesr_jax.errors import UserError
from stylesr_jax.priors.fit_heads import render_pictures
from stylesr_jax.priors.styles import draw_styles
from stylesr_jax.runtime import weights


@pytest.fixture(scope="module")
def styles(tiny):
    return draw_styles(jax.random.key(3), tiny, 4)


def test_styles_depend_on_the_key_alone(tiny, styles):
    assert styles.shape == (4, tiny.num_ws, tiny.w_dim) and np.isfinite(styles).all()
    np.testing.assert_array_equal(draw_styles(jax.random.key(3), tiny, 2), styles[:2])
    assert np.abs(draw_styles(jax.random.key(4), tiny, 1) - styles[:1]).max() > 0.01


def test_some_styles_differ_from_layer_to_layer_and_some_do_not(tiny):
    apart = np.ptp(draw_styles(jax.random.key(0), tiny, 12), axis=1).max(axis=-1)
    assert (apart < 1e-6).any() and (apart > 0.1).any()


def test_pictures_are_shrunken_images_and_kept(tiny, styles, tmp_path):
    keep, said = tmp_path / "heads.pictures", []
    pictures = render_pictures(tiny, styles, size=8, keep=keep, say=said.append)
    images = jax.jit(lambda g, ws: g.synthesise(ws))(tiny, jnp.asarray(styles))
    expected = jax.vmap(lambda image: resize(image, (8, 8)))(images)
    np.testing.assert_allclose(pictures, expected, rtol=1e-3, atol=1e-3)  # float16
    assert said == ["picture 4/4  0.0 min left"]
    tensors, header = weights.load(keep)
    np.testing.assert_array_equal(tensors["pictures"], pictures)
    # Of a run that was killed after two pictures, told by marks in them.
    weights.save(keep, {"pictures": pictures[:2] * 0}, header)
    again = render_pictures(tiny, styles, size=8, keep=keep, say=said.append)
    np.testing.assert_array_equal(again, np.concatenate([pictures[:2] * 0, pictures[2:]]))


def test_pictures_of_other_styles_are_refused(tiny, styles, tmp_path):
    keep = tmp_path / "heads.pictures"
    render_pictures(tiny, styles[:1], size=8, keep=keep, say=lambda text: None)
    for others, size in ((styles[1:2], 8), (styles[:1], 4)):
        with pytest.raises(UserError, match="another fit; delete it"):
            render_pictures(tiny, others, size=size, keep=keep, say=lambda text: None)
