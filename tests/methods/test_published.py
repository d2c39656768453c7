"""The preset "paper" of every published method against what its paper or its code states."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from stylesr_jax.methods import METHODS
from stylesr_jax.methods.base import stages_of
from stylesr_jax.methods.ilo import LayerStage
from stylesr_jax.methods.terms import geodesic_cross
from stylesr_jax.methods.view import Beginning, Context, Start
from stylesr_jax.search.optimisers import ADAM
from stylesr_jax.search.schedules import schedule

# Nor do published solutions have what they miss of the input put in.
NO_LEVERS = {
    "starts": "own",
    "noise_std": 0.0,
    "inject_noise": 0.0,
    "diversity": 0.0,
    "fidelity": 0.0,
}

# Numbers as printed; "rate" is the name of the schedule, `TERMS` says what the weights are of.
PUBLISHED = {
    "rls": {
        "steps": 500,
        "learning_rate": 0.5,
        "rate": "constant",
        "space": "w+",
        "coordinates": "raw",
        "reduction": "sum",
        "lambda_l1": 1.0,
        "lambda_w": 1e-4,
        "lambda_g": 2e-4,
        "lambda_c": 0.01,
        "lambda_n": 0.0,  # of the default alone
        "lambda_s": 0.0,
        "spread_first": 0.0,  # the first solution starts at the mean
        **NO_LEVERS,
    },
    "pulse": {
        "steps": 100,
        "learning_rate": 0.4,
        "rate": "one_cycle_with_drop",
        "ramp_down": 0.1,
        "lambda_l2": 100.0,
        "lambda_geocross": 0.05,
        "eps": 2e-3,
        "noise_layers": 5,
        "zero_last": True,
        **NO_LEVERS,
    },
    "brgm": {
        "steps": 500,
        "learning_rate": 0.1,
        "rate": "ramped_cosine",
        "ramp_up": 0.05,
        "ramp_down": 0.25,
        "lambda_lpips": 1.0,
        "lambda_pixel": 0.001,
        "lambda_w": 100.0,
        "lambda_c": 3.0,
        "start_noise": 0.01,
        **NO_LEVERS,
    },
    "ilo": {
        "stages": 4,
        "steps_0": 300,
        "steps_1": 300,
        "steps_2": 300,
        "steps_3": 100,
        "learning_rate": 0.1,
        "rate": "ramped_cosine",
        "ramp_up": 0.05,
        "ramp_down": 0.75,
        "lambda_mse": 1.0,
        "lambda_lpips": 1.0,
        "lambda_geocross": 0.01,
        **NO_LEVERS,
    },
    "csgm": {
        "steps": 500,
        "learning_rate": 0.1,
        "rate": "constant",
        "lambda_l2": 1.0,
        "lambda_z": 0.001,
        **NO_LEVERS,
    },
    "multimodal": {
        "steps": 200,
        "learning_rate": 0.4,
        "rate": "warm_up_and_down",
        "ramp_up": 0.22,
        "ramp_down": 0.28,
        "lambda_l2": 405.0,
        "lambda_geocross": 0.058,
        "eps": 0.0,  # no floor
        **NO_LEVERS,
        "diversity": 0.02,
    },
}

# In each method's file, the functions that the weights multiply.
TERMS = {
    "rls": {
        "lambda_l1": "l1_sum",
        "lambda_w": "negative_log_prior",
        "lambda_g": "gaussian_norm",
        "lambda_c": "cross",
        "lambda_n": "whitened_norm",
        "lambda_s": "whitened_spread",
    },
    "robust": {"lambda_lpips": "perceptual_pyramid", "lambda_l1": "l1_coarsest"},
    "pulse": {"lambda_l2": "floored_mse", "lambda_geocross": "geodesic_cross"},
    "brgm": {
        "lambda_lpips": "perceptual",
        "lambda_pixel": "mse_255",
        "lambda_w": "mean_style",
        "lambda_c": "collinear",
    },
    "csgm": {"lambda_l2": "l2_sum", "lambda_z": "latent_norm"},
    "multimodal": {"lambda_l2": "floored_mse", "lambda_geocross": "geodesic_cross"},
    "ilo": {"lambda_mse": "mse", "lambda_lpips": "perceptual"},  # and a cross term by stage
}

ABLATIONS = {
    "paper-no-gauss": ("lambda_g", 0.0),
    "paper-no-prior": ("lambda_w", 0.0),
    "paper-no-cross": ("lambda_c", 0.0),
    "paper-w": ("space", "w"),
}


def _paper_stages(name):
    return stages_of(METHODS[name].resolve("paper"))


def _context(resolution):
    """A StyleGAN2 of that resolution, as far as the choice of noise maps goes."""
    sizes = [4]
    while sizes[-1] < resolution:
        sizes += [2 * sizes[-1]] * 2
    shapes = [(size, size) for size in sizes]
    generator = SimpleNamespace(
        resolution=resolution,
        noise_shapes=shapes,
        num_ws=2,
        w_dim=4,
        statistics={"w_mean": jnp.zeros(4)},
        random_noise=lambda key: shapes,
    )
    return Context(generator, None, None, None)  # type: ignore[arg-type]


def _searched_noise(stage, resolution):
    """The shapes of the noise maps that a stage begins with."""
    given = Beginning(jax.random.key(0), jnp.array(0), _context(resolution), START, None)
    return stage.start(given)["noise"]


START = Start(None, None, None)  # type: ignore[arg-type]
CASES = [(name, setting) for name, values in PUBLISHED.items() for setting in values]


@pytest.mark.parametrize(("name", "setting"), CASES, ids=[f"{n}-{s}" for n, s in CASES])
def test_paper_preset_holds_the_published_value(name, setting):
    assert METHODS[name].resolve("paper").settings[setting] == PUBLISHED[name][setting]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_of_the_paper_is_in_the_table(name):
    found = {s for s in METHODS[name].resolve("paper").settings if s.startswith("lambda_")}
    assert found == {s for s in PUBLISHED[name] if s.startswith("lambda_")}


@pytest.mark.parametrize("name", TERMS)
def test_weights_multiply_the_published_terms(name, monkeypatch):
    kind = METHODS[name]
    module = importlib.import_module(
        "stylesr_jax.methods.pulse" if name == "multimodal" else kind.__module__
    )
    values = {function: 2.0 + i for i, function in enumerate(TERMS[name].values())}
    for function, value in values.items():
        monkeypatch.setattr(module, function, lambda *_, value=value: value)
    method = kind.resolve("paper")
    view = SimpleNamespace(latents=SimpleNamespace(ws=None))
    expected = {w: getattr(method, w) * values[f] for w, f in TERMS[name].items()}
    assert sorted(method.objective(view).values()) == sorted(expected.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_use_the_published_schedule_and_optimiser(name):
    values = PUBLISHED[name]
    ramps = {way: values.get(f"ramp_{way}", 0.0) for way in ("up", "down")}
    for stage in _paper_stages(name):
        assert stage.schedule == schedule(values["rate"], **ramps)
        assert stage.rate == values["learning_rate"] and stage.stop is None
        assert (stage.optimiser() is ADAM) == (name != "multimodal")  # that has Ranger21
        assert stage.tied == (name == "multimodal")


def test_stages_of_ilo():
    parts = _paper_stages("ilo")
    assert [stage.block for stage in parts] == [0, 1, 2, 3]
    assert [stage.noise_layers for stage in parts] == [5, 7, 9, 11]
    assert [stage.first_style for stage in parts] == [0, 2, 4, 6]


def test_the_cross_term_of_ilo_begins_at_the_stage_s_first_style():
    latent = jax.random.normal(jax.random.key(0), (8, 4))
    method = SimpleNamespace(objective=lambda view: {}, lambda_geocross=3.0)
    view = SimpleNamespace(variables={"latent": latent})
    terms = LayerStage(first_style=2).replace(method=method).terms(view)  # type: ignore[arg-type]
    assert terms == {"geocross": 3.0 * geodesic_cross(latent[2:])}


@pytest.mark.parametrize(("resolution", "largest"), [(1024, 128), (512, 32), (256, 32)])
def test_brgm_searches_noise_maps_up_to_the_published_size(resolution, largest):
    shapes = _context(resolution).generator.noise_shapes
    (stage,) = _paper_stages("brgm")
    count = len(_searched_noise(stage, resolution))
    assert shapes[count - 1] == (largest, largest)
    assert shapes[count] == (2 * largest, 2 * largest)


def test_pulse_searches_five_noise_maps():
    (stage,) = _paper_stages("pulse")
    assert len(_searched_noise(stage, 1024)) == 5


@pytest.mark.parametrize("preset", ABLATIONS)
def test_ablations_of_rls_change_one_setting(preset):
    paper, ablated = (METHODS["rls"].resolve(name).settings for name in ("paper", preset))
    assert paper.keys() == ablated.keys()
    changed = {name: value for name, value in ablated.items() if value != paper[name]}
    setting, value = ABLATIONS[preset]
    assert changed == {setting: value}


def test_all_named_ablations_are_known():
    assert {name for name in METHODS["rls"].presets if name.startswith("paper-")} == set(ABLATIONS)


def test_combination_of_the_report_pulls_all_four_levers():
    settings = METHODS["multimodal"].resolve("combined").settings
    levers = {"starts": "own", "noise_std": 0.108, "inject_noise": 0.02, "diversity": 0.02}
    levers["fidelity"] = 1.0
    assert settings == {**METHODS["multimodal"].resolve("paper").settings, **levers}
