"""The preset "paper" of every published method against what its paper or its code states."""

from types import SimpleNamespace

import pytest

from stylesr_jax.methods import METHODS
from stylesr_jax.methods import terms as objective
from stylesr_jax.methods.base import adam, rate_of, stages_of
from stylesr_jax.methods.terms import GeocrossFrom

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
        "sketch_steps": 0,
        "learning_rate": 0.5,
        "rate": "constant",
        "space": "w+",
        "coordinates": "raw",
        "reduction": "sum",
        "lambda_l1": 1.0,
        "lambda_w": 1e-4,
        "lambda_g": 2e-4,
        "lambda_c": 0.01,
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

# The functions that the weights multiply; ILO's cross term begins at latent 2k.
TERMS = {
    "rls": {
        "lambda_l1": objective.l1_sum,
        "lambda_w": objective.prior,
        "lambda_g": objective.gaussian_norm,
        "lambda_c": objective.cross,
    },
    "pulse": {"lambda_l2": objective.floored_mse, "lambda_geocross": objective.geocross},
    "brgm": {
        "lambda_lpips": objective.perceptual,
        "lambda_pixel": objective.mse_255,
        "lambda_w": objective.mean_style,
        "lambda_c": objective.collinear,
    },
    "csgm": {"lambda_l2": objective.l2_sum, "lambda_z": objective.latent_norm},
    "multimodal": {"lambda_l2": objective.floored_mse, "lambda_geocross": objective.geocross},
}

ABLATIONS = {
    "paper-no-gauss": ("lambda_g", 0.0),
    "paper-no-prior": ("lambda_w", 0.0),
    "paper-no-cross": ("lambda_c", 0.0),
    "paper-w": ("space", "w"),
}


def _paper_stages(name):
    method = METHODS[name]
    return stages_of(method, method.resolve("paper"))


def _maps(resolution):
    """A StyleGAN2 of that resolution, as far as the choice of noise maps goes."""
    sizes = [4]
    while sizes[-1] < resolution:
        sizes += [2 * sizes[-1]] * 2
    return SimpleNamespace(resolution=resolution, noise_shapes=[(size, size) for size in sizes])


CASES = [(name, setting) for name, values in PUBLISHED.items() for setting in values]


@pytest.mark.parametrize(("name", "setting"), CASES, ids=[f"{n}-{s}" for n, s in CASES])
def test_paper_preset_holds_the_published_value(name, setting):
    assert METHODS[name].resolve("paper")[setting] == PUBLISHED[name][setting]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_of_the_paper_is_in_the_table(name):
    found = {s for s in METHODS[name].resolve("paper") if s.startswith("lambda_")}
    assert found == {s for s in PUBLISHED[name] if s.startswith("lambda_")}


@pytest.mark.parametrize("name", TERMS)
def test_weights_multiply_the_published_terms(name):
    (stage,) = _paper_stages(name)
    assert {term.weight: term.function for term in stage.terms} == TERMS[name]
    assert len(stage.terms) == len(TERMS[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_use_the_published_schedule_and_optimiser(name):
    for stage in _paper_stages(name):
        assert stage.rate == rate_of(PUBLISHED[name])
        assert stage.keep == "best" and not stage.sketch
        assert (stage.optimiser is adam) == (name != "multimodal")  # that has Ranger21
        assert (stage.couple is not None) == (name == "multimodal")


def test_stages_of_ilo():
    parts = _paper_stages("ilo")
    assert [stage.block for stage in parts] == [0, 1, 2, 3]
    generator = _maps(1024)
    assert [stage.coordinates.start.noise(generator) for stage in parts] == [5, 7, 9, 11]
    for k, stage in enumerate(parts):
        assert {term.weight: term.function for term in stage.terms} == {
            "lambda_mse": objective.mse,
            "lambda_lpips": objective.perceptual,
            "lambda_geocross": GeocrossFrom(2 * k),
        }


@pytest.mark.parametrize(("resolution", "largest"), [(1024, 128), (512, 32), (256, 32)])
def test_brgm_searches_noise_maps_up_to_the_published_size(resolution, largest):
    generator = _maps(resolution)
    (stage,) = _paper_stages("brgm")
    count = stage.coordinates.start.noise(generator)
    assert generator.noise_shapes[count - 1] == (largest, largest)
    assert generator.noise_shapes[count] == (2 * largest, 2 * largest)


def test_pulse_searches_five_noise_maps():
    (stage,) = _paper_stages("pulse")
    assert stage.coordinates.start.noise(_maps(1024)) == 5


@pytest.mark.parametrize("preset", ABLATIONS)
def test_ablations_of_rls_change_one_setting(preset):
    paper, ablated = (METHODS["rls"].resolve(name) for name in ("paper", preset))
    assert paper.keys() == ablated.keys()
    changed = {name: value for name, value in ablated.items() if value != paper[name]}
    setting, value = ABLATIONS[preset]
    assert changed == {setting: value}


def test_all_named_ablations_are_known():
    assert {name for name in METHODS["rls"].presets if name.startswith("paper-")} == set(ABLATIONS)


def test_combination_of_the_report_pulls_all_four_levers():
    settings = METHODS["multimodal"].resolve("combined")
    levers = {"starts": "own", "noise_std": 0.108, "inject_noise": 0.02, "diversity": 0.02}
    levers["fidelity"] = 1.0
    assert settings == {**METHODS["multimodal"].resolve("paper"), **levers}
