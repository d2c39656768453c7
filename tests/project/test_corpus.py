"""A corpus of hostile inputs: a right result, or one line and exit code 2, whatever is given."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

from convert.stylegan2 import main as convert
from corpus_cases import Case, Files, all_cases
from corpus_evaluations import evaluate_cases, sound_evaluation
from corpus_pictures import peak_kilobytes
from stylesr_jax.evaluate import main as evaluate
from stylesr_jax.runtime import weights
from stylesr_jax.upsample import main as upsample
from where import ROOT

COMMANDS = {"upsample": upsample, "evaluate": evaluate, "convert": convert}
BUSY = 240  # seconds of CPU after which a case counts as hanging, however loaded the machine is
WAITS = 1800  # seconds by the clock after which one does that waits and takes no CPU
MAX_GROWTH = 1 << 20  # kB of memory, of one case
SAMPLED = 14  # of so many cases one is in the fast part
HEAVY = ("prior: ", "mask: 30000x40")  # these compile programs of their own
CASES = [*all_cases(), *evaluate_cases()]


def _param(index: int, case: Case):
    slow = index % SAMPLED or case.name.startswith(HEAVY)
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def sound(tiny_files, tmp_path_factory):
    """Files of the tiny generator, of which only the folder is another for each case."""
    folder = tmp_path_factory.mktemp("sound")
    solutions, evaluation = folder / "out" / "photo" / "solutions.npz", folder / "evaluated"
    files = Files(*map(tiny_files.get, ("generator", "prior")), solutions, evaluation, folder)
    own = ("--generator", str(files.generator), "--prior", str(files.prior), "--quiet")
    search = ("--method", "csgm", "--steps", "2", "--solutions", "1")
    assert upsample([str(files.photo), "--out", str(folder / "out"), *own, *search]) == 0
    evaluation.mkdir()
    arguments = sound_evaluation(replace(files, folder=evaluation))
    assert evaluate(list(map(os.fspath, arguments))) == 0
    return files


@pytest.fixture(autouse=True)
def _cache(monkeypatch):
    monkeypatch.setenv("STYLESR_CACHE", str(KEPT))


class _Hang(BaseException):
    """Not a TimeoutError: that is an OSError, which a command may take for a file's."""


@contextmanager
def _limited(busy, waits):
    """Fails what takes over `busy` seconds of this process's CPU, or `waits` by the clock."""

    def interrupt(number, _):
        raise _Hang(f"it hangs ({signal.Signals(number).name})")

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, busy),
        signal.SIGALRM: (signal.ITIMER_REAL, waits),
    }
    before = {number: signal.signal(number, interrupt) for number in timers}
    try:
        for timer, seconds in timers.values():
            signal.setitimer(timer, seconds)
        yield
    except _Hang as hang:
        pytest.fail(str(hang))
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _peak_from_now():
    """The peak of memory in kB; on Linux what was before is forgotten."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_kilobytes()


def _run(command, arguments, capfd):
    """The exit code, and the lines on stderr."""
    capfd.readouterr()
    with _limited(BUSY, WAITS):
        try:
            code = COMMANDS[command](arguments)
        except SystemExit as stop:  # of argparse
            code = stop.code
    return code, capfd.readouterr().err.splitlines()


def _errors(lines):
    """The lines that say what is wrong; argparse shows how the command is used before its own."""
    said = [line for line in lines if re.match(r"error: |python -m \S+: error: ", line)]
    others = [line for line in lines if re.match(r"usage: |  |note: ", line)]
    assert len(said) + len(others) == len(lines), lines
    return said


def _files_under(folder):
    return {path for path in folder.rglob("*") if not path.is_dir()}


def _assert_evaluation(out, code, written):
    """What was written is whole; the table says what failed, unless nothing was done."""
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".npz":
            with np.load(path) as saved:
                assert all(np.isfinite(saved[name]).all() for name in saved.files)
    if code and out / "table.json" not in written:
        parts = {path.relative_to(out).parts[0] for path in written}
        assert parts <= {"features"}  # of a reference
        return
    report = json.loads((out / "table.json").read_text())
    labels, images = report["about"]["variants"], report["images"]
    failed = {one["image"] for one in report["failed"]}
    assert code == (2 if failed else 0) or images  # else an input was no file
    assert failed or images
    for label in labels:
        numbers = {entry["n"] for entry in report["table"][label].values()}
        assert not numbers or max(numbers) == len(images)
    with open(out / "rows.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n_solutions = report["about"]["solutions"]
    assert len(rows) >= len(images) * (1 + n_solutions * len(labels))
    assert (out / "table.md").read_text(encoding="utf-8").startswith("| method |")


def _assert_result(case, out):
    """What was written is whole."""
    if case.command == "convert":
        tensors, header = weights.load(out / "converted.safetensors")
        assert header["kind"] == "generator" and tensors["params"]
        return
    pictures = list(out.rglob("*solution_*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.mode == "RGB" and max(picture.size) == 32
    for path in out.glob("*/report.json"):
        report = json.loads(path.read_text())
        assert report["status"] == "ok" and len(report["solutions"]) >= 1
        assert all((path.parent / one["file"]).is_file() for one in report["solutions"])


@pytest.mark.parametrize("case", [_param(i, case) for i, case in enumerate(CASES)])
def test_a_hostile_input(case, sound, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    files = replace(sound, folder=tmp_path)
    arguments = list(map(os.fsdecode, case.arguments(files)))
    before, peak = _files_under(tmp_path), _peak_from_now()
    code, lines = _run(case.command, arguments, capfd)
    errors = _errors(lines)
    assert code in case.ends
    assert len(errors) == (1 if code else 0), lines
    assert all(line.isprintable() for line in errors)
    assert peak_kilobytes() - peak < MAX_GROWTH
    written = _files_under(tmp_path) - before
    assert not [path for path in written if path.name.startswith(".")]
    out = tmp_path / "out"
    if case.command == "evaluate":
        _assert_evaluation(out, code, written)
    elif code:
        assert not written
    else:
        _assert_result(case, out)


def _spin():
    while True:
        with suppress(Exception):
            sum(range(1000))


def _wait_for_a_writer(pipe):
    while True:
        with suppress(OSError):
            os.close(os.open(pipe, os.O_RDONLY))


def test_a_case_that_hangs_fails(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(pytest.fail.Exception, match="SIGPROF"), _limited(0.2, WAITS):
        _spin()
    with pytest.raises(pytest.fail.Exception, match="SIGALRM"), _limited(BUSY, 0.2):
        _wait_for_a_writer(tmp_path / "pipe")


def test_a_case_that_has_to_wait_for_the_machine_does_not_fail():
    with _limited(0.5, WAITS):
        time.sleep(1.0)
    with _limited(BUSY, WAITS):
        pass
    assert signal.getitimer(signal.ITIMER_PROF) == signal.getitimer(signal.ITIMER_REAL) == (0, 0)


# --- Killed runs ----------------------------------------------------------------------------

PHOTOS = 6
SEARCH = ("--method", "csgm", "--steps", "12", "--solutions", "2", "--seed", "3")
KILLED = range(20)


@pytest.fixture(scope="module")
def folder_of_six(tiny_files, tmp_path_factory):
    """Six photos, the options of a run over them, and what an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("six")
    (folder / "in").mkdir()
    for i in range(PHOTOS):
        pixels = np.random.default_rng(i).integers(60, 200, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"photo{i}.png")
    own = ("--generator", str(tiny_files["generator"]), "--prior", str(tiny_files["prior"]))
    options = [str(folder / "in"), *own, *SEARCH, "--json"]
    assert upsample([*options, "--out", str(folder / "whole")]) == 0
    return options, _pictures_in(folder / "whole")


def _pictures_in(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")}


def _killed(options, rng):
    """Run the command and kill it after some events and a while; the results it spoke of."""
    environment = {**os.environ, "STYLESR_CACHE": str(KEPT), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stylesr_jax.upsample", *options]
    finished = set()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for _, line in zip(range(rng.integers(1, 8 * PHOTOS)), process.stdout, strict=False):
            finished |= _inputs([line], "result")
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
    return finished


def _inputs(lines, event):
    """The inputs of the events of a kind."""
    events = map(json.loads, lines)
    return {one["input"] for one in events if one["event"] == event}


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=[pytest.mark.slow] if i else []) for i in KILLED]
)
def test_a_killed_run_is_resumed(seed, folder_of_six, tmp_path, capfd):
    options, whole = folder_of_six
    out = tmp_path / "out"
    options = [*options, "--out", str(out), "--resume"]
    finished = _killed(options, np.random.default_rng(seed))
    written = {path: path.stat().st_mtime_ns for path in out.glob("*/report.json")}
    capfd.readouterr()
    assert upsample(options) == 0
    lines = capfd.readouterr().out.splitlines()
    skipped, solved = _inputs(lines, "skip"), _inputs(lines, "result")
    assert finished <= skipped and not skipped & solved and len(skipped | solved) == PHOTOS
    assert len(written) == len(skipped)
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    assert _pictures_in(out) == whole
    entries = json.loads((out / "summary.json").read_text())["inputs"]
    assert [entry["status"] for entry in entries] == ["ok"] * PHOTOS
    assert not [path for path in out.rglob(".*") if path.is_file()]
    for path in out.glob("*/solutions.npz"):
        with np.load(path) as saved:
            assert len(saved["ws"]) == 2
