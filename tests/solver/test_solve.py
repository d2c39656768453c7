"""The functional API on an untrained 32 px generator."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylesr_jax.degradations import Bicubic
from stylesr_jax.errors import UserError
from stylesr_jax.images.files import read_image
from stylesr_jax.loading import load_generator
from stylesr_jax.methods import method_named
from stylesr_jax.methods.view import Beginning, Context, Start
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.runs.folder import read_solutions, save_solutions
from stylesr_jax.solver import solve as solver
from stylesr_jax.solver.observation import key_of, place_on_canvas
from stylesr_jax.solver.rendering import add_correction, redraw
from stylesr_jax.solver.solve import solve, upsample
from where import PORTRAIT

KEY = jax.random.key(7)
pytestmark = pytest.mark.usefixtures("kept_programs")


# Every phase of a search is compiled for itself: few tests need those with small images.
FULL_IMAGES = {"coarse": False, "activation_steps": 0}
QUICK = {**FULL_IMAGES, "style_steps": 6, "steps": 12}


@partial(jax.jit, static_argnames="size")
def _target_of(generator, z, size):
    ws = jnp.repeat(generator.map_latents(z)[:, None], generator.num_ws, axis=1)
    return jnp.clip(Bicubic(size=size)(generator.synthesise(ws)[0]), -1.0, 1.0)


def _target(generator, seed=5, size=8):
    z = jax.random.normal(jax.random.key(seed), (1, generator.z_dim))
    return np.array(_target_of(generator, z, size))


@pytest.fixture(scope="module")
def target(tiny):
    return _target(tiny)


def _upsample(image, tiny, tiny_prior, **options):
    options = {"solutions": 2, "settings": QUICK} | options
    return upsample(image, generator=tiny, prior=tiny_prior, key=jax.random.key(3), **options)


def test_solutions_approach_the_input(tiny, tiny_prior, target):
    settings = {**FULL_IMAGES, "style_steps": 40, "steps": 40, "learning_rate": 0.5}
    result = _upsample(target, tiny, tiny_prior, settings=settings)
    assert result.images.shape == (2, 32, 32, 3) and not result.interrupted
    assert np.abs(result.images).max() <= 1.0
    for one in result.solutions:
        likelihood = one.history["l1"]
        assert one.status == "ok" and likelihood.shape == (80,)
        assert one.terms["l1"] < 0.5 * likelihood[0]
        np.testing.assert_allclose(sum(one.terms.values()), one.loss, rtol=1e-4)
        np.testing.assert_allclose(one.residual_l1, np.abs(one.low - target).mean(), rtol=1e-4)


def _by_number(result):
    return sorted(result.solutions, key=lambda solution: solution.number)


def test_solutions_differ_and_do_not_depend_on_their_number(tiny, tiny_prior, target):
    two = _upsample(target, tiny, tiny_prior)
    three = _upsample(target, tiny, tiny_prior, solutions=3)
    for one, other in zip(_by_number(two), _by_number(three), strict=False):
        np.testing.assert_array_equal(one.image, other.image)
    assert [one.loss for one in three.solutions] == sorted(one.loss for one in three.solutions)
    assert np.abs(two.images[0] - two.images[1]).mean() > 1e-3


def test_further_solutions_begin_from_the_nearest_of_their_tries(tiny, tiny_prior, target):
    still = {"style_steps": 0, "coarse_steps": 0, "steps": 1, "activation_steps": 1}
    still["learning_rate"] = 0.0
    found = [
        _by_number(_upsample(target, tiny, tiny_prior, solutions=4, settings=settings))
        for settings in ({**still, "noise": "stored", "tries": tries} for tries in (1, 4, 16))
    ]
    # The first begins at the mean w, whatever is tried; the tries of few are among those of many.
    for more in found[1:]:
        np.testing.assert_array_equal(more[0].image, found[0][0].image)
    one, few, many = (
        np.array([solution.terms["l1"] for solution in result[1:]]) for result in found
    )
    # Small images say which is the nearest, and err a little.
    assert (many <= few * 1.02).all() and many.mean() < 0.95 * one.mean()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["fast", "balanced"])
@pytest.mark.parametrize("face", ["portrait", "drawn"])
def test_more_steps_make_no_solution_worse(preset, face):
    generator = load_generator()
    if face == "portrait":
        small = np.clip(np.asarray(Bicubic(size=32)(jnp.asarray(read_image(PORTRAIT)))), -1.0, 1.0)
    else:
        small = _target(generator, size=32)
    method = method_named("rls").resolve(preset)
    once, five_times = (
        upsample(
            small,
            generator=generator,
            prior=load_prior(generator),
            method=method.with_budget(times * method.steps_in_all),
            solutions=1,
            key=jax.random.key(0),
        ).solutions[0]
        for times in (1, 5)
    )
    assert five_times.loss < 1.01 * once.loss


def test_ctrl_c_before_a_further_search_keeps_earlier_solutions(
    tiny, tiny_prior, target, monkeypatch
):
    def interrupted(*args, later, **options):
        if later:
            raise KeyboardInterrupt  # while the second solution's noise is drawn
        return draw(*args, later=later, **options)

    draw = solver.draw
    monkeypatch.setattr(solver, "draw", interrupted)
    result = _upsample(target, tiny, tiny_prior)
    assert result.interrupted and len(result.solutions) == 1


@pytest.mark.slow
def test_further_solutions_have_noise_maps_of_their_own(tiny, tiny_prior, target):
    own, stored = (
        _upsample(target, tiny, tiny_prior, settings={"steps": 2, "noise": noise})
        for noise in ("own", "stored")
    )
    first, second = _by_number(own)
    for one in (first, *stored.solutions):
        for found, kept in zip(one.latents.noise, tiny.stored_noise, strict=True):
            np.testing.assert_array_equal(found, kept)
    for found, kept in zip(second.latents.noise, tiny.stored_noise, strict=True):
        assert 0.5 < np.std(found) < 2.0 and np.abs(found - np.asarray(kept)).max() > 0.5


def test_another_image_in_the_batch_changes_nothing(tiny, tiny_prior, target):
    options = {
        "generator": tiny,
        "prior": tiny_prior,
        "method": method_named("rls").resolve(
            changes={**FULL_IMAGES, "style_steps": 11, "steps": 11}
        ),
        "solutions": 1,
    }
    other = place_on_canvas(_target(tiny, seed=9))
    keys = [key_of(0, "a.png"), key_of(0, "b.png")]
    (alone,) = solve([place_on_canvas(target)], keys[:1], **options)
    together, _ = solve([place_on_canvas(target), other], keys, **options)
    np.testing.assert_array_equal(alone.images, together.images)
    batched, _ = solve([place_on_canvas(target), other], keys, batch=2, **options)
    np.testing.assert_allclose(alone.images, batched.images, atol=1e-3)


def test_non_square_images_come_back_in_their_shape(tiny, tiny_prior, target):
    result = _upsample(target[2:6], tiny, tiny_prior, solutions=1)
    assert result.images.shape == (1, 16, 32, 3)
    assert result.solutions[0].low.shape == (4, 8, 3)
    np.testing.assert_array_equal(result.observation.image, target[2:6])
    # What lies outside the image has no part in the loss.
    other = place_on_canvas(target[2:6])
    other.target[:2] = -1.0
    (changed,) = solve(
        [other],
        [jax.random.key(3)],
        generator=tiny,
        prior=tiny_prior,
        method=method_named("rls").resolve(changes=QUICK),
        solutions=1,
    )
    np.testing.assert_array_equal(changed.images, result.images)


def test_saved_solutions_redraw_the_same_pixels(tiny, tiny_prior, target, tmp_path):
    result = _upsample(target, tiny, tiny_prior)
    save_solutions(tmp_path / "solutions.npz", result, {"seed": 0})
    saved = read_solutions(tmp_path / "solutions.npz", tiny)
    assert saved.config == {"block": result.solutions[0].block, "seed": 0}
    np.testing.assert_array_equal(saved.observation.target, result.observation.target)
    drawn = zip(saved.latents, saved.corrections, result.solutions, strict=True)
    for latents, correction, one in drawn:
        generated = redraw(tiny, latents, block=saved.config["block"])
        np.testing.assert_array_equal(generated, one.generated)
        np.testing.assert_array_equal(add_correction(generated, correction), one.image)
    (tmp_path / "solutions.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="damaged"):
        read_solutions(tmp_path / "solutions.npz")


def test_interruption_keeps_what_was_found(tiny, tiny_prior, target):
    def interrupt(image, solution, step, steps, terms):
        if solution == 1 and step >= 20:
            raise KeyboardInterrupt

    result = _upsample(
        target,
        tiny,
        tiny_prior,
        solutions=4,
        settings={**QUICK, "style_steps": 20, "steps": 20},
        on_progress=interrupt,
    )
    assert result.interrupted and len(result.solutions) == 2
    assert np.isfinite(result.images).all()


def test_interruption_leaves_the_images_before_it_whole(tiny, tiny_prior, target):
    def interrupt(image, solution, step, steps, terms):
        if image == 1:
            raise KeyboardInterrupt

    results = solve(
        [place_on_canvas(target)] * 3,
        [key_of(0, name) for name in "abc"],
        generator=tiny,
        prior=tiny_prior,
        method=method_named("rls").resolve(changes=QUICK),
        solutions=1,
        on_progress=interrupt,
    )
    assert [result.interrupted for result in results] == [False, True]


def test_published_values_are_the_paper_preset():
    paper = method_named("rls").resolve("paper").settings
    expected = {"steps": 500, "learning_rate": 0.5, "lambda_w": 1e-4, "lambda_g": 2e-4}
    assert expected.items() <= paper.items() and paper["lambda_c"] == 0.01
    assert paper["reduction"] == "sum" and paper["coordinates"] == "raw"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "magic"}, "unknown method"),
        ({"preset": "slow"}, "no preset"),
        ({"settings": {"lambda_x": 1.0}}, "no setting 'lambda_x'"),
        ({"settings": {"steps": "many"}}, "whole number"),
        ({"settings": {"lambda_w": "nan"}}, "finite"),
        ({"settings": {"space": "z"}}, "one of w\\+, w"),
    ],
)
def test_bad_options_say_what_there_is(tiny, tiny_prior, target, options, says):
    with pytest.raises(UserError, match=says):
        _upsample(target, tiny, tiny_prior, **options)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((8, 8)), "height, width, 3"),
        (np.zeros((300, 8, 3)), "256"),
        (np.zeros((8, 2, 3)), "sides from 4"),
        (np.full((8, 8, 3), 200.0), r"\[-1, 1\]"),
        (np.full((8, 8, 3), np.nan), r"\[-1, 1\]"),
    ],
)
def test_bad_images_are_refused(tiny, tiny_prior, image, says):
    with pytest.raises(UserError, match=says):
        _upsample(image, tiny, tiny_prior)


def test_a_missing_prior_names_the_command_that_fits_one(tiny, target):
    with pytest.raises(UserError, match="fit_prior --generator tiny-32"):
        _upsample(target, tiny, None)


def test_a_search_begins_from_given_styles(tiny, tiny_prior, target):
    ws = _upsample(target, tiny, tiny_prior).solutions[1].latents.ws
    still = {**FULL_IMAGES, "steps": 1, "learning_rate": 0.0}
    result = _upsample(target, tiny, tiny_prior, start=ws, settings=still)
    for one in result.solutions:
        np.testing.assert_allclose(one.latents.ws, ws, atol=1e-6)
    for name in ("csgm", "bicubic"):  # the latter searches nothing
        with pytest.raises(UserError, match="cannot begin from given styles"):
            _upsample(target, tiny, tiny_prior, method=name, start=ws, settings={})


@pytest.mark.parametrize("name", ["rls", "pulse", "brgm", "ilo", "multimodal"])
def test_first_stages_begin_at_given_styles(tiny, tiny_prior, target, name):
    ws = tiny.statistics["w_mean"] + 0.1 * jax.random.normal(KEY, (tiny.num_ws, tiny.w_dim))
    method = method_named(name)().from_styles().fitted(tiny, 8)
    context = Context(tiny, tiny_prior, Bicubic(size=8), None)
    start = Start(jnp.asarray(target), jnp.ones((8, 8, 1)), jnp.array(0), styles=ws)
    stage = next(method.make_stages())
    begun = stage.start(Beginning(KEY, jnp.array(1), context, start, None))
    atol = 0.3 if name == "brgm" else 1e-4  # BRGM adds a little noise
    np.testing.assert_allclose(stage.decode(context, begun).ws, ws, atol=atol)


@pytest.mark.parametrize(
    "option",
    [("jax_enable_x64", True), ("jax_debug_nans", True), ("jax_numpy_rank_promotion", "raise")],
)
def test_options_of_the_process_change_nothing(tiny, tiny_prior, target, option):
    expected = _upsample(target, tiny, tiny_prior).images
    name, value = option
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        found = _upsample(target, tiny, tiny_prior).images
    finally:
        jax.config.update(name, before)
    np.testing.assert_array_equal(found, expected)


def test_the_best_so_far_can_be_drawn_along_the_way(tiny, tiny_prior, target):
    seen = []

    def look(image, solution, draw):
        seen.append((image, solution, draw()))

    (result,) = solve(
        [place_on_canvas(target)],
        [jax.random.key(3)],
        generator=tiny,
        prior=tiny_prior,
        method=method_named("rls").resolve(changes={**FULL_IMAGES, "style_steps": 10, "steps": 20}),
        solutions=1,
        on_preview=look,
    )
    assert [pair[:2] for pair in seen] == [(0, 0)] * 3
    generated = result.solutions[0].generated
    far = [np.abs(drawn - generated).mean() for *_, drawn in seen]
    assert all(drawn.shape == generated.shape for *_, drawn in seen)
    assert far[-1] < 0.1 * far[0]


def test_what_was_not_observed_decides_nothing(tiny, target):
    known = np.ones(target.shape[:2], np.float32)
    known[:, :3] = 0.0
    found = []
    for beyond in (-1.0, 1.0):
        image = target.copy()
        image[:, :3] = beyond
        found += solve(
            [place_on_canvas(image, known)],
            [jax.random.key(3)],
            generator=tiny,
            method=method_named("csgm").resolve("balanced", None).with_budget(12),
        )
    one, other = (result.solutions[0] for result in found)
    assert one.residual_psnr > 40.0 and other.residual_psnr > 40.0
    np.testing.assert_allclose(one.generated, other.generated, atol=1e-3)
    assert np.abs(one.image - other.image).max() < 0.1  # of 2
