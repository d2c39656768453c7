"""Small images of generators: heads, and what they are used for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KEPT

from stylesr_jax.cli import fit
from stylesr_jax.degradations import Area, Bicubic, Compose, MotionBlur
from stylesr_jax.errors import UserError
from stylesr_jax.fit_heads import main as fit_heads
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.generators.mobile.heads import save_heads, with_heads, with_known_heads
from stylesr_jax.generators.mobile.network import ImageHead, MobileConfig
from stylesr_jax.generators.registry import config_to_dict
from stylesr_jax.methods.base import small_size
from stylesr_jax.methods.view import Context, degraded
from stylesr_jax.runtime import weights
from untrained import with_notes


def _tiny_mobile() -> Generator:
    """An untrained MobileStyleGAN of 128 px."""
    config = MobileConfig(
        name="tiny-mobile", resolution=128, num_ws=14, w_dim=8, z_dim=8, mapping_widths=(8, 8),
        channels=(16, 16, 16, 8, 8),
    )  # fmt: skip
    ws = jnp.zeros((1, config.num_ws, config.w_dim))
    noise = tuple(jnp.zeros(shape) for shape in config.noise_shapes)
    init_mapping, init_synthesis = (
        jax.jit(module.init) for module in (config.mapping_module(), config.synthesis_module())
    )
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "mapping": init_mapping(keys[0], ws[0])["params"],
        "synthesis": init_synthesis(keys[1], ws, noise)["params"],
        "noise": {f"{i:02d}": m for i, m in enumerate(noise)},
    }

    def as_trained(path, x):
        """Modulations near 1, and features that do not vanish."""
        name = jax.tree_util.keystr(path)
        x = jnp.ones_like(x) if "modulation']['bias" in name else x
        return 60.0 * x if "depthwise" in name else x

    params["synthesis"] = jax.tree_util.tree_map_with_path(as_trained, params["synthesis"])
    bare = Generator(params, {}, None, config)
    return bare.replace(statistics=measure_statistics(jax.random.key(1), bare, draws=1000))


@pytest.fixture(scope="module")
def tiny_mobile():
    return _tiny_mobile()


@pytest.fixture(scope="module")
def with_head(tiny_mobile):
    """The generator with a head of random weights on its features of 32 px."""
    x, ws = jnp.zeros((1, 32, 32, 8)), jnp.zeros((1, 4, 8))
    head = jax.jit(ImageHead(hidden=8).init)(jax.random.key(2), x, ws)["params"]
    return with_heads(tiny_mobile, {32: head})


def test_a_head_adds_an_image_and_changes_nothing_else(tiny_mobile, with_head):
    ws = jax.random.normal(jax.random.key(3), (2, tiny_mobile.num_ws, tiny_mobile.w_dim))
    assert tiny_mobile.config.image_resolutions == (128,)
    assert with_head.config.image_resolutions == (64, 128)
    run = jax.jit(lambda g, ws: g.synthesise(ws))
    np.testing.assert_array_equal(run(with_head, ws), run(tiny_mobile, ws))


def test_what_has_no_head_is_refused(tiny_mobile):
    ws = jnp.zeros((1, tiny_mobile.num_ws, tiny_mobile.w_dim))
    with pytest.raises(UserError, match="makes images of 128 px, not 64"):
        tiny_mobile.synthesise(ws, stop=64)


def test_heads_are_recognised_by_their_network(tiny_mobile, with_head, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    params = with_head.params["heads"]["head32"]
    save_heads(tmp_path / "heads" / "own.safetensors", tiny_mobile, {32: params}, {})
    known = with_known_heads(tiny_mobile)
    assert known.config.heads == (32,)
    for a, b in zip(
        jax.tree.leaves(known.params["heads"]["head32"]), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)  # kept in half precision
    changed = jax.tree.map(lambda x: x + 1.0, tiny_mobile.params["synthesis"])
    other = tiny_mobile.replace(params={**tiny_mobile.params, "synthesis": changed})
    assert with_known_heads(other).config.heads == ()


def _saved(generator, folder):
    """The generator as a file."""
    path = folder / "tiny.safetensors"
    weights.save(
        path,
        {"params": generator.params, "statistics": generator.statistics},
        {"kind": "generator", "config": config_to_dict(generator.config)},
    )
    return path


def test_what_the_converter_noted_is_said_once(
    tiny_mobile, tiny_files, tmp_path, monkeypatch, capsys
):
    def stopped(*_, **__):
        raise UserError("stopped")

    monkeypatch.setenv("STYLESR_CACHE", str(KEPT))
    monkeypatch.setattr(fit, "render_pictures", stopped)
    noted = with_notes(_saved(tiny_mobile, tmp_path), tmp_path, ["read from 'G'"])
    assert fit_heads(["--generator", str(noted)]) == 2
    found = capsys.readouterr()
    assert found.err.splitlines() == ["note: read from 'G'", "error: stopped"] and not found.out
    assert fit_heads(["--generator", str(noted), "--quiet"]) == 2
    assert capsys.readouterr().err == "error: stopped\n"
    other = with_notes(tiny_files["generator"], tmp_path, ["read from 'G'"])
    assert fit_heads(["--generator", str(other)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is no MobileStyleGAN" in line


@pytest.mark.slow
def test_fit_heads_learns_and_goes_on_from_kept_pictures(tiny_mobile, tmp_path, capsys):
    path = _saved(tiny_mobile, tmp_path)
    out = tmp_path / "heads.safetensors"
    command = ["--generator", str(path), "--out", str(out), "--draws", "160"]
    assert fit_heads([*command, "--steps", "0"]) == 2
    assert "must be positive" in capsys.readouterr().err
    assert fit_heads([*command, "--steps", "150"]) == 0
    figures = weights.read_header(out)["figures"]["32"]
    assert figures["error"] < 0.6 * figures["mean_picture_error"]
    assert not list(tmp_path.glob("*.pictures"))
    assert "picture 160/160" in capsys.readouterr().out


@pytest.mark.parametrize(
    "degradation",
    [
        Bicubic(size=8),
        Area(size=8),
        Compose((MotionBlur(9.0, angle=jnp.asarray(30.0)), Bicubic(size=8))),
    ],
)
def test_degradations_see_the_pixels_of_the_full_image(tiny_mobile, degradation):
    """A smooth picture degrades alike at full size and as a small image."""
    y, x = jnp.asarray(np.mgrid[:128, :128] / 128.0, jnp.float32)
    whole = jnp.stack([jnp.sin(3.0 * x), jnp.cos(2.0 * y), x * y], axis=-1)
    small = Area(size=64)(whole)
    context = Context(tiny_mobile, None, degradation, None)
    np.testing.assert_allclose(degraded(context, small), degraded(context, whole), atol=5e-3)


def test_small_images_are_those_that_a_head_makes(with_head, tiny_mobile):
    assert small_size(with_head) == 64
    assert small_size(tiny_mobile) is None
