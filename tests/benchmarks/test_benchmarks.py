"""The benchmarks' arithmetic, and short runs on a tiny generator, whose times nobody looks at."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import presets, quality, quality_over_time, solutions, step
from benchmarks.common import Timing, count_gflop, interleaved, machine_line, ratios
from benchmarks.quality_over_time import budgets, curves, draw, summarise, table
from benchmarks.references import ADA, MOBILE, detect, mobile_noise, mobile_state, style_inverse
from benchmarks.solutions import pairs, per_solution
from benchmarks.step import BlockMeans, per_start
from stylesr_jax.errors import UserError
from stylesr_jax.methods import METHODS
from stylesr_jax.metrics.scorer import Sizes, mean_scores
from stylesr_jax.runs.evaluation import EvaluationPlan, run
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.solver.solve import solve


def test_gflop_of_products_and_convolutions():
    a, b = jnp.zeros((10, 20)), jnp.zeros((20, 30))
    assert count_gflop(jnp.dot, a, b) == pytest.approx(2 * 10 * 20 * 30 / 1e9)
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3) / 1e9
    assert count_gflop(convolve, image, kernel) == pytest.approx(expected)
    # Inside other compiled functions, and whatever is element-wise left out.
    nested = jax.jit(lambda image, kernel: jnp.tanh(jax.jit(convolve)(image, kernel)))
    assert count_gflop(nested, image, kernel) == pytest.approx(expected)


def test_gflop_of_loops_and_branches():
    a = jnp.zeros((10, 10))
    once = count_gflop(jnp.dot, a, a)

    def loop(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=7)[0]

    def branches(a):
        return jax.lax.cond(a.sum() > 0, loop, lambda a: a @ a, a)

    assert count_gflop(loop, a) == pytest.approx(7 * once)
    assert count_gflop(branches, a) == pytest.approx(7 * once)


def test_everyone_takes_a_turn_in_every_round():
    order = []

    def call(name, seconds):
        return lambda: order.append(name) or Timing(seconds.pop(0), 2.0)

    found = interleaved({"a": call("a", [1.0, 2.0, 4.0]), "b": call("b", [3.0, 4.0, 40.0])}, 3)
    assert order == ["a", "b"] * 3
    assert [timing.seconds for timing in found["b"]] == [3.0, 4.0, 40.0]
    assert ratios(found, "a") == {"a": (1.0, 1.0), "b": (3.0, 1.0)}  # of 3, 2 and 10


def test_a_start_is_compared_with_the_same_generators_first_case():
    cases = [
        {"generator": name, "batch": batch, "seconds": seconds}
        for name, batch, seconds in (("a", 1, 1.0), ("a", 4, 3.0), ("b", 2, 8.0), ("b", 4, 8.0))
    ]
    assert [per_start(case, cases) for case in cases] == [1.0, 0.75, 1.0, 0.5]


def test_the_machine_fits_on_a_line():
    machine = describe_machine()
    line = machine_line(machine)
    assert "\n" not in line and machine["date"] in line and machine["device"] in line
    assert f"jax {jax.__version__}" in line


def test_the_step_is_an_l1_distance_to_block_means():
    class Flat:
        def synthesise(self, ws):
            return jnp.full((1, 32, 32, 3), 0.25)

    flat: Any = Flat()
    terms, _ = BlockMeans().loss(flat, jnp.full((16, 16, 3), 1.0), jnp.zeros((2, 4)))
    assert float(terms["l1"]) == pytest.approx(0.75)


# --- references -----------------------------------------------------------------------------


def test_checkouts_are_told_apart(tmp_path):
    for kind, files in (
        (ADA, ("training/networks.py", "dnnlib/util.py")),
        (MOBILE, ("core/models/mobile_synthesis_network.py",)),
    ):
        for name in files:
            file = tmp_path / kind / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        assert detect(tmp_path / kind) == kind
    with pytest.raises(UserError, match="no checkout"):
        detect(tmp_path)


def test_demodulation_is_undone():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 8, 3, 3))
    inverse, scale = rng.uniform(0.5, 2.0, 8), 0.1

    def norms(weight, inverse):
        scaled = scale * inverse[:, None, None] * weight
        return np.sqrt(np.square(scaled).sum(axis=(1, 2, 3)))

    demodulated = weight / norms(weight, inverse)[:, None, None, None]
    found = style_inverse(demodulated, scale)
    np.testing.assert_allclose(norms(demodulated, found), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, inverse, rtol=1e-3)  # more equations than unknowns
    # Fewer equations than unknowns have many solutions, some of them with negative squares.
    few = rng.normal(size=(6, 6, 3, 3)) * rng.uniform(0.1, 3.0, (6, 6, 1, 1))
    few /= norms(few, np.ones(6))[:, None, None, None]
    assert np.isfinite(style_inverse(few, scale)).all()


def test_mobile_weights_go_back_to_the_references_layout(mobile):
    params, channels = mobile.params, mobile.config.channels
    state = mobile_state(params, channels)
    assert state["conv1.conv.weight"].shape == (512, 512, 3, 3)
    assert state["layers.0.conv1.conv.weight_dw"].shape == (128, 1, 3, 3)
    assert state["layers.6.conv2.conv.weight_permute"].shape == (64, 64, 1, 1)
    assert state["layers.6.to_img.conv.weight"].shape == (12, 64, 1, 1)
    assert all(value.dtype == np.float32 for value in state.values())
    # The reference's second high band of the first channel is our first channel of the third band.
    ours = np.asarray(params["synthesis"]["block0"]["up_modulation"]["bias"])
    assert state["layers.0.up.modulation.bias"][128 + 1] == ours[2 * 128]
    noise = mobile_noise(params["noise"])
    assert [n.shape for n in noise[:2]] == [(1, 1, 4, 4), (2, 1, 8, 8)]
    assert len(noise) == len(channels)


# --- solutions and quality over time --------------------------------------------------------


def test_starts_go_with_batches_that_divide_them():
    assert pairs([1, 2, 8], None) == [(1, 1), (2, 1), (2, 2), (8, 1), (8, 8)]
    assert pairs([1, 4, 6], [1, 2, 4]) == [(1, 1), (4, 1), (4, 2), (4, 4), (6, 1), (6, 2)]
    cases = [{"starts": 1, "seconds": 10.0}, {"starts": 8, "seconds": 60.0}]
    assert [per_solution(case, cases) for case in cases] == [1.0, 0.75]


def test_budgets_are_evenly_spaced_and_capped():
    assert budgets(80, 5, None) == [5, 10, 20, 40, 80]
    assert budgets(500, 3, 20) == [5, 10, 20]
    assert budgets(3, 4, None) == [3]
    assert budgets(0, 4, None) == [0]  # a method without a search


def test_curves_are_methods_with_the_presets_they_have():
    found = [(one.method.name, one.preset) for one in curves(["rls", "bicubic"], ["fast", "paper"])]
    assert found == [("rls", "fast"), ("rls", "paper"), ("bicubic", "fast")]
    assert [one.preset for one in curves(["multimodal"], ["combined", "paper-w"])] == ["combined"]
    with pytest.raises(UserError, match="unknown method"):
        curves(["nothing"], ["fast"])


def test_candidates_are_presets_with_changes():
    name, method = presets.parse_candidate("mine:preset=fast,lambda_w=0.5")
    fast = METHODS["rls"].resolve("fast").settings
    assert name == "mine" and method.settings == {**fast, "lambda_w": 0.5}
    assert presets.parse_candidate("balanced:")[1].settings == METHODS["rls"]().settings
    more = presets.parse_candidate("more:times=5")[1]
    assert more.settings["activation_steps"] == 5 * METHODS["rls"]().activation_steps
    with pytest.raises(UserError, match="no setting"):
        presets.parse_candidate("mine:nothing=1")


def test_means_of_candidates_stand_in_the_table():
    rows = [
        {"candidate": name, **dict.fromkeys(presets.COLUMNS, value)}
        for name, value in (("a", 1.0), ("b", 5.0), ("a", 2.0))
    ]
    lines = presets.table(rows).splitlines()
    assert lines[2:] == ["| a |" + " 1.5 |" * 9, "| b |" + " 5 |" * 9]


def test_summaries_and_plot(tmp_path):
    def row(method, evaluations, seconds, **scores):
        return {"method": method, "preset": "fast", "evaluations": evaluations, **scores} | {
            "seconds": seconds
        }

    scores = {"low_l1": 0.1, "lpips_vgg": 0.3, "log_p": -1000.0}
    rows = [
        row("rls", 10, 5.0, **scores),
        row("rls", 10, 7.0, **{**scores, "low_l1": 0.3}),
        row("rls", 20, 12.0, **scores),
        row("pulse", 10, 3.0, **scores),
        row("bicubic", 0, 0.0, **{**scores, "log_p": None}),
    ]
    entries = summarise(rows)
    assert [(e["method"], e["evaluations"], e["images"]) for e in entries] == [
        ("bicubic", 0, 1),
        ("pulse", 10, 1),
        ("rls", 10, 2),
        ("rls", 20, 1),
    ]
    assert entries[2]["seconds"] == 6.0 and entries[2]["low_l1"] == pytest.approx(0.2)
    assert entries[0]["log_p"] is None
    lines = table(entries).splitlines()
    assert len(lines) == 6 and lines[4].endswith("| 6 | 0.2 | 0.3 | -1000 | 2 |")
    draw(tmp_path / "plot.png", entries, "title")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


# --- quality --------------------------------------------------------------------------------


def _options(**changes):
    options: Any = {"limit": 16, "few": 8, "evaluations": None, **changes}
    return SimpleNamespace(**options)


def test_baselines_are_scored_as_published_and_corrected():
    with_it, without = quality.pair("pulse@paper", None)
    assert (with_it.label, without.label) == ("pulse@paper", "pulse@paper, uncorrected")
    published = METHODS["pulse"].resolve("paper").settings
    assert without.settings == {**published, "fidelity": 0.0}
    assert with_it.settings == {**published, "fidelity": 1.0}
    (bicubic,) = quality.pair("bicubic", None)
    assert bicubic.label == "bicubic"


def test_cases_are_sizes_damage_and_the_portrait():
    images = [Path(f"{i}.png") for i in range(20)]
    methods = quality.pairs(["bicubic", "rls"], None)
    cases = [quality.case_of(name, images, methods, _options()) for name in quality.CASES]
    assert [(case.size, case.damage, len(case.images)) for case in cases] == [
        (32, None, 16),
        (32, None, 1),
        (16, None, 8),
        (64, None, 8),
        (128, None, 8),
        (32, "jpeg(75)", 8),
        (32, "jpeg(50)", 8),
        (32, "noise(0.05)", 8),
    ]
    assert [path.stem for path in cases[2].images] == ["0", "2", "5", "7", "10", "12", "15", "17"]
    assert quality.evenly(images[:3], 8) == tuple(images[:3])
    assert {one.method.name for one in cases[0].variants} == set(METHODS)
    assert all(case.variants == methods for case in cases[1:])
    for name in ("2", "512", "jpeg10"):
        with pytest.raises(UserError, match="--cases"):
            quality.case_of(name, images, methods, _options())


def test_the_overview_counts_what_beats_bicubic():
    def summary(**scores):
        return {
            "table": {label: {"lpips_vgg": {"mean": mean}} for label, (mean, _) in scores.items()},
            "by_image": {
                label: {"beats_bicubic": {"images": count, "n": 8}} if count is not None else {}
                for label, (_, count) in scores.items()
            },
        }

    tables = {
        "32 px": summary(bicubic=(0.434, None), rls=(0.34, 7), ilo=(0.5, 0)),
        "64 px": summary(bicubic=(0.264, None), rls=(0.2, 8)),
    }
    assert quality.overview(tables).splitlines()[2:] == [
        "| bicubic | 0.434 | 0.264 |",
        "| rls | 0.340 (7 of 8) | 0.200 (8 of 8) |",
        "| ilo | 0.500 (0 of 8) |  |",
    ]


@pytest.fixture
def small_sizes(monkeypatch):
    """Scores at their usual sizes would take longer than the searches."""
    sizes = Sizes(score=32, niqe=32, frechet=32)
    monkeypatch.setattr(quality, "EvaluationPlan", partial(EvaluationPlan, sizes=sizes))


@pytest.mark.usefixtures("kept_programs", "small_sizes")
def test_a_search_is_scored_corrected_and_not(tiny, tiny_prior, faces, tmp_path, monkeypatch):
    searched = []

    def counted(*args, **options):
        searched.append(options["method"])
        return solve(*args, **options)

    parts = {"generator": tiny, "prior": tiny_prior}
    case = quality.Case("8 px", 8, None, (faces / "face.png",), quality.pairs(["rls"], 4))
    with monkeypatch.context() as patch:
        patch.setattr("stylesr_jax.runs.worker.solve", counted)
        summary = quality.measure(case, tmp_path / "pairs", parts, 0)
        assert len(searched) == 1
        assert quality.measure(case, tmp_path / "pairs", parts, 0)["table"] == summary["table"]
        assert len(searched) == 1  # nothing was left to do
    found = {label: entry for label, entry in summary["table"].items() if label != "original"}
    assert list(found) == ["rls", "rls, uncorrected"]
    assert found["rls"]["low_psnr"]["mean"] > found["rls, uncorrected"]["low_psnr"]["mean"] + 6

    # The same as two searches.
    plan = quality.EvaluationPlan(
        images=case.images, variants=case.variants, out=tmp_path / "two", lr_size=8, **parts
    )
    (rows,) = run(plan, say=lambda _: None).rows.values()
    for label, entry in found.items():
        scores = mean_scores(rows[label])
        for name in ("psnr", "lpips_vgg", "low_l1", "low_psnr"):
            assert entry[name]["mean"] == pytest.approx(scores[name], rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("small_sizes")
def test_quality_goes_case_by_case(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "METHODS", {"rls": METHODS["rls"], "csgm": METHODS["csgm"]})
    settings = [*options[:2], f"--images={tmp_path / 'faces'}", "--methods=bicubic,rls"]
    settings += ["--evaluations=2", f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
    assert quality.main([*settings, "--cases=8,12"]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Command: `python -m benchmarks.quality --generator tiny" in text
    assert " --images FACES --methods bicubic,rls --evaluations 2 --cases 8,12`" in text
    assert "## 8 px" in text and "## 12 px" in text and str(tmp_path) not in text
    tables = json.loads((tmp_path / "out" / "table.json").read_text())
    assert {"rls", "rls, uncorrected", "bicubic"} <= set(tables["8 px"]["by_image"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "table.json"}
    assert "of 1)" in capsys.readouterr().out


# --- Short runs -----------------------------------------------------------------------------


@pytest.fixture
def faces(tmp_path):
    """A folder with a 40 px picture."""
    (tmp_path / "faces").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "faces" / "face.png")
    return tmp_path / "faces"


@pytest.fixture
def options(tiny_files, faces, tmp_path, monkeypatch):
    """The tiny generator and its prior, `faces`, and a cache of its own."""
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "cache"))
    files = (f"--generator={tiny_files['generator']}", f"--prior={tiny_files['prior']}")
    return [*files, "--lr-size=8"]


@pytest.mark.slow
def test_quality_over_time_goes_on_where_it_was(options, tmp_path, monkeypatch, capsys):
    settings = [*options, f"--images={tmp_path / 'faces'}", f"--out={tmp_path / 'out'}"]
    settings += ["--presets=fast", "--points=2", "--evaluations=8"]
    assert quality_over_time.main([*settings, "--methods=csgm"]) == 0
    assert quality_over_time.main([*settings, "--methods=csgm,bicubic"]) == 0
    rows = [json.loads(text) for text in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    found = [(row["method"], row["evaluations"]) for row in rows]
    assert found == [("csgm", 5), ("csgm", 8), ("bicubic", 0)]  # nothing twice
    assert all(row["seconds"] > 0 and 0 < row["lpips_vgg"] < 2 for row in rows)
    assert [row["log_p"] is None for row in rows] == [False, False, True]
    names = {"rows.jsonl", "table.md", "quality_over_time.json", "quality_over_time.png"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "| csgm | fast | 8 | 1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_candidates_are_compared_on_every_face(options, tmp_path, capsys):
    candidates = ["short:style_steps=0,steps=2", "longer:style_steps=2,steps=2,tries=1"]
    settings = [*options[:2], "--size=8", f"--images={tmp_path / 'faces'}"]
    assert presets.main([*candidates, *settings, f"--out={tmp_path / 'out'}"]) == 0
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [(row["candidate"], row["steps"]) for row in rows] == [("short", 2), ("longer", 4)]
    assert all(set(presets.COLUMNS) <= set(row) and 0 < row["lpips"] < 2 for row in rows)
    with Image.open(tmp_path / "out" / "faces.png") as sheet:
        assert sheet.width > 4 * presets.SCORED  # original, input, two candidates
    assert "| longer | 4 |" in capsys.readouterr().out


@pytest.mark.slow
def test_solutions_are_measured_in_processes_of_their_own(options, tmp_path):
    out, picture = tmp_path / "solutions.json", tmp_path / "faces" / "face.png"
    settings = [f"--image={picture}", f"--out={out}", "--starts=1,2", "--batch=1,2"]
    assert solutions.main([*options, *settings, "--evaluations=4", "--repeats=1"]) == 0
    cases = json.loads(out.read_text())["cases"]
    assert [(case["starts"], case["batch"]) for case in cases] == [(1, 1), (2, 1), (2, 2)]
    assert all(case["seconds"] > 0 and case["peak_bytes"] > 0 for case in cases)


@pytest.mark.slow
def test_steps_are_measured_in_processes_of_their_own(options, tmp_path):
    out = tmp_path / "step.json"
    settings = [options[0], "--batch=1,2", "--steps=2", "--repeats=1", f"--out={out}"]
    assert step.main(settings) == 0
    report = json.loads(out.read_text())
    assert [case["batch"] for case in report["cases"]] == [1, 2]
    assert all(case["gflop"] > 0 and case["seconds"] > 0 for case in report["cases"])
