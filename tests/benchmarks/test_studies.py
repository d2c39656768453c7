"""The studies: what they compare, and one of them from end to end on an untrained generator."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.studies import (
    ablation,
    common,
    diversity,
    methods,
    multimodal,
    robustness,
    sweeps,
    table1,
)
from convert.state_dict import random_state
from stylesr_jax.degradations import parse
from stylesr_jax.methods import METHODS
from stylesr_jax.metrics.scorer import Sizes
from stylesr_jax.priors.autoregressive import FlowConfig
from stylesr_jax.runs.evaluation import picture_path
from untrained import untrained_files

STUDIES = {
    ablation: [11],
    diversity: [3],
    methods: [len(METHODS)],
    multimodal: [1, 4, 1],
    robustness: [3],
    sweeps: [6, 6],
    table1: [4],
}
WEIGHTS = [float(weight) for weight in sweeps.WEIGHTS.split(",")]
TEXTS = {
    "ablation": ablation.PARTS,
    "ablation, published": ablation.PUBLISHED,
    "diversity": common.named(diversity.METHODS),
    "multimodal": {**multimodal.LEVERS, **multimodal.COMBINED},
    "multimodal, masked": multimodal.MASKED,
    "robustness": common.named(robustness.METHODS),
    "sweeps of P_w": sweeps.swept("lambda_w", WEIGHTS),
    "sweeps of P_gauss": sweeps.swept("lambda_g", WEIGHTS),
    "table1": common.named(table1.METHODS),
}


def _variants(texts, *options):
    args = common.options("test", "doc").parse_args(["--steps", "30", *options])
    return {one.label: one for one in common.variants_of(texts, args)}


def test_the_kept_command_names_no_folder():
    given = ["--images", "/home/me/faces", "--own-steps", "--limit=4", "--work", "/tmp/w"]
    given += ["--methods", "RLS=rls,far off=rls:spread=1", "--source", "my faces", "--out", "o"]
    given += ["--generator=/home/me/own.safetensors", "--prior", "flows/own.safetensors"]
    assert common.command_of("python -m benchmarks.studies.diversity", given) == (
        "python -m benchmarks.studies.diversity --images FACES --own-steps --limit 4 "
        "--methods 'RLS=rls,far off=rls:spread=1' "
        "--generator own.safetensors --prior own.safetensors"
    )


# --- Variants -------------------------------------------------------------------------------


class _Loading(Exception):
    """Raised where a study would load what its variants need."""


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__.rpartition(".")[2])
def test_studies_parse_their_variants_before_they_load_anything(study, monkeypatch):
    parsed, loaded = [], []
    original = common.variants_of

    def variants_of(texts, args):
        parsed.append(original(texts, args))
        return parsed[-1]

    def setting(args, variants):
        loaded.extend(variants)
        raise _Loading

    monkeypatch.setattr(common, "variants_of", variants_of)
    monkeypatch.setattr(common, "setting", setting)
    parser = common.options("test", study.__doc__)
    chosen = None if study is methods else getattr(study, "METHODS", None)
    parser.set_defaults(methods=chosen, weights=sweeps.WEIGHTS, solutions=4)
    with pytest.raises(_Loading):
        study.study(parser.parse_args(["--steps", "30"]))
    assert [len(some) for some in parsed] == STUDIES[study]
    assert [one for some in parsed for one in some] == loaded
    for one in loaded:
        assert one.evaluations == (30 if one.stages else 0)
    assert sum(not one.stages for one in loaded) <= 1  # bicubic


@pytest.mark.parametrize("name", TEXTS)
def test_variants_are_methods_with_the_same_budget(name):
    texts, found = TEXTS[name], _variants(TEXTS[name])
    assert list(found) == list(texts)
    for one in found.values():
        assert one.evaluations == (30 if one.stages else 0)
        assert one.stages or one.method.name == "bicubic"
    # Pictures are kept under the labels: no two of them may share a folder.
    plan = SimpleNamespace(out=Path("out"))
    folders = {picture_path(plan, one, "a", 0) for one in found.values()}  # type: ignore[arg-type]
    assert len(folders) == len(texts)


@pytest.mark.parametrize("name", TEXTS)
def test_own_steps_are_those_of_the_presets(name):
    for one in _variants(TEXTS[name], "--own-steps").values():
        preset = type(one.method).resolve(one.preset).settings
        for name in one.method.step_fields:
            assert one.settings[name] in (preset[name], 0)  # 0: a stage that was left out
        assert one.method.name == "bicubic" or one.evaluations > 30


def test_each_ablation_changes_one_part_of_the_default():
    found = _variants(ablation.PARTS, "--own-steps")
    default, paper = (METHODS["rls"].resolve(name).settings for name in ("balanced", "paper"))
    changed = {
        label: {name: v for name, v in one.settings.items() if v != default[name]}
        for label, one in found.items()
    }
    terms = {
        f"with {term}": {"reduction": "sum", name: paper[name]}
        for name, term in ablation.TERMS.items()
    }
    assert changed == {
        "RLS": {},
        "without the phase in W": {"style_steps": 0},
        "without the phase in W+": {"space": "w"},
        "without the correction": {"fidelity": 0.0},
        "without small images": {"coarse": False},
        "without the norm of styles": {"lambda_n": 0.0},
        "without their spread": {"lambda_s": 0.0},
        "normalised gradients": {"optimiser": "normalised", "coordinates": "raw"},
        **terms,
    }
    assert all(0.0 not in term.values() for term in terms.values())


@pytest.mark.parametrize("rate", [None, 0.04])
def test_published_ablations_change_one_setting_of_the_published_ones(rate):
    texts = ablation.published_texts(rate)
    whole, *others = (one.settings for one in _variants(texts).values())
    changes = {"steps": 30} if rate is None else {"steps": 30, "learning_rate": rate}
    assert whole == {**METHODS["rls"].resolve("paper").settings, **changes}
    changed = [{n: v for n, v in one.items() if v != whole[n]} for one in others]
    assert changed == [{"lambda_g": 0.0}, {"lambda_w": 0.0}, {"lambda_c": 0.0}, {"space": "w"}]


@pytest.mark.parametrize("swept", sweeps.SWEPT)
def test_a_sweep_moves_one_weight_with_the_others_off(swept):
    found = _variants(sweeps.swept(swept, WEIGHTS))
    assert len(found) == len(WEIGHTS) > 2
    for weight, one in zip(WEIGHTS, found.values(), strict=True):
        weights = {name: one.settings[name] for name in ("lambda_w", "lambda_g", "lambda_c")}
        assert weights == {**dict.fromkeys(weights, 0.0), swept: weight}


PULLED = {
    "A starts": {},
    "B reference noise": {"starts": "same", "noise_std": 0.108},
    "C injected noise": {"starts": "same", "inject_noise": 0.02},
    "A + D diversity": {"diversity": 0.02},
    "all": {"noise_std": 0.108, "inject_noise": 0.02, "diversity": 0.02},
    "B in a mask": {"starts": "same", "noise_std": 0.108},
}


def test_levers_are_pulled_one_by_one_and_together():
    off = {"starts": "own", "noise_std": 0.0, "inject_noise": 0.0, "diversity": 0.0}
    texts = {**multimodal.LEVERS, **multimodal.COMBINED, **multimodal.MASKED}
    found = _variants(texts)
    levers = {label: {name: one.settings[name] for name in off} for label, one in found.items()}
    assert levers == {label: {**off, **pulled} for label, pulled in PULLED.items()}


def test_the_mask_is_around_the_mouth():
    mask = multimodal.mouth_mask(32)
    assert mask.shape == (32, 32) and mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0} and 0.04 < mask.mean() < 0.12
    rows, columns = np.nonzero(mask)
    assert rows.min() > 16 and columns.min() + columns.max() == 31


def test_published_rivals_have_their_published_settings():
    found = _variants(TEXTS["table1"])
    assert [one.preset for one in found.values()] == ["balanced", "paper", "paper", "balanced"]
    paper = METHODS["pulse"].resolve("paper").settings
    assert {**found["PULSE"].settings, "steps": paper["steps"]} == paper
    assert [one.method.fidelity for one in found.values() if one.stages] == [0.0, 0.0, 1.0]  # type: ignore[attr-defined]


# --- Robustness -----------------------------------------------------------------------------


@pytest.fixture
def degradations(monkeypatch, tmp_path):
    """Runs the robustness study without its searches.

    Returns the degradation of each part, and the headings.
    """

    def study(resolution, lr_size):
        measured, shown, tables = [], [], []
        plan = SimpleNamespace(images=[Path("portrait.png")])

        def measure(setting, variants, part, *, degradation):
            measured.append((part, degradation))
            return {}

        def show(setting, variants, part, *, degradation):
            shown.append((part, degradation))
            return plan

        loaded = SimpleNamespace(parts={"generator": SimpleNamespace(resolution=resolution)})
        for name, stand_in in {
            "setting": lambda args, variants: loaded,
            "measure": measure,
            "show": show,
            "row_of": lambda plan, path, lead: [lead],
            "save_grid": lambda path, grid: None,
            "keep_table": lambda args, title, note, found, source: tables.append(list(found)),
            "source_of": lambda args, setting: "",
        }.items():
            monkeypatch.setattr(common, name, stand_in)
        parser = common.options("robustness", "doc", out=str(tmp_path), lr_size=lr_size)
        parser.set_defaults(methods=robustness.METHODS)
        robustness.study(parser.parse_args([]))
        assert measured == shown
        return dict(measured), tables[-1]

    return study


@pytest.mark.parametrize(("resolution", "motion", "blur"), [(1024, 100, 30), (256, 25, 7.5)])
def test_inputs_are_degraded_as_in_the_paper_at_the_generators_scale(
    degradations, resolution, motion, blur
):
    found, headings = degradations(resolution, 16)
    expected = {
        "none": "bicubic(16)",
        "Gaussian noise": "bicubic(16)|noise(0.05)",
        "salt and pepper": "bicubic(16)|salt_pepper(0.05)",
        "Gaussian blur": f"blur({blur:g})|bicubic(16)",
        "motion blur": f"motion({motion:g})|bicubic(16)",
        "JPEG": "bicubic(16)|jpeg(30)",
    }
    assert list(expected) == list(robustness.DEGRADATIONS)
    assert [str(one) for one in found.values()] == [str(parse(t)) for t in expected.values()]
    assert headings == [f"{name}: `{text}`" for name, text in expected.items()]
    assert len(found) == len(expected)  # a work folder for each


# --- A whole study --------------------------------------------------------------------------


def _small_files(folder):
    """The smallest StyleGAN2 that an 8 px input can be searched with, and a prior for it."""
    sizes: Any = {"resolution": 16, "channel_base": 64, "mapping_layers": 2}
    sizes |= {"z_dim": 16, "w_dim": 16}
    flow_config = FlowConfig(dim=16, blocks=1, width=16)
    state = random_state(seed=0, **sizes)
    return untrained_files(folder, "small-16", state, flow_config, floor=1e-3, draws=1000)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The diversity study's folder, after two solutions of two steps for one image."""
    folder = tmp_path_factory.mktemp("study")
    images = folder / "photographs"
    images.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"face{i}.png")
    parser = common.options("diversity", diversity.__doc__, pictures=1)
    parser.set_defaults(solutions=2, source=None, methods="PULSE=pulse@paper,RLS=rls")
    files = _small_files(folder)
    places = {
        "--generator": files["generator"],
        "--prior": files["prior"],
        "--images": images,
        "--work": folder / "work" / "diversity",
        "--out": folder / "kept",
    }
    words = [str(word) for pair in places.items() for word in pair]
    args = parser.parse_args([*words, "--steps", "2", "--limit", "1", "--lr-size", "8"])
    with pytest.MonkeyPatch.context() as patch:
        # Scores at their usual sizes would take longer than the searches.
        patch.setattr(common, "Sizes", lambda: Sizes(score=32, niqe=32, frechet=32))
        diversity.study(args)
    return folder / "kept"


@pytest.mark.slow
def test_a_study_leaves_its_three_files(kept):
    names = {"README.md", "table.json", "solutions.jpg"}
    assert {path.name for path in kept.iterdir()} == names


@pytest.mark.slow
def test_numbers_of_a_study_are_of_the_given_images(kept):
    report = json.loads((kept / "table.json").read_text(encoding="utf-8"))
    assert report["source"] == "1 images given with --images"
    table = report["Scores"]["table"]
    assert {"PULSE", "RLS"} <= set(table)
    for label in ("PULSE", "RLS"):
        assert table[label]["diversity_lpips"]["n"] == 1
        assert table[label]["diversity_lpips"]["mean"] > 0.0
        assert table[label]["psnr"]["mean"] > 0.0
    assert not report["Scores"]["failed"]
    assert report["Scores"]["images"] == ["face0.png"]
    variants = report["Scores"]["about"]["variants"]
    assert [one["evaluations"] for one in variants.values()] == [2, 3]  # RLS has three phases


@pytest.mark.slow
def test_a_study_says_what_it_measured_but_not_where(kept):
    text = (kept / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Figures 4 and 7: 2 solutions for one image\n")
    assert "Images of the numbers: 1 images given with --images." in text
    assert "| PULSE | 2 |" in text and "| RLS | 3 |" in text
    everything = text + (kept / "table.json").read_text(encoding="utf-8")
    assert str(kept.parent) not in everything


@pytest.mark.slow
def test_pictures_of_a_study_are_of_every_solution(kept):
    with Image.open(kept / "solutions.jpg") as picture:
        assert picture.format == "JPEG"
        pixels = np.asarray(picture.convert("L"), np.float32)
    # Two methods with two solutions each: four rows of an original or input and a solution.
    step_y, step_x = pixels.shape[0] // 4, pixels.shape[1] // 2
    assert step_x > 256 and step_y > 256
    for row in range(4):
        for column in range(2):
            cell = pixels[row * step_y :, column * step_x :][40 : step_y - 20, 20 : step_x - 20]
            assert cell.std() > 1.0 and cell.mean() < 250.0  # not a gap
