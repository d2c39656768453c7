"""Every method on an untrained generator, and what methods are made of."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.state_dict import prepare, random_state
from stylesr_jax.degradations import Bicubic
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator, measure_statistics
from stylesr_jax.methods import METHODS, base, levers, method_named
from stylesr_jax.methods.base import stages_of
from stylesr_jax.methods.view import Beginning, Context, Start
from stylesr_jax.metrics.lpips import load_features
from stylesr_jax.priors.autoregressive import FlowConfig, init_flow
from stylesr_jax.priors.flow import Prior
from stylesr_jax.priors.whitening import fit_whitening
from stylesr_jax.runs.folder import read_solutions, save_solutions
from stylesr_jax.search.engine import Problem, search
from stylesr_jax.search.optimisers import (
    NORMALISED,
    chain_diagnostics,
    chain_position,
    langevin,
    lookahead,
    ranger21,
)
from stylesr_jax.search.projections import l1_norm, near, on_sphere, onto_l1_ball
from stylesr_jax.search.schedules import schedule
from stylesr_jax.solver.rendering import add_correction, redraw
from stylesr_jax.solver.solve import upsample

# --- Projections ----------------------------------------------------------------------------


def _reference_l1_ball(v, radius):
    """Duchi et al. 2008, figure 1, by sorting."""
    if np.abs(v).sum() <= radius:
        return v
    ordered = np.sort(np.abs(v))[::-1]
    sums = np.cumsum(ordered) - radius
    count = np.nonzero(ordered > sums / np.arange(1, len(v) + 1))[0][-1] + 1
    return np.sign(v) * np.maximum(np.abs(v) - sums[count - 1] / count, 0)


@pytest.mark.parametrize("radius", [1e-3, 0.5, 20.0, 1e4, np.inf])
def test_l1_ball_is_the_reference(radius):
    v = np.random.default_rng(0).standard_cauchy(300).astype(np.float32)
    tree = {"a": jnp.asarray(v[:100]), "b": jnp.asarray(v[100:].reshape(20, 10))}
    projected = jax.jit(onto_l1_ball)(tree, radius)
    ours = np.concatenate([np.ravel(x) for x in jax.tree.leaves(projected)])
    np.testing.assert_allclose(ours, _reference_l1_ball(v.astype(np.float64), radius), atol=1e-4)
    assert l1_norm(projected) <= radius * (1 + 1e-4)


def test_nearest_point_of_a_ball_elsewhere():
    centre, x = jnp.asarray([5.0, 5.0]), jnp.asarray([8.0, 5.5])
    np.testing.assert_allclose(near(x, centre, 1.0), [6.0, 5.0], atol=1e-6)


def test_spheres_keep_norms():
    x, start = (jax.random.normal(jax.random.key(i), (4, 6)) for i in range(2))
    moved = on_sphere(x, start, axis=-1)
    norms = [np.linalg.norm(a, axis=-1) for a in (moved, start)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    cosine = np.sum(moved * x, axis=-1) / norms[0] / np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


# --- Rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("pulse", {0.0: 0.1, 0.225: 0.55, 0.45: 1.0, 0.8999: 0.1, 1.0: 0.001}),
        ("brgm", {0.05: 1.0, 0.75: 1.0, 0.875: 0.5, 1.0: 0.0}),
        ("ilo", {0.05: 1.0, 0.25: 1.0, 0.625: 0.5, 1.0: 0.0}),
        ("multimodal", {0.11: 0.51, 0.5: 1.0, 0.72: 1.0, 0.86: 0.5, 1.0: 0.0}),
        ("rls", {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
    ],
)
def test_rates_at_their_published_points(name, points):
    rate = stages_of(method_named(name)())[0].schedule
    for progress, value in points.items():
        np.testing.assert_allclose(rate(jnp.asarray(progress)), value, atol=1e-3)


def test_ramps_are_settings():
    changes = {"ramp_up": 0.5, "ramp_down": 0.5}
    (stage,) = stages_of(method_named("brgm").resolve(changes=changes))
    for progress, value in {0.25: 0.52, 0.5: 1.0, 0.75: 0.5}.items():
        np.testing.assert_allclose(stage.schedule(jnp.asarray(progress)), value, atol=1e-3)
    at_once = schedule("ramped_cosine")
    np.testing.assert_allclose(at_once(jnp.linspace(0.0, 0.99, 5)), [0.02, 1, 1, 1, 1])
    with pytest.raises(UserError, match="together at most 1"):
        stages_of(method_named("brgm").resolve(changes={**changes, "ramp_up": 0.6}))


# --- Optimisers -----------------------------------------------------------------------------


class _Bowl(Problem):
    """Half the squared distance from the start's target."""

    rate: float = 0.1

    def loss(self, context, start, variables):
        return {"u": 0.5 * jnp.sum((variables["x"] - start) ** 2)}, ()

    def learning_rate(self, progress):
        return self.rate * jnp.ones_like(progress)


class _Chain(_Bowl):
    samples = True

    def optimiser(self):
        return langevin(temperature=0.25)

    def final_variables(self, optimiser_state):
        return chain_position(optimiser_state)


class _Ranger(_Bowl):
    def optimiser(self):
        return ranger21(weight_decay=0.0)


def _run(problem, *, target, steps, starts=1):
    targets = jnp.broadcast_to(target, (starts, *target.shape))
    return search(
        problem,
        context=(),
        starts=targets,
        variables={"x": jnp.zeros_like(targets)},
        keys=jax.random.split(jax.random.key(0), starts),
        steps=steps,
        chunk=steps,
    )


def test_langevin_chains_have_the_right_mean_and_deviation():
    target = jnp.asarray([3.0, -2.0, 0.5])
    result = _run(_Chain(rate=1e-3), target=target, steps=300, starts=1500)
    draws = np.asarray(result.variables["x"])
    np.testing.assert_allclose(draws.mean(axis=0), target, atol=0.06)
    np.testing.assert_allclose(draws.std(axis=0), 0.5, atol=0.04)
    diagnostics = jax.vmap(chain_diagnostics)(result.optimiser)
    assert 0.45 < float(jnp.mean(diagnostics["acceptance"])) < 0.75
    assert (diagnostics["proposals"] == 299).all() and (diagnostics["step_size"] > 1e-3).all()
    np.testing.assert_allclose(  # the loss is that of the draw, not of a proposal
        result.loss, 0.5 * np.sum((draws - target) ** 2, axis=-1), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("preset", ["balanced", "fast"])
def test_chains_are_not_tied_and_sample_whitened_styles(preset):
    *phases, chain = stages_of(METHODS["langevin"].resolve(preset, {"diversity": 0.1}))
    assert all(phase.tied and not phase.samples for phase in phases)
    assert chain.samples and not chain.tied and chain.whitened and chain.stop is None


def test_normalised_descent_moves_each_row_by_the_same_length():
    gradient = jnp.asarray([[3.0, 4.0], [0.0, 1e-3], [0.0, 0.0]])
    updates, _ = NORMALISED.update(gradient, NORMALISED.init(gradient))
    np.testing.assert_allclose(updates, [[-0.6, -0.8], [0.0, -1.0], [0.0, 0.0]], rtol=1e-6)


def test_lookahead_goes_back_half_of_the_way():
    rate, key, loss = jnp.asarray(0.5), jax.random.key(0), jnp.zeros(())
    look = lookahead(period=3, share=0.5)
    x, path = jnp.zeros(1), []
    state = look.init(x)
    for _ in range(6):
        update, state = look.update(jnp.ones(1), state, x, rate=rate, key=key, loss=loss)
        x = x + rate * update
        path.append(float(x[0]))
    np.testing.assert_allclose(path, [0.5, 1.0, 0.75, 1.25, 1.75, 1.5])


def test_ranger21_descends_but_for_the_mean_of_each_row():
    # Centralised gradients say nothing of a row's mean: 1 direction in 64 here, in 512 there.
    target = jax.random.normal(jax.random.key(0), (4, 64))
    result = _run(_Ranger(rate=0.1), target=target, steps=200)
    assert result.loss[0] < 0.05 * result.history["u"][0, 0]


# --- Settings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_resolves_to_stages(name):
    kind = METHODS[name]
    assert {"fast", "best", "paper"} <= set(kind.presets)
    for preset in ("balanced", *kind.presets):
        method = kind.resolve(preset)
        assert set(kind.presets.get(preset, {})) <= set(method.settings)
        steps = [int(stage.steps) for stage in stages_of(method)]
        assert all(steps) and sum(steps) == method.steps_in_all
        assert set(kind.step_fields) <= set(method.settings)


@pytest.mark.parametrize("name", METHODS)
def test_numbers_are_leaves_and_choices_are_not(name):
    method = METHODS[name]()
    number = {n: v for n, v in method.settings.items() if isinstance(v, float)}
    moved = method.changed({n: v + 1.0 for n, v in number.items() if n != "spread"})
    assert jax.tree.structure(method) == jax.tree.structure(moved)
    choices = [n for n, v in method.settings.items() if isinstance(v, str) and v in ("w+", "own")]
    for choice in choices:
        other = {"w+": "w", "own": "same" if choice == "starts" else "stored"}
        changed = method.changed({choice: other[method.settings[choice]]})
        assert jax.tree.structure(method) != jax.tree.structure(changed)


@pytest.mark.parametrize("name", METHODS)
def test_equal_settings_give_equal_stages(name):
    first, second = (stages_of(METHODS[name]()) for _ in range(2))
    assert list(map(jax.tree.structure, first)) == list(map(jax.tree.structure, second))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rls", {"lamda_w": 1.0}, "lambda_w"),
        ("rls", {"space": "z"}, "w+, w"),
        ("rls", {"steps": "many"}, "whole number"),
        ("rls", {"lambda_w": float("nan")}, "finite"),
        ("rls", {"steps": -5}, "0 or more"),
        ("rls", {"noise_std": -1.0}, "0 or more"),
        ("csgm", {"steps": None}, "whole number"),
        ("langevin", {"temperature": 0.0}, "above 0"),
        ("rls+", {"ball": "round"}, "tensor, global"),
        ("pulse", {"rate": "fast"}, "one_cycle_with_drop"),
        ("ilo", {"stages": 9}, "1 to 4"),
        ("bicubic", {"steps": 5}, "none"),
    ],
)
def test_bad_settings_say_what_to_write(name, changes, message):
    method = method_named(name)
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        stages_of(method.resolve(changes=changes))


def test_unknown_names():
    with pytest.raises(UserError, match="bicubic"):
        method_named("srgan")
    with pytest.raises(UserError, match="paper-no-gauss"):
        method_named("rls").resolve("quick")


def test_budget_is_shared_by_the_stages():
    steps = [int(stage.steps) for stage in stages_of(method_named("ilo")().with_budget(61))]
    assert sum(steps) == 61 and steps[0] >= steps[2] > 0
    fewer = method_named("ilo").resolve(changes={"stages": 2}).with_budget(61)
    assert [int(stage.steps) for stage in stages_of(fewer)] == [31, 30]
    assert method_named("rls")().with_budget(10).steps_in_all == 10
    assert method_named("bicubic")().with_budget(10) == method_named("bicubic")()


def test_ablations_switch_off_what_they_name():
    rls = method_named("rls")
    whole = rls.resolve("paper")
    for preset, setting in (("gauss", "lambda_g"), ("prior", "lambda_w"), ("cross", "lambda_c")):
        assert whole.settings[setting] != 0.0
        assert rls.resolve(f"paper-no-{preset}") == whole.changed({setting: 0.0})
    assert rls.resolve("paper-w") == whole.changed({"space": "w"})


# --- Runs on an untrained generator ---------------------------------------------------------


def _small(**options):
    sizes = {"resolution": 16, "channel_base": 64, "z_dim": 16, "w_dim": 16, "mapping_layers": 2}
    params, config = prepare(random_state(seed=0, **{**sizes, **options}), name="small-16")
    generator = Generator(jax.tree.map(jnp.asarray, params), {}, None, config)
    statistics = measure_statistics(jax.random.key(0), generator, draws=1000)
    return generator.replace(statistics=statistics)


@pytest.fixture(scope="module")
def small():
    return _small()


@pytest.fixture(scope="module")
def prior(small):
    config = FlowConfig(dim=16, blocks=1, width=16)
    whitening = fit_whitening(jax.random.key(1), small, floor=1e-3, draws=1000)
    return Prior(whitening, init_flow(jax.random.key(2), config), config)


TARGET = np.tanh(np.random.default_rng(0).normal(size=(8, 8, 3))).astype(np.float32)
FEW = {"ilo": {"stages": 2}}  # a 16 px generator has three blocks


def _upsample(generator, name, prior=None, **options):
    preset = options.pop("preset", "balanced")
    changes = {**FEW.get(name, {}), **options.pop("settings", {})}
    method = method_named(name).resolve(preset, changes).with_budget(options.pop("steps", 4))
    return upsample(
        TARGET,
        generator=generator,
        prior=prior if method.needs_prior else None,
        perceptual=load_features("vgg16") if method.needs_perceptual else None,
        method=method,
        key=jax.random.key(1),
        **{"solutions": 2, **options},
    )


ALL_LEVERS = {"noise_std": 0.05, "inject_noise": 0.02, "diversity": 0.02}


@pytest.mark.parametrize(
    "name",
    # RLS+ and Langevin sampling begin as RLS does, and take twice as long.
    [pytest.param(n, marks=pytest.mark.slow if n in ("rls+", "langevin") else ()) for n in METHODS],
)
def test_every_method_runs_with_all_levers_and_its_file_redraws_the_pixels(
    name, small, prior, tmp_path
):
    method = METHODS[name]()
    levers_on = ALL_LEVERS if method.steps_in_all else {}
    result = _upsample(small, name, prior, settings=levers_on)
    assert result.images.shape == (2, 16, 16, 3)
    assert np.isfinite(result.images).all() and np.abs(result.images).max() <= 1.0
    assert all(one.status == "ok" and np.isfinite(one.loss) for one in result.solutions)
    if not method.steps_in_all:
        save_solutions(tmp_path / "solutions.npz", result, {})
        saved = read_solutions(tmp_path / "solutions.npz", small)
        assert saved.latents == (None, None)
        np.testing.assert_array_equal(saved.observation.target, TARGET)
        return
    assert np.abs(result.images[0] - result.images[1]).max() > 1e-3
    assert len(result.solutions[0].history["diversity"]) == 4
    assert result.solutions[0].history["diversity"][0] < 0.0
    save_solutions(tmp_path / "solutions.npz", result, {})
    saved = read_solutions(tmp_path / "solutions.npz", small)
    drawn = zip(result.solutions, saved.latents, saved.corrections, strict=True)
    for one, latents, correction in drawn:
        generated = redraw(small, latents, block=saved.config["block"])
        np.testing.assert_array_equal(generated, one.generated)
        np.testing.assert_array_equal(add_correction(generated, correction), one.image)


def test_pulse_stays_on_its_spheres(small):
    # From the same key: a search of one tiny step is next to the start, one of six is not.
    near_start, later = (
        _upsample(small, "pulse", solutions=1, steps=steps, settings={"learning_rate": rate})
        for steps, rate in ((1, 1e-9), (6, 0.4))
    )

    def on_spheres(result):
        latents = result.solutions[0].latents
        linear = np.where(latents.ws >= 0, latents.ws, 5.0 * latents.ws)
        mean, deviation = (np.asarray(small.statistics[f"pulse_{n}"]) for n in ("mean", "std"))
        return (linear - mean) / deviation, latents.noise

    (v, noise), (start, first) = on_spheres(later), on_spheres(near_start)
    radii = np.linalg.norm(start, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(v, axis=-1), radii, rtol=1e-3)
    assert np.abs(v - start).max() > 0.05
    for moved, began in zip(noise, first, strict=True):
        np.testing.assert_allclose(np.linalg.norm(moved), np.linalg.norm(began), rtol=1e-3)
    assert np.abs(noise[0] - first[0]).max() > 0.05


@pytest.mark.slow
def test_weights_of_rls_plus_stay_in_their_ball_and_help(small, prior):
    settings = {"radius": 1e-3, "weights_rate": 0.1, "coarse": False}
    result = _upsample(small, "rls+", prior, solutions=1, steps=12, settings=settings)
    moved, originals = result.solutions[0].latents.synthesis, small.params["synthesis"]
    for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(originals), strict=True):
        change = np.abs(new - old).sum(dtype=np.float64)
        assert change <= 1.01e-3 * np.abs(old).sum(dtype=np.float64) + 1e-5
    history = result.solutions[0].history["l1"]
    assert result.solutions[0].terms["l1"] < history[8]


def test_ilo_stages_begin_with_the_image_of_the_last_one(small):
    parts = stages_of(method_named("ilo").resolve(changes={"stages": 3}))
    context = Context(small, None, None, None)  # type: ignore[arg-type]
    start = Start(jnp.zeros((8, 8, 3)), jnp.ones((8, 8, 1)), jnp.asarray(0))

    @jax.jit
    def images(generator, key):
        own = context._replace(generator=generator)
        variables, pairs = None, []
        for k, stage in enumerate(parts):
            before = variables
            variables = stage.start(Beginning(key, jnp.asarray(0), own, start, variables))
            if k:
                pairs.append([(parts[k - 1], before), (stage, variables)])
            # What the search does to them, before the next stage begins:
            variables = jax.tree.map(lambda x: 1.1 * x, variables)
        return [
            [base.render(generator, stage.decode(own, v), block=stage.block) for stage, v in pair]
            for pair in pairs
        ]

    for before, after in images(small, jax.random.key(0)):
        np.testing.assert_allclose(before, after, atol=1e-3 * float(jnp.abs(before).max()))


@pytest.mark.slow
def test_interrupting_an_early_stage_gives_whole_solutions(small):
    def interrupt(image, solution, step, steps, terms):
        raise KeyboardInterrupt

    result = _upsample(small, "ilo", solutions=1, on_progress=interrupt)
    assert result.interrupted and np.isfinite(result.images).all()
    assert result.solutions[0].latents.activation is not None


def test_a_class_of_a_conditional_generator():
    generator = _small(label_dim=3)
    with pytest.raises(UserError, match="class"):
        _upsample(generator, "csgm", solutions=1)
    chosen = generator.with_class(1, key=jax.random.key(0), draws=100)
    assert np.isfinite(_upsample(chosen, "csgm", solutions=1).images).all()


def test_each_stage_compiles_once(small, monkeypatch):
    traces = []
    original = base.View

    def counting(*arguments):
        traces.append(1)
        return original(*arguments)

    monkeypatch.setattr(base, "View", counting)
    changes = {"lambda_l2": 90.0}
    _upsample(small, "csgm", solutions=1, settings={"lambda_l2": 80.0}, preset="paper")
    before = len(traces)
    _upsample(small, "csgm", solutions=3, settings=changes, steps=15, preset="paper")
    assert len(traces) == before


# --- Levers ---------------------------------------------------------------------------------


def test_diversity_is_the_sum_of_distances_within_an_image():
    images = jax.random.normal(jax.random.key(0), (4, 256, 256, 3))
    value = levers.diversity(jnp.asarray([0, 0, 0, 1]), images)
    unit = np.asarray(images, np.float64) / 2
    pairs = [[np.linalg.norm(unit[i] - unit[j]) for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(value[:3], -np.sum(pairs, axis=1), rtol=1e-4)
    assert value[3] == 0.0


def test_diversity_pushes_solutions_apart(small):
    def distance(weight):
        images = _upsample(small, "csgm", settings={"diversity": weight}, steps=20).images
        return np.abs(images[0] - images[1]).mean()

    assert distance(3.0) > 1.05 * distance(0.0)


def test_one_solution_leaves_out_a_method_s_own_diversity_and_refuses_one_asked_for(small):
    alone = _upsample(small, "multimodal", solutions=1)
    assert alone.settings["diversity"] == 0.0 and "diversity" not in alone.solutions[0].terms
    with pytest.raises(UserError, match="two of them"):
        _upsample(small, "csgm", solutions=1, settings={"diversity": 0.02})


def test_reference_noise_falls_inside_the_mask():
    target, where = jnp.zeros((8, 8, 3)), jnp.zeros((8, 8, 1)).at[2:6, :4].set(1.0)
    noisy = levers.noisy_target(jax.random.key(0), target, where, jnp.asarray(0.1))
    inside = np.asarray(noisy[2:6, :4])
    assert 0.06 < inside.std() < 0.14
    assert np.count_nonzero(noisy) == inside.size


@pytest.mark.slow
def test_injected_noise_reaches_every_stage_of_ilo(small):
    settings = {"inject_layers": "0", "starts": "same"}
    plain, noisy = (
        _upsample(small, "ilo", solutions=1, settings={**settings, "inject_noise": std})
        for std in (0.0, 0.5)
    )
    assert np.abs(plain.images - noisy.images).mean() > 1e-3
    entering = [one.solutions[0].latents.activation for one in (plain, noisy)]
    pairs = zip(*map(jax.tree.leaves, entering), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-3


def test_injected_noise_changes_chosen_layers_by_the_given_deviation(small):
    injected = levers.injected_noise(jax.random.key(0), small, (2, 4), jnp.asarray(0.05))
    strengths = levers.noise_strengths(small)
    config = small.params["synthesis"]
    assert float(strengths[0]) == float(config["b4"]["conv1"]["noise_strength"])
    assert float(strengths[4]) == float(config["b16"]["conv1"]["noise_strength"])
    for i, (noise, strength) in enumerate(zip(injected, strengths, strict=True)):
        if i in (2, 4):
            assert 0.03 < float(jnp.std(noise * strength)) < 0.07
        else:
            assert not np.any(noise)


def test_layers_are_numbers_and_ranges():
    assert levers.layer_range("all", 4) == (0, 1, 2, 3)
    assert levers.layer_range("0, 2-3", 4) == (0, 2, 3)
    for text in ("4", "3-1", "a", "", "-1"):
        with pytest.raises(UserError, match="0 to 3"):
            levers.layer_range(text, 4)


def test_noise_levers_give_different_solutions_from_the_same_start(small):
    same = _upsample(small, "csgm", settings={"starts": "same"})
    np.testing.assert_array_equal(same.images[0], same.images[1])
    settings = {"starts": "same", "inject_noise": 0.05, "inject_layers": "1-2", "noise_std": 0.1}
    mask = np.zeros((16, 16), np.float32)
    mask[:8] = 1.0
    result = _upsample(small, "csgm", settings=settings, noise_mask=mask)
    assert np.abs(result.images[0] - result.images[1]).max() > 1e-3
    image = redraw(small, result.solutions[0].latents)
    np.testing.assert_array_equal(image, result.solutions[0].generated)
    with pytest.raises(UserError, match="noise mask"):
        _upsample(small, "csgm", settings=settings, noise_mask=mask + 1.0)


def test_uncertainty_is_the_deviation_over_solutions(small):
    result = _upsample(small, "csgm", solutions=3)
    np.testing.assert_allclose(result.uncertainty, result.images.std(axis=0, ddof=1))
    with pytest.raises(UserError, match="--solutions 2"):
        _ = _upsample(small, "csgm", solutions=1).uncertainty


# --- RLS's phase with an activation ---------------------------------------------------------


@pytest.mark.parametrize(("side", "size"), [(4, 4), (16, 8), (32, 16), (64, 32), (256, 32)])
def test_the_activation_has_half_the_inputs_size_and_at_most_32_px(side, size):
    sizes = (4, 8, 16, 32, 64, 128)
    config = SimpleNamespace(block_resolutions=sizes, image_resolutions=sizes)
    method = METHODS["rls"]().fitted(SimpleNamespace(config=config, resolution=128), side)
    *_, last = method.make_stages()
    assert sizes[last.block - 1] == size  # of what enters the block


@pytest.mark.parametrize(("side", "radius"), [(8, 0.1), (32, 0.1), (64, 0.2), (128, 0.4)])
def test_the_activations_ball_grows_with_the_input(small, side, radius):
    assert METHODS["rls"]().fitted(small, side).activation_radius == pytest.approx(radius)


def test_the_activation_begins_as_the_styles_make_it_and_stays_in_its_ball(small, prior):
    method = METHODS["rls"](activation_radius=0.01).fitted(small, 8)
    *_, styles, last = method.make_stages()
    context = Context(small, prior, Bicubic(size=8), None)
    start = Start(jnp.asarray(TARGET), jnp.ones((8, 8, 1)), jnp.array(0))
    given = Beginning(jax.random.key(0), jnp.array(1), context, start, None)
    begun = styles.start(given)
    variables = last.start(given._replace(previous=begun))
    of_styles = styles.view(context, start, begun).image
    np.testing.assert_allclose(last.view(context, start, variables).image, of_styles, atol=1e-5)
    centre = variables["activation"]
    far = variables | {"activation": jax.tree.map(lambda x: x + jnp.sign(x), centre)}
    inside = last.project(far, variables)["activation"]
    moved = l1_norm(jax.tree.map(jnp.subtract, inside, centre))
    np.testing.assert_allclose(moved, 0.01 * l1_norm(centre), rtol=1e-3)


def test_an_activation_comes_nearer_to_the_input_than_styles_alone(small, prior):
    still = {"style_steps": 2, "coarse_steps": 0, "steps": 2, "learning_rate": 0.0}
    found = [
        _upsample(
            small,
            "rls",
            prior,
            solutions=1,
            steps=4 + steps,
            settings={**still, "activation_steps": steps},
        )
        for steps in (0, 20)
    ]
    styles, with_activation = (result.solutions[0] for result in found)
    assert styles.block == 0 and styles.latents.activation is None
    assert with_activation.latents.activation is not None
    assert with_activation.terms["l1"] < 0.9 * styles.terms["l1"]


def test_the_activation_may_follow_on_styles_of_small_images(small, prior):
    method = METHODS["rls"](style_steps=2, coarse_steps=2, steps=0, activation_steps=4)
    assert [stage.coarse for stage in method.make_stages()] == [True, True, False]
    result = _upsample(small, "rls", prior, steps=8, settings=method.settings)
    for solution in result.solutions:
        assert solution.is_sound and solution.latents.activation is not None
        assert len(solution.history["l1"]) == 8


def test_styles_get_the_steps_where_no_activation_enters_a_block():
    config = SimpleNamespace(block_resolutions=(4,), image_resolutions=(4,))
    generator = SimpleNamespace(config=config, resolution=4)
    method = METHODS["rls"](steps=0, activation_steps=7).fitted(generator, 4)
    assert [int(stage.steps) for stage in method.make_stages()] == [7, 7]
    assert method.settings["activation_steps"] == 0
