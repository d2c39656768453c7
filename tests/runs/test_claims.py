"""Several workers on one folder: claims, and three real processes of which one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.runs import claims as claims_module
from stylesr_jax.runs.claims import Claims, content_key, join_processes
from where import ROOT


def test_a_claim_is_held_by_one_worker_and_freed(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    with one.hold("a") as mine:
        assert mine
        with other.hold("a") as again, other.hold("b") as different:
            assert not again and different
    with other.hold("a") as later:
        assert later
    assert not list(tmp_path.iterdir())


def _age(path, seconds=60):
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_a_dead_workers_claim_passes_on_once(tmp_path):
    claims = Claims(tmp_path, stale=5.0)
    path = tmp_path / "a.0.claim"
    path.write_text("somebody who died")
    with claims.hold("a") as mine:
        assert not mine and not claims.is_free("a")  # it may still live
    _age(path)
    assert claims.is_free("a")
    with claims.hold("a") as first, claims.hold("a") as second:
        assert first and not second
    assert not list(tmp_path.iterdir())


def test_many_workers_take_over_a_dead_claim_once(tmp_path):
    (tmp_path / "a.0.claim").write_text("somebody who died")
    _age(tmp_path / "a.0.claim")
    barrier = threading.Barrier(16)

    def contend(_):
        barrier.wait()
        return Claims(tmp_path, stale=5.0).take("a")

    with ThreadPoolExecutor(16) as pool:
        taken = [claim for claim in pool.map(contend, range(16)) if claim is not None]
    assert len(taken) == 1 and taken[0].is_mine()
    taken[0].release()
    assert not list(tmp_path.iterdir())


def test_a_successor_that_died_is_succeeded(tmp_path):
    for name in ("a.0.claim", "a.1.claim"):
        (tmp_path / name).write_text("somebody who died")
        _age(tmp_path / name)
    with Claims(tmp_path, stale=5.0).hold("a") as mine:
        assert mine and (tmp_path / "a.2.claim").exists()
    assert not list(tmp_path.iterdir())


def test_one_who_slept_too_long_knows_that_the_claim_is_lost(tmp_path):
    claims = Claims(tmp_path, stale=5.0)
    slow = claims.take("a")
    assert slow is not None and slow.is_mine()
    _age(slow.path)  # as if the process had been stopped
    quick = claims.take("a")
    assert quick is not None and quick.is_mine() and not slow.is_mine()
    slow.release()
    assert quick.is_mine() and not claims.is_free("a")
    quick.release()
    assert not list(tmp_path.iterdir())


def test_a_claim_that_was_freed_while_being_taken_over_is_let_go(tmp_path, monkeypatch):
    """Seen dead, then succeeded, finished and freed by another before this worker goes on."""
    (tmp_path / "a.0.claim").write_text("somebody who died")
    _age(tmp_path / "a.0.claim")
    late, quick = Claims(tmp_path, stale=5.0), Claims(tmp_path, stale=5.0)
    create = claims_module._create

    def meanwhile(path, text):
        monkeypatch.setattr(claims_module, "_create", create)
        with quick.hold("a") as mine:
            assert mine
        return create(path, text)

    monkeypatch.setattr(claims_module, "_create", meanwhile)
    assert late.take("a") is None
    assert not list(tmp_path.iterdir())


def test_a_living_worker_keeps_its_claim(tmp_path):
    claims = Claims(tmp_path, stale=0.4)
    with claims.hold("a") as mine:
        assert mine
        time.sleep(1.0)
        with Claims(tmp_path, stale=0.4).hold("a") as other:
            assert not other


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
    names = [f"face{i}" for i in range(6)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(inputs / f"{name}.png")
    (inputs / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "stylesr_jax.upsample", str(inputs), "--out", str(out)]
    command += ["--generator", str(tiny_files["generator"]), "--prior", str(tiny_files["prior"])]
    command += ["--method", "csgm", "--steps", "60", "--solutions", "1", "--json"]
    command += ["--stale", "4", "--distributed"]
    command += ["--coordinator", f"127.0.0.1:{_free_port()}", "--processes", "3"]
    environment = {
        **os.environ,
        "STYLESR_CACHE": str(KEPT),
        "PYTHONPATH": str(ROOT),
    }

    def start(process: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--process", str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # Compiled once, not by three processes at the same time.
    single = [part if part != str(inputs) else str(inputs / "face0.png") for part in command]
    single = [part if part != str(out) else str(tmp_path / "first") for part in single]
    single = single[: single.index("--distributed")]
    subprocess.run(single, env=environment, check=True, capture_output=True)
    workers = [start(process) for process in range(3)]
    victim, killed = workers.pop(0), []  # the one that the others met at
    assert victim.stdout is not None
    for line in victim.stdout:  # it is killed in the middle of its second input, if it gets there
        killed.append(json.loads(line))
        searching = killed[-1]["event"] == "step" and len(killed) > 3
        if searching:
            break
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    workers.append(start(0))
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
