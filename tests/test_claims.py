"""Several workers on one folder: claims, and three real processes of which one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.claims import Claims, content_key, join_processes
from stylesr_jax.errors import UserError


def test_a_claim_is_held_by_one_worker_and_freed(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    with one.hold("a") as mine:
        assert mine
        with other.hold("a") as again, other.hold("b") as different:
            assert not again and different
    with other.hold("a") as later:
        assert later
    assert not list(tmp_path.iterdir())


def test_a_dead_workers_claim_passes_on_once(tmp_path):
    claims = Claims(tmp_path, stale=5.0)
    path = tmp_path / "a.claim"
    path.write_text("somebody who died")
    with claims.hold("a") as mine:
        assert not mine  # it may still live
    os.utime(path, (time.time() - 60, time.time() - 60))
    with claims.hold("a") as first, claims.hold("a") as second:
        assert first and not second
    assert not path.exists()


def test_a_living_worker_keeps_its_claim(tmp_path):
    claims = Claims(tmp_path, stale=0.4)
    with claims.hold("a") as mine:
        assert mine
        time.sleep(1.0)
        with Claims(tmp_path, stale=0.4).hold("a") as other:
            assert not other


def test_a_takeover_that_was_cut_short_is_repeated(tmp_path):
    for name in ("a.claim", "a.takeover"):
        (tmp_path / name).write_text("somebody who died")
        os.utime(tmp_path / name, (time.time() - 60, time.time() - 60))
    claims = Claims(tmp_path, stale=5.0)
    taken = []
    for _ in range(2):
        with claims.hold("a") as mine:
            taken.append(mine)
    assert taken == [False, True]


def test_keys_tell_settings_apart():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", None, None), "give all three"),
        (("127.0.0.1:1", 2, 2), "0 to 1"),
        (("nowhere", 2, 1), "HOST:PORT"),
    ],
)
def test_wrong_places_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        join_processes(*given)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_three_processes_divide_a_folder_and_survive_a_kill(tiny_files, tmp_path):
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    rng = np.random.default_rng(0)
    names = [f"face{i}" for i in range(8)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(inputs / f"{name}.png")
    (inputs / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "stylesr_jax.upsample", str(inputs), "--out", str(out)]
    command += ["--generator", str(tiny_files["generator"]), "--prior", str(tiny_files["prior"])]
    command += ["--steps", "60", "--solutions", "1", "--json", "--stale", "4", "--distributed"]
    command += ["--coordinator", f"127.0.0.1:{_free_port()}", "--processes", "3"]
    environment = {
        **os.environ,
        "STYLESR_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }

    def start(process: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--process", str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    workers = [start(process) for process in range(3)]
    victim, killed = workers.pop(), []
    assert victim.stdout is not None
    for line in victim.stdout:  # it is killed in the middle of its second input, if it gets there
        killed.append(json.loads(line))
        searching = killed[-1]["event"] == "step" and len(killed) > 3
        if searching:
            break
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    workers.append(start(2))
    ends = [worker.communicate(timeout=240) for worker in workers]
    # 2: one input is no picture, and every process says so.
    assert [worker.returncode for worker in workers] == [2, 2, 2], ends
    events = killed + [json.loads(line) for text, _ in ends for line in text.splitlines()]
    finished = [Path(e["input"]).stem for e in events if e["event"] == "result"]
    assert sorted(finished) == names  # none twice, none lost
    for name in names:
        report = json.loads((out / name / "report.json").read_text())
        assert report["status"] == "ok"
        assert len(report["solutions"]) == 1
        assert (out / name / "solution_0.png").exists()
    assert not list((out / ".claims").glob("*.claim"))
    summary = json.loads((out / "summary.json").read_text())["inputs"]
    status = {Path(entry["input"]).stem: entry["status"] for entry in summary}
    assert status == {**dict.fromkeys(names, "ok"), "broken": "failed"}
