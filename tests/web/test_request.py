"""What the page's fields ask for, as a method with its settings."""

import numpy as np
import pytest

from stylesr_jax.errors import UserError
from stylesr_jax.methods import METHODS
from stylesr_jax.web.request import (
    LEVERS,
    MAX_SOLUTIONS,
    Request,
    check_bounds,
    levers_of,
    method_of,
    presets_of,
    scribble,
)


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_gives_the_method_that_its_name_says(name):
    for preset in presets_of(name):
        levers = levers_of(name, preset)
        changes = {lever: value for lever, value in levers.items() if value is not None}
        method = method_of(Request(method=name, preset=preset, changes=changes))
        assert method == METHODS[name].resolve(preset)


def test_levers_that_a_method_has_not_are_not_offered():
    assert levers_of("bicubic", "balanced") == dict.fromkeys(LEVERS)
    assert levers_of("pulse", "balanced")["lambda_w"] is None
    assert levers_of("rls", "no such preset") == levers_of("rls", "balanced")


def test_fields_change_settings():
    changes = {"fidelity": "0.5", "lambda_w": " 0.1 ", "diversity": "", "inject_noise": "0.02"}
    settings = method_of(Request(method="rls", preset="fast", changes=changes)).settings
    assert (settings["fidelity"], settings["lambda_w"], settings["inject_noise"]) == (
        0.5,
        0.1,
        0.02,
    )
    assert (
        settings["diversity"] == 0.0
        and settings["steps"] == METHODS["rls"].presets["fast"]["steps"]
    )
    own = METHODS["rls"].resolve("paper").fidelity
    request = Request(method="rls", preset="paper", changes={"fidelity": "auto"})
    assert method_of(request).settings["fidelity"] == own


def test_fields_that_say_nothing_are_refused():
    with pytest.raises(UserError, match=r"rls\.lambda_w must be"):
        method_of(Request(method="rls", changes={"lambda_w": "much"}))
    with pytest.raises(UserError, match="no preset"):
        method_of(Request(method="rls", preset="combined"))


def test_references_are_noisy_only_where_something_is_drawn():
    mask = np.ones((4, 4), np.float32)
    assert method_of(Request(method="rls")).settings["noise_std"] == 0.0
    assert method_of(Request(method="rls", mask=mask)).settings["noise_std"] == 0.1
    assert method_of(Request(method="rls", mask=mask, noise="0.3")).settings["noise_std"] == 0.3
    assert method_of(Request(method="bicubic", mask=mask)) == METHODS["bicubic"]()


def test_a_single_solution_has_no_diversity():
    request = Request(method="multimodal", solutions=1)
    assert method_of(request).settings["diversity"] == 0.0


def test_numbers_are_bounded():
    for solutions, seed in ((0, 0), (MAX_SOLUTIONS + 1, 0), (1, -1), (1, 2**32)):
        with pytest.raises(UserError):
            check_bounds(Request(method="rls", solutions=solutions, seed=seed))
    check_bounds(Request(method="rls", solutions=MAX_SOLUTIONS, seed=2**32 - 1))


def test_a_scribble_is_what_was_drawn_in_any_layer():
    empty = np.zeros((6, 8, 4), np.uint8)
    assert scribble([]) is None and scribble([empty]) is None
    one, two = empty.copy(), empty.copy()
    one[1, 2] = two[4, 5] = (255, 0, 128, 153)
    two[0, 0] = (255, 0, 128, 60)  # the brush's soft edge
    mask = scribble([one, two])
    assert mask is not None and mask.dtype == np.float32
    assert np.argwhere(mask).tolist() == [[1, 2], [4, 5]]
