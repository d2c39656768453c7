"""Several runs that each do a part of a folder, and one that does what they left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

from stylesr_jax.cli.options import parse_upsample
from stylesr_jax.runs.plan import Shard
from stylesr_jax.runs.records import content_key
from where import ROOT


def test_parts_are_every_nth_of_the_sorted_paths():
    paths = [Path(f"{name}.png") for name in "dbcae"]
    parts = [Shard(index, 3).of(paths) for index in range(3)]
    assert [[path.stem for path in part] for part in parts] == [["a", "d"], ["b", "e"], ["c"]]
    assert Shard(7, 8).of(paths) == []


@pytest.mark.parametrize("text", ["1", "1/", "/2", "2/2", "-1/2", "a/b", "1/2/3", "0/0"])
def test_parts_that_there_are_not_are_refused(text, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_upsample(["a.png", "--out", "out", f"--shard={text}"])
    assert stop.value.code == 2
    assert "write I/N, I from 0 to N-1" in capsys.readouterr().err


def test_keys_tell_settings_apart():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


@pytest.fixture
def command(tiny_files, tmp_path):
    """The command for a folder of six pictures and a broken one, as arguments of a process."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(inputs / f"face{i}.png")
    (inputs / "broken.png").write_bytes(b"no picture")
    arguments = [sys.executable, "-m", "stylesr_jax.upsample", str(inputs)]
    arguments += ["--out", str(tmp_path / "out")]
    arguments += ["--generator", str(tiny_files["generator"]), "--prior", str(tiny_files["prior"])]
    return [*arguments, "--method", "csgm", "--steps", "60", "--solutions", "1", "--json"]


def _start(command, *more):
    environment = {**os.environ, "STYLESR_CACHE": str(KEPT), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(lines):
    events = map(json.loads, lines)
    return [Path(event["input"]).stem for event in events if event["event"] == "result"]


def test_a_killed_part_is_done_by_the_run_that_resumes(command, tmp_path):
    out = tmp_path / "out"
    names = [f"face{i}" for i in range(6)]
    whole = _start(command, "--shard", "0/2")  # broken, face1, face3, face5
    said, _ = whole.communicate(timeout=240)
    assert whole.returncode == 2 and _finished(said.splitlines()) == ["face1", "face3", "face5"]
    victim, before = _start(command, "--shard", "1/2"), []
    assert victim.stdout is not None
    for line in victim.stdout:
        before.append(line)
        if _finished(before) and json.loads(line)["event"] == "step":  # of its second input
            break
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL and _finished(before) == ["face0"]
    healing = _start(command, "--resume")
    said, _ = healing.communicate(timeout=240)
    assert healing.returncode == 2  # one input is no picture
    assert _finished(said.splitlines()) == ["face2", "face4"]  # none twice, none lost
    for name in names:
        assert json.loads((out / name / "report.json").read_text())["status"] == "ok"
        assert (out / name / "solution_0.png").exists()

    def status(file):
        entries = json.loads((out / file).read_text())["inputs"]
        return {Path(entry["input"]).stem: entry["status"] for entry in entries}

    odd = dict.fromkeys(names[1::2], "ok")
    assert status("summary-0-of-2.json") == {**odd, "broken": "failed"}
    assert status("summary.json") == {**dict.fromkeys(names, "ok"), "broken": "failed"}
