"""The evaluation on an untrained 32 px generator and drawn pictures."""

import csv
import dataclasses
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

from stylesr_jax.degradations import Bicubic, parse
from stylesr_jax.errors import UserError
from stylesr_jax.images.files import read_image, to_uint8
from stylesr_jax.methods import METHODS
from stylesr_jax.metrics.lpips import load_features, lpips
from stylesr_jax.metrics.scorer import Sizes, mean_scores
from stylesr_jax.runs import worker
from stylesr_jax.runs.evaluation import EvaluationPlan, prepare, run
from stylesr_jax.runs.plan import variant
from stylesr_jax.runs.records import append_row, read_rows
from stylesr_jax.runs.tables import write_report
from stylesr_jax.solver.observation import key_of, place_on_canvas
from stylesr_jax.solver.solve import solve
from untrained import with_notes
from where import ROOT

pytestmark = pytest.mark.usefixtures("kept_programs")

SIZES = Sizes(score=32, niqe=32, frechet=32)
QUICK = ("--lr-size", "8", "--steps", "4", "--score-size", "32", "--niqe-size", "32")
QUICK = (*QUICK, "--frechet-size", "32", "--methods", "a=rls,b=rls:lambda_w=0.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """Three pictures that the generator draws."""
    out = tmp_path_factory.mktemp("faces")
    draw = jax.jit(lambda g, z: g.synthesise(jnp.repeat(g.map_latents(z)[:, None], g.num_ws, 1)))
    for i in range(3):
        image = draw(tiny, jax.random.normal(jax.random.key(50 + i), (1, tiny.z_dim)))[0]
        Image.fromarray(to_uint8(np.asarray(image))).save(out / f"face{i}.png")
    return out


@pytest.fixture
def call(tiny_files, folder, monkeypatch, tmp_path):
    """Runs the command as `python -m` would; returns its exit code."""
    monkeypatch.setenv("STYLESR_CACHE", str(KEPT))

    def command(*arguments, images=folder, out=tmp_path / "out"):
        own = ("--generator", tiny_files["generator"], "--prior", tiny_files["prior"])
        argv = ["evaluate", "--images", images, "--out", out, *own, *QUICK, *arguments]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        # Another test's import would make runpy warn that the module runs twice.
        monkeypatch.delitem(sys.modules, "stylesr_jax.evaluate", raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("stylesr_jax.evaluate", run_name="__main__")
        return stop.value.code

    return command


def _plan(tiny, tiny_prior, folder, out, **options):
    return EvaluationPlan(
        images=tuple(sorted(folder.glob("*.png"))),
        variants=(variant("rls", evaluations=4),),
        out=out,
        generator=tiny,
        prior=tiny_prior,
        **{"lr_size": 8, "sizes": SIZES, **options},
    )


# --- the command ----------------------------------------------------------------------------


def test_everything_is_written_and_agrees(call, folder, tmp_path, capsys):
    assert call("--limit", "2", "--solutions", "2", "--reference", folder) == 0
    out = tmp_path / "out"
    report = json.loads((out / "table.json").read_text())
    rows = read_rows(out / "rows.jsonl")
    assert {(row["image"], row["label"]) for row in rows} == {
        (f"face{i}.png", label) for i in range(2) for label in ("original", "a", "b")
    }
    ours = [mean_scores(row) for row in rows if row["label"] == "a"]
    for name in ("psnr", "ssim", "lpips_vgg", "lpips_alex", "low_l1", "diversity_lpips"):
        found = report["table"]["a"][name]
        assert found["n"] == 2
        np.testing.assert_allclose(found["mean"], np.mean([m[name] for m in ours]), rtol=1e-9)
        np.testing.assert_allclose(found["std"], np.std([m[name] for m in ours], ddof=1))
    assert report["table"]["a"]["frechet_vgg16"]["n"] == 4  # two images, two solutions
    assert report["about"]["variants"]["b"]["evaluations"] == 4
    assert report["about"]["variants"]["b"]["settings"]["lambda_w"] == 0.5
    with open(out / "rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * (2 + 2 + 1)
    assert {row["steps"] for row in table} == {"4", ""}
    text = (out / "table.md").read_text()
    assert "| a | 4 |" in text and "8 px -> 32 px" in text and "not FID" in text
    assert {"examples.png", "solutions.png"} <= {p.name for p in out.iterdir()}
    assert "a 4, b 4" in capsys.readouterr().out.splitlines()[0]


def test_scores_are_those_of_the_pictures(call, folder, tmp_path):
    assert call("--limit", "1", "--quiet") == 0
    out = tmp_path / "out"
    (row,) = (r for r in read_rows(out / "rows.jsonl") if r["label"] == "a")
    picture = read_image(out / "images" / "a" / "face0.png_0.png")
    original = read_image(folder / "face0.png")
    (score,) = row["solutions"]
    mse = np.mean((picture - original) ** 2)
    np.testing.assert_allclose(score["psnr"], 10 * np.log10(4 / mse), atol=0.1)
    distance = lpips(picture, original, net="vgg16", params=load_features("vgg16"))
    np.testing.assert_allclose(score["lpips_vgg"], distance, atol=0.01)
    low = place_on_canvas(np.clip(Bicubic(size=8)(jnp.asarray(original)), -1.0, 1.0)).target
    error = np.abs(np.asarray(Bicubic(size=8)(jnp.asarray(picture))) - low).mean()
    np.testing.assert_allclose(score["low_l1"], error, atol=0.01)  # pictures have 8 bits


def test_a_failing_image_is_listed_and_the_rest_is_done(call, folder, tmp_path, capsys):
    images = tmp_path / "mixed"
    images.mkdir()
    (images / "broken.png").write_bytes(b"no image at all")
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(images / "small.png")
    (images / "good.png").write_bytes((folder / "face0.png").read_bytes())
    assert call(images=images) == 2
    errors = capsys.readouterr().err
    assert "broken.png" in errors and "no larger than --lr-size" in errors
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert report["images"] == ["good.png"]
    assert {one["image"] for one in report["failed"]} == {"broken.png", "small.png"}
    assert "broken.png, a: " in (tmp_path / "out" / "table.md").read_text()


ODD = (os.fsdecode(b"caf\xe9.png"), "two\nlines.png", "x" * 251 + ".png", "..png")
FEW = ("--methods", "bicubic", "--steps", "4")


def test_an_odd_name_loses_no_table(call, folder, tmp_path, capsys):
    images = tmp_path / "odd"
    images.mkdir()
    for i, name in enumerate(ODD):
        shutil.copy(folder / f"face{i % 3}.png", images / name)
    before = set(tmp_path.iterdir())
    named = [images / name for name in ODD]
    assert call("--images", *named, *FEW, "--figure-images", "1") == 0
    out = tmp_path / "out"
    assert set(tmp_path.iterdir()) == before | {out}
    report = json.loads((out / "table.json").read_text())
    assert report["images"] == list(ODD) and report["table"]["bicubic"]["psnr"]["n"] == 4
    with open(out / "rows.csv", newline="", encoding="utf-8") as file:
        names = {row["image"] for row in csv.DictReader(file)}
    assert names == {"caf\\udce9.png", *ODD[1:]}
    assert "| bicubic |" in (out / "table.md").read_text(encoding="utf-8")
    assert len(list((out / "images" / "bicubic").iterdir())) == 4
    capsys.readouterr()
    assert call("--images", *named, *FEW) == 0
    assert capsys.readouterr().out.count("already done") == 4


def test_a_row_depends_on_the_content_not_on_the_name(call, folder, tmp_path):
    images = tmp_path / "renamed"
    images.mkdir()
    for name in ("first.png", "second.png"):
        shutil.copy(folder / "face0.png", images / name)
    data = ("--degradation", "motion(9)|bicubic(8)|noise(0.1)", "--methods", "a=rls")
    assert call(*data, "--quiet", images=images) == 0
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    a, b = (row["solutions"][0]["low_l1"] for row in rows if row["label"] == "a")
    assert a == b


def test_every_preset_of_the_methods_can_be_asked_for(call, tmp_path, capsys):
    methods = ("--methods", "rls,bicubic", "--limit", "1", "--quiet")
    assert call(*methods, "--preset", "diverse") == 0
    variants = json.loads((tmp_path / "out" / "table.json").read_text())["about"]["variants"]
    assert {name: one["preset"] for name, one in variants.items()} == {
        "rls": "diverse",
        "bicubic": "balanced",
    }
    assert call(*methods, "--preset", "magic") == 2
    assert "--preset magic: no method among --methods has it" in capsys.readouterr().err


def test_an_original_is_decoded_once_figures_included(call, monkeypatch):
    opened = []
    real = worker.read_bytes
    monkeypatch.setattr(worker, "read_bytes", lambda path: opened.append(path.name) or real(path))
    assert call(*FEW, "--solutions", "2", "--quiet") == 0
    assert sorted(opened) == ["face0.png", "face1.png", "face2.png"]


def test_a_second_run_does_only_what_is_new(call, tmp_path, capsys):
    assert call("--limit", "1") == 0
    first = (tmp_path / "out" / "rows.jsonl").read_text()
    report = (tmp_path / "out" / "table.json").read_text()
    assert call("--limit", "1") == 0
    assert (tmp_path / "out" / "rows.jsonl").read_text() == first
    assert (tmp_path / "out" / "table.json").read_text() == report
    capsys.readouterr()
    assert call("--limit", "2", "--methods", "a=rls,c=rls:lambda_w=1") == 0
    printed = capsys.readouterr().out
    assert printed.count("already done") == 1 and "face0.png a: already done" in printed
    assert call("--limit", "1", "--seed", "7") == 0
    assert "already done" not in capsys.readouterr().out


def test_parts_are_put_together_by_the_command_without_shard(call, tmp_path, capsys):
    for part in ("1/2", "0/2"):
        assert call("--shard", part) == 0
        assert "without --shard writes the table" in capsys.readouterr().out
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"rows", "images", "features"}
    rows = {path.name: path.read_text() for path in (out / "rows").iterdir()}
    assert len(rows) == 9  # three images, two methods and the original
    assert call() == 0
    assert capsys.readouterr().out.count("already done") == 6
    assert json.loads((out / "table.json").read_text())["table"]["a"]["psnr"]["n"] == 3
    assert not (out / "rows.jsonl").exists()
    assert {path.name: path.read_text() for path in (out / "rows").iterdir()} == rows


def test_a_part_that_fails_ends_with_code_2(call, folder, tmp_path, capsys):
    images = tmp_path / "mixed"
    images.mkdir()
    shutil.copy(folder / "face0.png", images / "a.png")
    (images / "b.png").write_bytes(b"no picture")
    assert call("--shard", "0/2", "--quiet", images=images) == 0
    assert call("--shard", "1/2", "--quiet", images=images) == 2
    assert "b.png, a: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_without_recomputing(tiny_files, folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "stylesr_jax.evaluate", "--images", folder, "--out", out]
    command += ["--generator", tiny_files["generator"], "--prior", tiny_files["prior"], *QUICK]
    command = [str(part) for part in command]
    environment = {
        **os.environ,
        "STYLESR_CACHE": str(tmp_path / "cache"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles twice as fast
    }

    def finished():
        return [r for r in read_rows(out / "rows.jsonl") if r["label"] != "original"]

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=ROOT)
    while not finished() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = finished()
    assert 0 < len(before) < 6
    with open(out / "rows.jsonl", "a") as file:
        file.write('{"fingerprint": "torn')  # what a full disk would leave
    again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    after = finished()
    assert [row for row in after if row in before] == before and len(after) == 6
    assert again.stdout.count("already done") == len(before)
    assert len({row["fingerprint"] for row in after}) == 6


def test_what_the_converter_noted_is_said_once(call, tiny_files, tmp_path, capsys):
    note = "fixed noise maps were drawn"
    noted = with_notes(tiny_files["generator"], tmp_path, [note])
    assert call("--generator", noted, *FEW, "--limit", "1") == 0
    found = capsys.readouterr()
    assert found.err.splitlines() == [f"note: {note}"] and note not in found.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--methods", "rls:lambda_x=1"], "no setting 'lambda_x'"),
        (["--methods", "rls:lambda_w"], "SETTING=VALUE"),
        (["--methods", "rls,rls"], "two methods are called rls"),
        (["--set", "pulse.rate=1"], "not among --methods"),
        (["--set", "lambda_w"], "METHOD.SETTING=VALUE"),
        (["--degradation", "magic(3)"], "unknown degradation"),
        (["--reference", "nowhere"], "no such file"),
        (["--steps", "0"], "whole number"),
    ],
)
def test_bad_options_end_with_code_2(call, capsys, arguments, says):
    assert call(*arguments) == 2
    assert says in capsys.readouterr().err


# --- budgets --------------------------------------------------------------------------------


def test_variants_are_read():
    one = variant("flat=rls@paper:lambda_w=0:space=w", evaluations=30)
    assert (one.label, one.method.name, one.preset) == ("flat", "rls", "paper")
    assert one.settings["lambda_w"] == 0.0 and one.settings["space"] == "w"
    assert one.evaluations == one.settings["steps"] == 30  # the paper has no small images
    assert variant("rls", preset="paper", evaluations=None).evaluations == 500


@pytest.mark.parametrize("budget", [40, 100])
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"bicubic"}))
def test_budgets_are_met_by_every_method(name, budget):
    one = variant(name, evaluations=budget)
    assert one.evaluations == budget and all(int(stage.steps) >= 1 for stage in one.stages)
    changed = {key for key, value in METHODS[name]().settings.items() if one.settings[key] != value}
    assert changed <= set(METHODS[name].step_fields)


# --- data -----------------------------------------------------------------------------------


def test_data_suffer_what_the_search_need_not_know(tiny, tiny_prior, folder, tmp_path):
    spec = parse("motion(9)|bicubic(8)|noise(0.1)")
    path = folder / "face0.png"
    plain = prepare(_plan(tiny, tiny_prior, folder, tmp_path), path)
    blind = prepare(_plan(tiny, tiny_prior, folder, tmp_path, degradation=spec), path)
    told = prepare(_plan(tiny, tiny_prior, folder, tmp_path, degradation=spec, truth=True), path)
    original = jnp.asarray(plain.original)
    np.testing.assert_allclose(
        plain.observation.target, np.clip(Bicubic(size=8)(original), -1.0, 1.0), atol=1e-6
    )
    assert isinstance(blind.degradation, Bicubic)
    np.testing.assert_array_equal(blind.observation.target, told.observation.target)
    assert np.abs(blind.observation.target - plain.observation.target).mean() > 0.02
    # Told the truth, all that is left between A(x) and y is the noise.
    left = np.std(np.asarray(told.degradation(original)) - told.observation.target)
    assert 0.1 < left < 0.25
    again = prepare(_plan(tiny, tiny_prior, folder, tmp_path, degradation=spec, seed=1), path)
    assert np.abs(again.observation.target - blind.observation.target).mean() > 0.01


def test_truth_that_does_not_fit_is_refused(tiny, tiny_prior, tmp_path):
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(tmp_path / "wide.png")
    options = {"degradation": parse("bicubic(8)"), "truth": True, "sizes": Sizes(64, 64, 64)}
    plan = _plan(tiny, tiny_prior, tmp_path, tmp_path, **options)
    with pytest.raises(UserError, match="square images"):
        prepare(plan, tmp_path / "wide.png")


@pytest.mark.slow
@pytest.mark.parametrize("truth", [False, True])
def test_grey_data_are_searched_for(tiny, tiny_prior, folder, tmp_path, truth):
    spec = parse("bicubic(8)|grey")
    plan = _plan(tiny, tiny_prior, folder, tmp_path, degradation=spec, truth=truth)
    plan = dataclasses.replace(plan, images=plan.images[:1])
    outcome = run(plan, say=lambda _: None)
    assert not outcome.failed and outcome.rows["face0.png"]["rls"]["status"] == "ok"


def test_tables_say_the_size_that_was_observed(tiny, tiny_prior, folder, tmp_path):
    spec = parse("blur(2)|bicubic(16)|noise(0.05)")
    plan = _plan(tiny, tiny_prior, folder, tmp_path, degradation=spec)
    assert (plan.lr_size, plan.observed_size) == (8, 16)
    turning = dataclasses.replace(plan, degradation=parse("motion(9)|bicubic(4)"))
    assert turning.observed_size == 4


def test_originals_of_any_aspect_are_scored(tiny, tiny_prior, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (33, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tall.png")
    sizes = Sizes(score=64, niqe=32, frechet=64)
    plan = _plan(tiny, tiny_prior, tmp_path, tmp_path / "out", sizes=sizes)
    plan = dataclasses.replace(plan, variants=(variant("bicubic"), *plan.variants))
    outcome = run(plan, say=lambda _: None)
    assert not outcome.failed
    assert outcome.rows["tall.png"]["rls"]["solutions"][0]["psnr"] > 0


# --- the loop -------------------------------------------------------------------------------


def test_results_are_those_of_solve(tiny, tiny_prior, folder, tmp_path):
    plan = _plan(tiny, tiny_prior, folder, tmp_path)
    outcome = run(plan, say=lambda _: None)
    subject = prepare(plan, plan.images[1])
    (result,) = solve(
        [subject.observation],
        [key_of(plan.seed, subject.sha256)],
        generator=tiny,
        prior=tiny_prior,
        method=plan.variants[0].method,
        solutions=1,
    )
    (score,) = outcome.rows["face1.png"]["rls"]["solutions"]
    np.testing.assert_allclose(score["low_l1"], result.solutions[0].residual_l1, rtol=1e-6)
    picture = np.asarray(Image.open(tmp_path / "images" / "rls" / "face1.png_0.png"))
    np.testing.assert_array_equal(picture, to_uint8(result.solutions[0].image))


@pytest.mark.slow
def test_batches_across_images_score_alike(tiny, tiny_prior, folder, tmp_path):
    one = run(_plan(tiny, tiny_prior, folder, tmp_path / "one"), say=lambda _: None)
    all_ = run(_plan(tiny, tiny_prior, folder, tmp_path / "all", batch=4), say=lambda _: None)
    for name in one.rows:
        a, b = (mean_scores(found.rows[name]["rls"]) for found in (one, all_))
        np.testing.assert_allclose(a["low_l1"], b["low_l1"], rtol=1e-3)
        np.testing.assert_allclose(a["lpips_vgg"], b["lpips_vgg"], rtol=1e-2)


def test_interruption_keeps_what_is_finished(tiny, tiny_prior, folder, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve(*args, **options)

    monkeypatch.setattr("stylesr_jax.runs.worker.solve", interrupted)
    plan = _plan(tiny, tiny_prior, folder, tmp_path)
    outcome = run(plan, say=lambda _: None)
    assert outcome.interrupted and "rls" in outcome.rows["face0.png"]
    summary = write_report(plan, outcome)
    assert summary["images"] == ["face0.png"] and (tmp_path / "table.md").is_file()


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.pop("status"),
        lambda row: row.update(solutions=3),
        lambda row: row.update(solutions=[]),
        lambda row: row["solutions"][0].update(psnr="a"),
        lambda row: row.update(fingerprint=[1]),
    ],
)
def test_rows_that_something_else_wrote_are_made_again(call, tmp_path, capsys, change):
    few = (*FEW, "--limit", "1")
    assert call(*few) == 0
    file = tmp_path / "out" / "rows.jsonl"
    sound = read_rows(file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        change(row)
    file.write_text("[" * 100_000 + "\n" + "".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert call(*few) == 0
    assert "already done" not in capsys.readouterr().out
    again = {row["label"]: row["solutions"] for row in read_rows(file)}
    assert again["bicubic"][0]["psnr"] == sound[1]["solutions"][0]["psnr"]


def test_a_kept_file_that_is_damaged_is_named(call, tmp_path, capsys, folder):
    few = (*FEW, "--limit", "2", "--reference", folder)
    assert call(*few) == 0
    for pattern in ("images/bicubic/face0.png_0.png", "features/bicubic/face0.png.npz"):
        file = tmp_path / "out" / pattern
        before = file.read_bytes()
        file.write_bytes(before[:60])
        capsys.readouterr()
        assert call(*few) == 2
        assert capsys.readouterr().err == (
            f"error: {file} is damaged: remove it, and the same command makes it again\n"
        )
        file.unlink()
        assert call(*few) == 0
        assert file.read_bytes() == before


@pytest.mark.parametrize("pictures", [{}, {"a.png": b"no picture", "b.png": b"none"}])
def test_a_reference_of_no_use_is_refused_before_the_search(call, tmp_path, capsys, pictures):
    reference = tmp_path / "reference"
    reference.mkdir()
    for name, data in pictures.items():
        (reference / name).write_bytes(data)
    assert call(*FEW, "--reference", reference) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_originals_too_narrow_to_be_scored_are_listed(call, folder, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    images = ("--images", tmp_path / "wide.png", folder / "face0.png")
    assert call(*images, *FEW, "--score-size", "64", "--quiet") == 2
    assert "wide.png: 60x12 px is too narrow to be compared at 64 px" in capsys.readouterr().err
    out = tmp_path / "out"
    assert json.loads((out / "table.json").read_text())["images"] == ["face0.png"]
    assert {path.name for path in (out / "images" / "bicubic").iterdir()} == {"face0.png_0.png"}


def test_a_degradation_that_fits_no_square_loses_no_table(call, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tall.png")
    Image.fromarray(np.full((32, 21), 255, np.uint8)).save(tmp_path / "hole.png")
    spec = f"mask({tmp_path / 'hole.png'})|bicubic(8)"
    options = ("--score-size", "64", "--frechet-size", "64", "--degradation", spec, "--quiet")
    assert call(*FEW, *options, images=tmp_path / "tall.png") == 0
    assert json.loads((tmp_path / "out" / "table.json").read_text())["about"]["lr_size"] is None
    assert "1 images, no size for all -> 32 px" in (tmp_path / "out" / "table.md").read_text()


def test_labels_leave_the_table_a_table(call, tmp_path):
    assert call("--methods", "a|b=bicubic,two\nlines=bicubic", "--limit", "1", "--quiet") == 0
    lines = (tmp_path / "out" / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines[2].startswith("| a\\|b |") and lines[3].startswith("| two\\nlines |")


def test_rows_survive_torn_lines(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_row(file, {"fingerprint": "a", "value": float("nan")})
    with open(file, "a") as stream:
        stream.write('{"fingerprint": "b", "val')
    append_row(file, {"fingerprint": "c", "value": 1.5})
    rows = read_rows(file)
    assert [row["fingerprint"] for row in rows] == ["a", "c"] and rows[0]["value"] is None
