"""The command as a process: signals, readers that go away, and JAX's environment."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

from stylesr_jax.errors import UserError, exit_code
from where import ROOT


@pytest.fixture
def start(tiny_files, tmp_path):
    """Starts `upsample` on a photo, with a search of 4,000 steps unless told otherwise."""
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    environment = {**os.environ, "STYLESR_CACHE": str(KEPT), "PYTHONPATH": str(ROOT)}
    photo = str(tmp_path / "photo.png")
    command = ["--generator", str(tiny_files["generator"]), "--prior", str(tiny_files["prior"])]
    command += ["--out", str(tmp_path / "out"), "--method", "csgm", "--solutions", "1"]

    def launch(*options, inputs=(photo,), steps="4000", **variables):
        own = [sys.executable, "-m", "stylesr_jax.upsample", *inputs, *command]
        return subprocess.Popen(
            [*own, "--steps", steps, *options],
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return launch


def _until_it_searches(process):
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            return
    raise AssertionError(process.stderr.read())


def test_sigterm_keeps_the_best_so_far(start, tmp_path):
    process = start("--json")
    _until_it_searches(process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert errors == "error: interrupted; the best so far was saved\n"
    report = json.loads((tmp_path / "out" / "photo" / "report.json").read_text())
    assert report["status"] == "interrupted"
    assert (tmp_path / "out" / "photo" / "solution_0.png").is_file()


def test_a_reader_that_goes_away_ends_it_quietly(start):
    process = start("--json")
    assert json.loads(process.stdout.readline())["event"] == "start"
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == "" and process.wait(timeout=120) == 141


@pytest.mark.parametrize(
    "name", ["JAX_ENABLE_X64", "JAX_DEBUG_NANS", "JAX_DEBUG_INFS", "JAX_NUMPY_RANK_PROMOTION"]
)
def test_options_of_jax_stop_nothing(start, tmp_path, name):
    value = "raise" if name.endswith("PROMOTION") else "1"
    process = start("--quiet", steps="8", **{name: value})
    assert process.communicate(timeout=240) == ("", "") and process.returncode == 0
    report = json.loads((tmp_path / "out" / "photo" / "report.json").read_text())
    assert report["status"] == "ok" and report["solutions"][0]["status"] == "ok"


def test_a_device_that_is_not_there_is_said_in_a_line(start):
    process = start(JAX_PLATFORMS="nonsense")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and len(errors.splitlines()) == 1
    assert "JAX_PLATFORMS=nonsense; unset it" in errors


def test_names_can_be_printed_in_an_ascii_locale(start, tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    inputs = (str(tmp_path / "photo.png"), os.fsdecode(b"caf\xe9.png"))
    process = start("--method", "bicubic", inputs=inputs, **ascii_only)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in errors
    assert "photo.png: 1 solution(s)" in said and "no such file" in errors


def _raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("mend it"), 2, "error: mend it\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_exit_codes(capsys, error, code, said):
    assert exit_code(_raises(error)) == code
    assert capsys.readouterr().err == said


def test_sigterm_is_as_it_was_when_the_work_is_done():
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    assert exit_code(lambda: seen.append(signal.getsignal(signal.SIGTERM))) == 0
    assert seen != [before] and signal.getsignal(signal.SIGTERM) == before
