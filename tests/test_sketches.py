"""Searches that begin with sketches: early images, heads, and the correction of what they miss."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stylesr_jax.methods.catalogue import RLS, SKETCHED

from stylesr_jax.degradations import Area, Bicubic, Compose, MotionBlur
from stylesr_jax.errors import UserError
from stylesr_jax.fit_heads import main as fit_heads
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.generators.mobile.heads import save_heads, with_heads, with_known_heads
from stylesr_jax.generators.mobile.network import ImageHead, MobileConfig
from stylesr_jax.generators.registry import config_to_dict
from stylesr_jax.loading import load_generator
from stylesr_jax.methods.base import problem_of, sketched, stages_of, traced_settings
from stylesr_jax.methods.terms import Example, Shared, degraded
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.search.engine import search
from stylesr_jax.solver.solve import observe, upsample


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


@pytest.mark.slow
def test_fit_heads_learns_and_goes_on_from_kept_pictures(tiny_mobile, tmp_path, capsys):
    weights = tmp_path / "tiny.safetensors"
    weights.save(
        weights,
        {"params": tiny_mobile.params, "statistics": tiny_mobile.statistics},
        {"kind": "generator", "config": config_to_dict(tiny_mobile.config)},
    )
    out = tmp_path / "heads.safetensors"
    command = ["--generator", str(weights), "--out", str(out), "--draws", "160"]
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
    """A smooth picture degrades alike at full size and as a sketch."""
    y, x = jnp.asarray(np.mgrid[:128, :128] / 128.0, jnp.float32)
    whole = jnp.stack([jnp.sin(3.0 * x), jnp.cos(2.0 * y), x * y], axis=-1)
    small = Area(size=64)(whole)
    shared = Shared(tiny_mobile, None, degradation, None, {})
    np.testing.assert_allclose(degraded(shared, small), degraded(shared, whole), atol=5e-3)


def test_the_smallest_sketch_that_shows_the_observation_is_taken(with_head, tiny_mobile):
    stages = stages_of(RLS, RLS.resolve("balanced", {"style_steps": 0, "sketch_steps": 10}))
    assert [stage.sketch for stage in stages] == [True, False]
    for generator, size, stops in (
        (with_head, 16, [64, None]),
        (with_head, 32, [64, None]),
        (with_head, 33, [None, None]),  # a sketch would not show it
        (tiny_mobile, 16, [None, None]),  # there is none
    ):
        assert [stage.stop for stage in sketched(stages, generator, size)] == stops
    plain = stages_of(RLS, RLS.resolve("balanced", {"style_steps": 0}))
    assert [stage.sketch for stage in plain] == [False]


def test_the_correction_makes_the_sketch_exact_where_it_was_measured(tiny_files):
    """At a chunk's first step the loss is that of the full image, and so it is at the end."""
    generator = load_generator(tiny_files["generator"])
    prior = load_prior(generator, tiny_files["prior"])
    rng = np.random.default_rng(0)
    observation = observe(rng.uniform(-1, 1, (8, 8, 3)))
    settings = RLS.resolve(
        "balanced", {**SKETCHED, "sketch_steps": 25, "steps": 3, "lambda_w": 0.0}
    )
    (early, full) = sketched(stages_of(RLS, settings), generator, 8)
    assert early.stop == 16
    shared = Shared(generator, prior, Bicubic(size=8), None, traced_settings(settings))
    example = Example(
        jnp.asarray(observation.target)[None],
        jnp.asarray(observation.mask)[None],
        jnp.zeros(1, jnp.int32),
    )
    u = prior.whiten(generator.statistics["w_mean"])
    start = {"latent": jnp.broadcast_to(u, (1, generator.num_ws, generator.w_dim))}
    run = dict(shared=shared, examples=example, keys=jax.random.split(jax.random.key(0), 1))
    sketch = search(problem_of(early), variables=start, steps=25, **run)
    whole_start = search(problem_of(full), variables=start, steps=1, **run)
    whole_end = search(problem_of(full), variables=sketch.variables, steps=1, **run)
    np.testing.assert_allclose(sketch.history["l1"][0], whole_start.history["l1"][0], rtol=1e-4)
    np.testing.assert_allclose(sketch.terms["l1"], whole_end.history["l1"][0], rtol=1e-4)
    assert sketch.terms["l1"][0] < 0.9 * sketch.history["l1"][0]
    # Without a correction the sketch has another residual.
    uncorrected = dataclasses.replace(problem_of(early), refresh=None)
    plain = search(uncorrected, variables=start, steps=1, **run)
    assert abs(plain.history["l1"][0, 0] - whole_start.history["l1"][0, 0]) > 1e-2


@pytest.mark.parametrize(
    ("changes", "whitened"),
    [
        ({}, [True, False, False]),
        ({"steps": 0}, [True, False]),
        ({"sketch_steps": 0}, [False, False]),
        ({"polish_steps": 0}, [True, True]),
        ({"coordinates": "raw"}, [False, False, False]),
    ],
)
def test_polishing_goes_on_in_w_from_where_the_sketches_ended(tiny_files, changes, whitened):
    generator = load_generator(tiny_files["generator"])
    shared = Shared(generator, load_prior(generator, tiny_files["prior"]), None, None, {})
    asked = {**SKETCHED, "sketch_steps": 6, "polish_steps": 4, "steps": 3, **changes}
    stages = stages_of(RLS, RLS.resolve("balanced", asked))
    point = {"latent": jax.random.normal(jax.random.key(0), (generator.num_ws, generator.w_dim))}
    decoded = [stage.coordinates.decode(shared, point).ws for stage in stages]
    unwhitened = shared.prior.unwhiten(point["latent"])
    for ws, white in zip(decoded, whitened, strict=True):
        np.testing.assert_allclose(ws, unwhitened if white else point["latent"], rtol=1e-5)
    for before, stage in itertools.pairwise(stages):
        begun = stage.coordinates.start(None, None, shared, None, point)
        ends = before.coordinates.decode(shared, point).ws
        np.testing.assert_allclose(stage.coordinates.decode(shared, begun).ws, ends, rtol=1e-5)
    weights = [{term.weight for term in stage.terms} for stage in stages]
    polished = "polish_steps" not in changes
    assert ("polish_w" in weights[-1]) is polished and "lambda_l1" in weights[-1]
    assert stages[0].sketch and stages[-1].sketch is (changes.get("steps") == 0)


@pytest.mark.usefixtures("kept_programs")
@pytest.mark.parametrize("polish", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_solutions_of_a_search_with_sketches(tiny_files, polish):
    generator = load_generator(tiny_files["generator"])
    prior = load_prior(generator, tiny_files["prior"])
    image = np.random.default_rng(1).uniform(-1, 1, (8, 8, 3))
    settings = {**SKETCHED, "sketch_steps": 12 - polish, "polish_steps": polish, "steps": 5}
    settings["fidelity"] = 0.0
    result = upsample(
        image,
        generator=generator,
        prior=prior,
        solutions=2,
        key=jax.random.key(0),
        settings=settings,
    )
    for one in result.solutions:
        assert one.status == "ok"
        assert one.history["l1"].shape == (17,)
        assert np.isfinite(one.history["l1"]).all()
        # The picture is clipped, which the search's image is not.
        assert one.residual_l1 * 8 * 8 * 3 == pytest.approx(one.terms["l1"], rel=0.1)
