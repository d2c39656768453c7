"""The command line, on an untrained 32 px generator and files in a temporary folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

from commands import upsample_command
from stylesr_jax.errors import UserError
from stylesr_jax.images.files import read_image
from stylesr_jax.loading import notes_of
from stylesr_jax.runs import worker
from stylesr_jax.runs.folder import write_result
from stylesr_jax.runs.photos import PhotosJob, PhotosPlan
from stylesr_jax.runs.plan import variant
from stylesr_jax.runtime import program_cache as programs
from stylesr_jax.solver import solve as solve_module
from stylesr_jax.solver.solve import solve
from untrained import with_notes


@pytest.fixture(autouse=True)
def _cache(monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(KEPT))


@pytest.fixture
def run(tiny_files, monkeypatch):
    """Runs the command with the tiny generator; returns its exit code."""
    return upsample_command(monkeypatch, tiny_files)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


QUICK = ("--steps", "12", "--solutions", "2")
FEW = ("--method", "bicubic", "--solutions", "1")
PLAIN = (*QUICK, "--method", "csgm")  # one stage and no tries: a third of the programs


def test_everything_is_written(run, photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photo, "--out", out, *QUICK) == 0
    names = {path.name for path in (out / "photo").iterdir()}
    pictures = {"solution_0.png", "solution_1.png", "grid.png"}
    assert names == pictures | {"report.json", "solutions.npz"}
    report = json.loads((out / "photo" / "report.json").read_text())
    assert report["status"] == "ok" and report["seed"] == 0 and len(report["solutions"]) == 2
    assert {"device", "blocks", "versions", "weights_sha256", "seconds", "settings"} <= set(report)
    one = report["solutions"][0]
    assert one["steps"] == 12 and one["residual_psnr"] > 0 and "l1" in one["terms"]
    assert read_image(out / "photo" / "solution_0.png").shape == (32, 32, 3)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "device" in first_line and "tiny-32" in first_line and "12 steps" in first_line


def test_redrawing_gives_the_same_pixels(run, photo, tmp_path):
    out = tmp_path / "out"
    assert run(photo, "--out", out, "--quiet", *QUICK) == 0
    again = tmp_path / "again"
    source = out / "photo" / "solutions.npz"
    assert run("--from", source, "--out", again, generator=False) == 0
    for name in ("solution_0.png", "solution_1.png"):
        ours = np.asarray(Image.open(out / "photo" / name))
        np.testing.assert_array_equal(ours, np.asarray(Image.open(again / name)))


def test_same_seed_same_files_other_seed_other_files(run, photo, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(photo, "--out", tmp_path / name, "--seed", seed, "--quiet", *QUICK) == 0
    found = {n: sorted((tmp_path / n / "photo").glob("solution_*.png")) for n in "abc"}
    images = {n: [path.read_bytes() for path in paths] for n, paths in found.items()}
    assert images["a"] == images["b"] != images["c"]


def test_large_inputs_are_degraded_kept_and_scored(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.jpg")
    options = ("--lr-size", "8", "--align", "off", "--out", tmp_path / "out", "--quiet", *QUICK)
    assert run(tmp_path / "large.jpg", *options) == 0
    report = json.loads((tmp_path / "out" / "large" / "report.json").read_text())
    assert report["input_size"] == [8, 6]
    scores = report["solutions"][0]["against_original_at_256px"]
    assert set(scores) == {"psnr", "ssim", "lpips_vgg"} and 0 < scores["lpips_vgg"] < 2


def test_a_bad_input_does_not_stop_the_others(run, photo, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert run(tmp_path / "bad.png", photo, "--out", out, *QUICK) == 2
    assert (out / "photo" / "report.json").is_file() and not (out / "bad").exists()
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and "bad.png: not an image" in errors[0]


def _photos(folder, sizes):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, size in enumerate(sizes):
        pixels = rng.integers(60, 200, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{i}.png")
    return folder


def test_batches_are_filled_across_images_and_compiled_once_for_each_size(
    run, tmp_path, monkeypatch
):
    photos = _photos(tmp_path / "in", [8, 12, 8, 8, 8])
    (photos / "photo2b.png").write_bytes(b"not an image")
    groups = []

    def spy(observations, keys, **options):
        groups.append(([one.target.shape[0] for one in observations], options["batch"]))
        return solve(observations, keys, **options)

    monkeypatch.setattr("stylesr_jax.runs.worker.solve", spy)
    monkeypatch.setattr(programs, "mappings", lambda: None)  # none are let go while it counts
    programs._ready.clear()
    out = tmp_path / "out"
    options = ("--quiet", *PLAIN)
    assert run(photos, "--out", out, "--batch", 3, *options) == 2
    # Noise, starts, searches' states and steps, and corrections of 8 and 12 px, and the picture;
    # the last groups are filled up.
    assert len(programs._ready) == 13
    assert groups == [([8, 8, 8], 3), ([12], 3), ([8], 3)]
    summary = json.loads((out / "summary.json").read_text())["inputs"]
    states = {entry["folder"]: entry["status"] for entry in summary}
    assert states == {**{f"photo{i}": "ok" for i in range(5)}, "photo2b": "failed"}
    run(photos / "photo4.png", "--out", tmp_path / "alone", *options)
    a, b = (read_image(o / "photo4" / "solution_1.png") for o in (out, tmp_path / "alone"))
    np.testing.assert_allclose(a, b, atol=0.02)  # batches of three round differently


@pytest.mark.slow
def test_letting_compiled_programs_go_changes_no_result(run, tmp_path, monkeypatch):
    """Not even while the thread that writes is using them."""
    photos = _photos(tmp_path / "in", [8, 12, 8])
    assert run(photos, "--out", tmp_path / "kept", "--quiet", *QUICK) == 0
    monkeypatch.setattr(programs, "mappings", lambda: (1, 1))  # none is left, at every batch
    assert run(photos, "--out", tmp_path / "let_go", "--quiet", *QUICK) == 0
    for path in (tmp_path / "kept").glob("*/*.png"):
        again = tmp_path / "let_go" / path.relative_to(tmp_path / "kept")
        assert path.read_bytes() == again.read_bytes()


def test_results_are_written_while_the_next_input_is_searched(run, tmp_path, monkeypatch):
    photos = _photos(tmp_path / "in", [8, 8])
    searching, events = threading.Event(), []

    def spy(observations, keys, **options):
        if events:
            searching.set()
        events.append("search")
        return solve(observations, keys, **options)

    def write(*args, **options):
        assert searching.wait(60) or len(events) > 1
        events.append("write")
        assert threading.current_thread() is not threading.main_thread()
        return write_result(*args, **options)

    monkeypatch.setattr("stylesr_jax.runs.worker.solve", spy)
    monkeypatch.setattr("stylesr_jax.runs.photos.write_result", write)
    assert run(photos, "--out", tmp_path / "out", "--quiet", *QUICK) == 0
    assert events[:2] == ["search", "search"] and events.count("write") == 2


def test_a_result_that_cannot_be_written_is_its_inputs_failure(run, tmp_path, monkeypatch, capsys):
    photos, out = _photos(tmp_path / "in", [8, 8]), tmp_path / "out"

    def full(place, *args, **options):
        if place.folder.name == "photo0":
            raise UserError("no space left")
        return write_result(place, *args, **options)

    monkeypatch.setattr("stylesr_jax.runs.photos.write_result", full)
    assert run(photos, "--out", out, *FEW) == 2
    assert "photo0.png: no space left" in capsys.readouterr().err
    states = [e["status"] for e in json.loads((out / "summary.json").read_text())["inputs"]]
    assert states == ["failed", "ok"]


def test_an_input_whose_search_breaks_does_not_stop_those_searched_with_it(
    run, tmp_path, monkeypatch, capsys
):
    inputs, out = _photos(tmp_path / "in", [8, 8, 8]), tmp_path / "out"

    def breaking(observations, keys, **options):
        if any(one.target[0, 0, 0] == broken for one in observations):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")
        return solve(observations, keys, **options)

    broken = read_image(inputs / "photo1.png")[0, 0, 0]
    monkeypatch.setattr(worker, "solve", breaking)
    assert run(inputs, "--out", out, "--batch", 3, *PLAIN, "--solutions", 1) == 2
    entries = json.loads((out / "summary.json").read_text())["inputs"]
    status = {entry["folder"]: entry["status"] for entry in entries}
    assert status == {"photo0": "ok", "photo1": "failed", "photo2": "ok"}
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors == ["error: photo1.png: JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory"]


def test_ctrl_c_keeps_what_was_found(run, tmp_path, monkeypatch, capsys):
    photos, out = _photos(tmp_path / "in", [8, 8, 8]), tmp_path / "out"
    calls = []

    def interrupted(observations, keys, **options):
        calls.append(1)
        report = options["on_progress"]

        def on_progress(image, solution, *rest):
            report(image, solution, *rest)
            if len(calls) == 2 and solution == 1:
                raise KeyboardInterrupt

        return solve(observations, keys, **{**options, "on_progress": on_progress})

    monkeypatch.setattr("stylesr_jax.runs.worker.solve", interrupted)
    assert run(photos, "--out", out, *QUICK) == 130
    assert "the best so far was saved" in capsys.readouterr().err
    states = {p.parent.name: json.loads(p.read_text())["status"] for p in out.glob("*/report.json")}
    assert states == {"photo0": "ok", "photo1": "interrupted"}


def _plan(tiny, out, photos=(), **options):
    bicubic = variant("bicubic")
    return PhotosPlan(
        photos=tuple(photos),
        variants=(bicubic,),
        out=out,
        generator=tiny,
        generator_name="tiny",
        **{"lr_size": 8, **options},
    )


def test_a_summary_bears_with_reports_that_are_not_there(tiny, tmp_path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "report.json").write_text('{"status": "o')
    job = PhotosJob(
        _plan(tiny, tmp_path, (Path("gone.png"), Path("torn.png"))), say=None, error=None
    )
    job.write_summary()
    entries = json.loads((tmp_path / "summary.json").read_text())["inputs"]
    assert [entry["status"] for entry in entries] == ["unfinished", "unfinished"]


def test_resume_skips_what_is_done(run, photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photo, "--out", out, "--quiet", *QUICK) == 0
    before = (out / "photo" / "report.json").stat().st_mtime_ns
    assert run(photo, "--out", out, "--resume", *QUICK) == 0
    assert "already done" in capsys.readouterr().out
    assert run(photo, "--out", out, "--resume", "--quiet", "--seed", 1, *QUICK) == 0
    assert (out / "photo" / "report.json").stat().st_mtime_ns == before
    content = hashlib.sha256(photo.read_bytes()).hexdigest()[:8]
    assert {path.name for path in out.iterdir()} == {"photo", f"photo-{content}"}


@pytest.mark.parametrize("options", [("--lr-size", 16), ("--degradation", "blur(9)|bicubic(8)")])
def test_resume_does_other_work_too(run, tmp_path, capsys, options):
    folder, out = _photos(tmp_path / "in", [300]), tmp_path / "out"
    first = ("--out", out, "--lr-size", 8, "--align", "off", *FEW)
    assert run(folder, *first) == 0
    before = (out / "photo0" / "report.json").read_text()
    capsys.readouterr()
    assert run(folder, *first, "--resume", *options) == 0
    assert "already done" not in capsys.readouterr().out
    assert (out / "photo0" / "report.json").read_text() == before
    (report,) = out.glob("photo0-*/report.json")
    assert report.read_text() != before


@pytest.mark.slow
def test_a_small_input_may_be_said_to_have_come_about_so(run, photo, tmp_path, capsys):
    out, how = tmp_path / "out", ("--degradation", "blur(2)|bicubic(8)")
    assert run(photo, "--out", out, *QUICK, *how) == 2
    assert "add --search-degradation truth" in capsys.readouterr().err
    assert run(photo, "--out", out, *QUICK, *how, "--search-degradation", "truth") == 0
    report = json.loads((out / "photo" / "report.json").read_text())
    assert report["search_degradation"] == "truth" and "blur(2)" in report["degradation"]
    plain = tmp_path / "plain"
    assert run(photo, "--out", plain, *QUICK) == 0
    pictures = [read_image(folder / "photo" / "solution_0.png") for folder in (out, plain)]
    assert np.abs(pictures[0] - pictures[1]).max() > 0.01
    says = ("--degradation", "blur(2)|bicubic(16)", "--search-degradation", "truth")
    assert run(photo, "--out", out, *QUICK, *says) == 2
    assert "photo.png: told the truth" in capsys.readouterr().err


def test_levers_and_uncertainty(run, photo, tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    noise = ("--noise-std", 0.1, "--noise-mask", tmp_path / "mask.png", "--inject-noise", "0.02@0")
    levers = (*noise, "--diversity", 0.02, "--uncertainty")
    assert run(photo, "--out", tmp_path / "out", *PLAIN, *levers) == 0
    folder = tmp_path / "out" / "photo"
    report = json.loads((folder / "report.json").read_text())
    assert report["settings"]["inject_layers"] == "0" and report["noise_mask_sha256"]
    pictures = np.stack([read_image(folder / f"solution_{i}.png") for i in range(2)])
    deviation = np.load(folder / "uncertainty.npy")
    np.testing.assert_allclose(deviation, pictures.std(axis=0, ddof=1), atol=0.01)
    assert (folder / "uncertainty.png").is_file() and "diversity" in report["history"]["solution_0"]


def test_redrawing_with_a_generator_that_moved(run, photo, tiny_files, tmp_path, monkeypatch):
    folder, out = tmp_path / "away", tmp_path / "out"
    folder.mkdir()
    moved = folder / "tiny.safetensors"
    moved.write_bytes(Path(tiny_files["generator"]).read_bytes())
    here = ("--generator", moved, "--prior", tiny_files["prior"])
    assert run(photo, "--out", out, *QUICK, *here, generator=False) == 0
    before = (out / "photo" / "solution_1.png").read_bytes()
    moved.unlink()
    saved = ("--from", out / "photo" / "solutions.npz")
    assert run(*saved, generator=False) == 2
    assert run(*saved, "--generator", tiny_files["generator"], generator=False) == 0
    assert (out / "photo" / "solution_1.png").read_bytes() == before


def test_odd_files_and_empty_folders_do_not_stop_the_others(
    run, photo, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    odd = tmp_path / "odd.png"
    odd.write_bytes(photo.read_bytes())

    def decode(data, name):
        raise RuntimeError("what a decoder may say\nat length")

    monkeypatch.setattr("stylesr_jax.runs.photos.decode", decode)
    assert run(odd, "--out", tmp_path / "out", "--quiet", *QUICK) == 2
    error = "error: odd.png: RuntimeError: what a decoder may say\n"
    assert capsys.readouterr().err == error
    monkeypatch.undo()


def test_inputs_that_name_nothing_are_reported(run, photo, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out, few = tmp_path / "out", ("--method", "bicubic", "--solutions", 1, "--quiet")
    assert run(tmp_path / "empty", photo, tmp_path / "*.bmp", "--out", out, *few) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and "no images in this folder" in errors[0]
    assert (out / "photo" / "report.json").is_file()


def test_solutions_found_before_ctrl_c_while_drawing_are_kept(run, photo, tmp_path, monkeypatch):
    drawn = []
    draw = solve_module.redraw

    def redraw(*arguments, **options):
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    monkeypatch.setattr(solve_module, "redraw", redraw)
    assert run(photo, "--out", tmp_path / "out", *QUICK) == 130
    report = json.loads((tmp_path / "out" / "photo" / "report.json").read_text())
    assert report["status"] == "interrupted" and len(report["solutions"]) == 1


def test_json_mode_prints_one_object_a_line(run, photo, tmp_path, capsys):
    assert run(photo, "--out", tmp_path / "out", "--json", *QUICK) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "start" and events[-1]["event"] == "result"
    assert any(e["event"] == "step" and "l1" in e["terms"] for e in events)


def test_events_say_how_many_seconds_are_left(run, photo, tmp_path, capsys):
    assert run(photo, "--out", tmp_path / "out", "--json", *PLAIN, "--steps", 30) == 0
    steps = [e for e in map(json.loads, capsys.readouterr().out.splitlines()) if "step" in e]
    assert [e["seconds_left"] is None for e in steps] == [True, *[False] * 5]  # nothing is known
    assert (
        steps[1]["seconds_left"] >= steps[2]["seconds_left"] == 0.0
    )  # in tenths, of a fast search


# --- names and folders ----------------------------------------------------------------------


def _folders(out):
    return {path.parent.name for path in out.glob("*/report.json")}


def _short_hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def test_photos_of_one_name_overwrite_nothing(run, tmp_path, capsys):
    first, second = (_photos(tmp_path / name, [8]) / "photo0.png" for name in "ab")
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(second)
    out, other = tmp_path / "out", f"photo0-{_short_hash(second)}"
    assert run(first, "--out", out, "--quiet", *FEW) == 0
    before = (out / "photo0" / "solution_0.png").read_bytes()
    assert run(second, first, "--out", out, "--resume", *FEW) == 0
    assert _folders(out) == {"photo0", other}
    assert "photo0.png: already done" in capsys.readouterr().out
    assert (out / "photo0" / "solution_0.png").read_bytes() == before
    summary = json.loads((out / "summary.json").read_text())["inputs"]
    assert [(e["folder"], e["status"]) for e in summary] == [("photo0", "ok"), (other, "ok")]


def test_a_photo_that_is_named_twice_is_solved_once(run, photo, tmp_path, capsys):
    inputs = (photo, photo.parent / "." / photo.name, photo.parent / "*.png")
    assert run(*inputs, "--out", tmp_path / "out", *FEW) == 0
    said = capsys.readouterr().out
    assert "1 input(s)" in said and said.count("1 solution(s) in") == 1


def test_a_copy_in_another_folder_is_solved_once(run, photo, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    copy = shutil.copy(photo, tmp_path / "b" / photo.name)
    assert run(photo, copy, "--out", tmp_path / "out", *FEW) == 0
    assert f"the same picture as {photo}" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["inputs"]
    assert [(e["folder"], e["status"]) for e in summary] == [("photo", "ok")] * 2


ODD = [b"...png", b"summary.json.png", b".claims.png", b"caf\xe9.png", b"two\nlines.png"]
ODD.append(b"x" * 251 + b".png")


def test_odd_names_stay_inside_the_folder(run, photo, tmp_path, capsys):
    out, named = tmp_path / "out", [tmp_path / "in" / os.fsdecode(name) for name in ODD]
    (tmp_path / "in").mkdir()
    for i, path in enumerate(named):
        Image.fromarray(np.full((8, 8, 3), 40 + i, np.uint8)).save(str(path), format="PNG")
    before = set(tmp_path.iterdir())
    assert run(*named, "--out", out, *FEW) == 0
    assert set(tmp_path.iterdir()) == before | {out}
    folders = _folders(out)
    json_name = f"summary.json-{_short_hash(named[1])}"
    cafe = os.fsdecode(b"caf\xe9")
    assert folders == {"image", json_name, "claims", cafe, "two\nlines", "x" * 200}
    entries = json.loads((out / "summary.json").read_text())["inputs"]
    assert {e["folder"] for e in entries} == folders
    assert {e["status"] for e in entries} == {"ok"}
    said = capsys.readouterr().out
    assert "two\\nlines.png: 1 solution(s)" in said and "caf\\udce9.png: 1 solution(s)" in said


def test_a_tilde_after_an_equals_sign_is_the_home_folder(run, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert run(photo, "--out=~/results", "--quiet", *FEW) == 0
    assert (tmp_path / "home" / "results" / "photo" / "report.json").is_file()
    assert not (tmp_path / "~").exists()


def test_a_seed_depends_on_the_content_not_on_the_name(run, photo, tmp_path):
    renamed, other = photo.with_name("renamed.png"), photo.with_name("other.png")
    shutil.copy(photo, renamed)
    pixels = np.array(Image.open(photo))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(other)
    out = tmp_path / "out"
    assert run(photo, renamed, other, "--out", out, "--quiet", *PLAIN) == 0
    names = ("photo", "renamed", "other")
    a, b, c = ((out / name / "solution_1.png").read_bytes() for name in names)
    assert a == b != c
    assert (
        np.abs(
            read_image(out / "photo" / "solution_1.png")
            - read_image(out / "other" / "solution_1.png")
        ).mean()
        > 0.05
    )


def test_an_input_is_opened_once(run, photo, tmp_path, monkeypatch):
    opened = []
    real = worker.read_bytes
    monkeypatch.setattr(worker, "read_bytes", lambda path: opened.append(path) or real(path))
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(large)
    options = ("--lr-size", 8, "--align", "off", *FEW)
    assert run(photo, large, "--out", tmp_path / "out", *options) == 0
    assert sorted(opened) == sorted([photo, large])


# --- what is written ------------------------------------------------------------------------


def test_only_images_in_one_folder(run, photo, tmp_path):
    out, options = tmp_path / "out", ("--only-images", "--flat", "--quiet", *FEW)
    assert run(photo, "--out", out, *options) == 0
    assert {path.name for path in out.iterdir()} == {"photo_solution_0.png", ".reports"}
    before = (out / "photo_solution_0.png").stat().st_mtime_ns
    copy = shutil.copy(photo, photo.with_name("copy.png"))
    assert run(photo, copy, "--out", out, *options, "--resume") == 0
    assert (out / "photo_solution_0.png").stat().st_mtime_ns == before
    names = {path.name for path in out.iterdir()}
    assert names == {"photo_solution_0.png", "copy_solution_0.png", ".reports"}


def test_flat_results_lie_beside_one_another(run, photo, tmp_path):
    shutil.copy(photo, photo.with_name("photo_solution_0.png"))
    out = tmp_path / "out"
    for _ in range(2):  # the second removes only its own pictures first
        assert run(tmp_path / "*.png", "--out", out, "--flat", "--quiet", *FEW) == 0
    kinds = ("solution_0.png", "grid.png", "solutions.npz", "report.json")
    stems = ("photo", "photo_solution_0")
    wanted = {f"{stem}_{kind}" for stem in stems for kind in kinds}
    assert {path.name for path in out.iterdir()} == wanted | {"summary.json"}


@pytest.mark.parametrize(("kind", "name"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_formats(run, photo, tmp_path, kind, name):
    out = tmp_path / "out"
    assert run(photo, "--out", out, "--quiet", *FEW) == 0
    assert run(photo, "--out", out, "--quiet", "--format", kind, *FEW) == 0
    folder = out / "photo"
    assert {p.name for p in folder.glob("solution_*.*")} == {f"solution_0.{kind}"}
    with Image.open(folder / f"solution_0.{kind}") as picture:
        assert picture.format == name and picture.size == (32, 32)
    report = json.loads((folder / "report.json").read_text())
    assert report["solutions"][0]["file"] == f"solution_0.{kind}"


def test_folders_in_folders(run, tmp_path):
    _photos(tmp_path / "in", [8])
    _photos(tmp_path / "in" / "deeper", [8, 8])
    out = tmp_path / "out"
    assert run(tmp_path / "in", "--out", out, "--quiet", *FEW) == 0
    assert _folders(out) == {"photo0"}
    assert run(tmp_path / "in", "--out", out, "--recursive", "--quiet", *FEW) == 0
    assert _folders(out) == {"photo0", "photo1"}


def test_notes_of_a_file_are_said_and_reported(run, tmp_path, capsys):
    blocks = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(blocks.repeat(32, 0).repeat(32, 1)).save(tmp_path / "mosaic.png")
    assert run(tmp_path / "mosaic.png", "--out", tmp_path / "out", *FEW) == 0
    report = json.loads((tmp_path / "out" / "mosaic" / "report.json").read_text())
    assert report["input_size"] == [8, 8]
    (note,) = report["notes"]
    assert f"mosaic.png: {note}" in capsys.readouterr().out


# --- options --------------------------------------------------------------------------------


def test_one_solution_of_a_sampler_is_one_draw(run, photo, tmp_path):
    out, one = tmp_path / "out", ("--method", "langevin", "--solutions", "1", "--steps", "8")
    one = (*one, "--set", "langevin.coarse=false", "--set", "langevin.style_steps=0")
    assert run(photo, "--out", out, "--quiet", *one) == 0
    names = {path.name for path in (out / "photo").iterdir()}
    assert names == {"solution_0.png", "grid.png", "solutions.npz", "report.json"}


def test_steps_of_a_method_without_a_search_are_warned_of(run, photo, tmp_path, capsys):
    assert run(photo, "--out", tmp_path / "out", *FEW, "--steps", 5) == 0
    assert "--steps 5 does nothing: bicubic has no search" in capsys.readouterr().out
    assert (tmp_path / "out" / "photo" / "report.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["INPUT"], "inputs"), (["--solutions", "4"], "solutions"), (["--set", "rls.a=1"], "set"),
     (["--seed", "0", "--resume"], "resume, seed")],
)  # fmt: skip
def test_redrawing_takes_no_option_of_a_search(run, tmp_path, capsys, arguments, named):
    assert run("--from", tmp_path / "solutions.npz", *arguments, generator=False) == 2
    assert f"leave out {named}" in capsys.readouterr().err


def test_redrawing_finds_its_generator_by_hash(run, photo, tiny_files, tmp_path, monkeypatch):
    """From another folder, and when the file that was named is another one by now."""
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy(tiny_files["generator"], there / "g.safetensors")
    monkeypatch.chdir(there)
    here = ("--generator", "g.safetensors", "--prior", tiny_files["prior"], "--quiet")
    assert run(photo, "--out", tmp_path / "out", *QUICK, *here, generator=False) == 0
    source = tmp_path / "out" / "photo" / "solutions.npz"
    monkeypatch.chdir(tmp_path)
    assert run("--from", source, "--out", tmp_path / "again", generator=False) == 0
    shutil.rmtree(there)
    cached = tmp_path / "cache" / "generators"
    cached.mkdir(parents=True)
    shutil.copy(tiny_files["generator"], cached / "other-name.safetensors")
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "cache"))
    assert run("--from", source, "--out", tmp_path / "third", generator=False) == 0
    names = [tmp_path / name / "solution_1.png" for name in ("out/photo", "again", "third")]
    assert len({path.read_bytes() for path in names}) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--generator", "nonsense"], "unknown generator 'nonsense'"),
        (["--generator", "missing.pkl"], "does not exist"),
        (["--method", "magic"], "unknown method"),
        (["--set", "rls.lambda_x=1"], "no setting 'lambda_x'"),
        (["--set", "pulse.steps=1"], "the method is rls"),
        (["--set", "lambda_w"], "METHOD.SETTING=VALUE"),
        (["--steps", "0"], "whole number"),
        (["--solutions", "many"], "whole number"),
        (["--class", "3"], "no classes"),
        (["--degradation", "magic(3)"], "magic"),
        (["--noise-std", "-1"], "0 or more"),
        (["--noise-mask", "mask.png"], "--noise-mask needs --noise-std"),
        (["--diversity", "0.02", "--solutions", "1"], "two of them"),
    ],
)
def test_bad_options_end_with_code_2(run, photo, tmp_path, capsys, arguments, says):
    own = "--generator" not in arguments
    assert run(photo, "--out", tmp_path / "out", *QUICK, *arguments, generator=own) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out" / "photo").exists()


def test_an_unwritable_folder_ends_with_code_2(run, photo, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(photo, "--out", tmp_path / "file" / "out", *QUICK) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_help_does_not_import_jax():
    script = (
        "import runpy, sys; sys.argv = ['upsample', '--help']\n"
        "try: runpy.run_module('stylesr_jax.upsample', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'PIL'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "never use them to identify" in done.stdout.replace("\n", " ")


NOTES = ["fixed ones were drawn (seed 0)", "read from 'g_ema'\n, the averaged one"]


@pytest.mark.parametrize("as_json", [False, True])
def test_what_the_converter_noted_is_said_once(run, tiny_files, photo, tmp_path, capsys, as_json):
    noted = with_notes(tiny_files["generator"], tmp_path, [*NOTES, NOTES[0], 3])
    out = tmp_path / "out"
    command = (photo, "--generator", noted, *FEW, "--out", out)
    assert run(*command, *(["--json"] if as_json else []), generator=False) == 0
    found = capsys.readouterr()
    said = [f"note: {note}" for note in (NOTES[0], NOTES[1].replace("\n", "\\n"))]
    assert found.err.splitlines() == said
    assert "seed 0" not in found.out
    if as_json:
        assert {json.loads(line)["event"] for line in found.out.splitlines()} >= {"start", "result"}
        return
    again = ("--from", out / "photo" / "solutions.npz", "--out", tmp_path / "again")
    assert run(*again, "--generator", noted, generator=False) == 0
    assert capsys.readouterr().err.splitlines() == said
    assert run(*command, "--quiet", generator=False) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("notes", [None, 3, "text", {"a": 1}, [[1]], [""]])
def test_other_notes_are_passed_over(tiny_files, tmp_path, notes):
    assert notes_of(with_notes(tiny_files["generator"], tmp_path, notes)) == ()
    assert notes_of(tiny_files["generator"]) == ()
