"""The benchmark of the command: what it launches, and one short run on the tiny generator."""

import json
import resource
import sys
from pathlib import Path

import pytest

from benchmarks import command
from benchmarks.command import Launch, cases_of, environment, facts_of, launch, measure
from stylesr_jax.errors import UserError
from where import ROOT


@pytest.fixture(autouse=True)
def _in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)  # where `python -m benchmarks...` works


def _events(generator="g", steps=7, start=2.0, first=3.0):
    found = [
        (start, {"event": "start", "generator": generator, "steps": steps}),
        (first, {"event": "step", "step": 5}),
        (first + 1.0, {"event": "step", "step": 7}),
    ]
    return [(seconds, json.dumps(event) + "\n") for seconds, event in found]


def test_cases_are_presets_and_solutions():
    assert cases_of("fast-1, paper-w-12") == [("fast", 1), ("paper-w", 12)]
    for text in ("fast", "-3", "fast-", "fast-0", "fast-x", "fast-1,,best-2"):
        with pytest.raises(UserError, match="PRESET-SOLUTIONS"):
            cases_of(text)


def test_nothing_moves_the_cache_out_of_its_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("STYLESR_CACHE", "elsewhere")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    monkeypatch.setenv("OTHER", "kept")
    found = environment(tmp_path)
    assert found["STYLESR_CACHE"] == str(tmp_path) and found["OTHER"] == "kept"
    assert not [name for name in found if name.startswith("JAX_") and "CACHE" in name]


def test_times_are_those_of_the_first_events():
    found = facts_of(Launch(9.0, 10, _events()))
    assert (found["loaded_seconds"], found["first_steps_seconds"], found["seconds"]) == (2, 3, 9)
    assert (found["generator"], found["steps"], found["peak_bytes"]) == ("g", 7, 10)


def test_every_round_begins_with_an_empty_cache(monkeypatch):
    """Two launches share a folder that no other round has seen; ratios are taken in rounds."""
    seconds = iter([10.0, 5.0, 40.0, 4.0, 20.0, 8.0])
    seen = []

    def fake(arguments, cache):
        assert arguments[0] == "input.png" and {"--json", "--out"} <= set(arguments)
        seen.append((cache, sorted(path.name for path in cache.glob("*"))))
        cache.mkdir(exist_ok=True)
        (cache / f"left-{len(seen)}").touch()
        total = next(seconds)
        return Launch(total, int(total), _events(first=total / 2))

    monkeypatch.setattr(command, "launch", fake)
    found = measure(["input.png"], repeats=3)
    assert [names for _, names in seen] == [[], ["left-1"], [], ["left-3"], [], ["left-5"]]
    assert len({cache for cache, _ in seen}) == 3
    assert not any(cache.exists() for cache, _ in seen)
    assert found["empty"]["seconds"] == 20.0 and found["filled"]["seconds"] == 5.0
    assert found["empty"]["all_seconds"] == [10.0, 40.0, 20.0]
    assert found["filled"]["peak_bytes"] == 8 and found["filled"]["first_steps_seconds"] == 2.5
    assert found["filled_of_empty"] == {"seconds": 0.4, "first_steps_seconds": 0.4}


def test_memory_and_time_are_the_commands_own(tmp_path):
    unit = 1 if sys.platform == "darwin" else 1024
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = launch(["--help"], tmp_path)
    assert 5e6 < found.peak_bytes < here / 2  # this process has imported JAX
    assert found.lines[0][1].startswith("usage:")
    assert 0 < found.lines[0][0] <= found.lines[-1][0] <= found.seconds + 1.0


def test_a_failing_command_is_said(tiny_files, tmp_path, capfd):
    picture = Path("docs/images/astronaut.png")
    own = ["--generator", str(tiny_files["generator"]), "--image", str(picture)]
    assert command.main([*own, "--cases", "fast-1,fast"]) == 2
    assert "PRESET-SOLUTIONS" in capfd.readouterr().err
    with pytest.raises(UserError, match="exit code 2"):
        launch([str(tmp_path / "missing.png")], tmp_path)  # no --out
    assert "--out DIR is missing" in capfd.readouterr().err


@pytest.mark.slow
def test_a_short_run(tiny_files, tmp_path, capsys):
    out = tmp_path / "folder" / "report.json"
    own = ["--generator", str(tiny_files["generator"]), "--prior", str(tiny_files["prior"])]
    own += ["--steps", "2", "--cases", "fast-2", "--lr-size", "8", "--out", str(out)]
    assert command.main(own) == 0
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["image"], report["lr_size"]) == (
        "command",
        "astronaut.png",
        8,
    )
    assert len(report["help"]["all_seconds"]) == command.HELP_LAUNCHES
    (case,) = report["cases"]
    assert (case["preset"], case["solutions"], case["steps"]) == ("fast", 2, 2)
    assert case["generator"] == "tiny-32"
    for cache in ("empty", "filled"):
        one = case[cache]
        assert 0 < one["loaded_seconds"] < one["first_steps_seconds"] < one["seconds"]
        assert one["all_seconds"] == [one["seconds"]]
        assert one["peak_bytes"] > 1e8 > report["help"]["peak_bytes"]
        assert report["help"]["seconds"] < one["loaded_seconds"]
    ratio = case["filled"]["seconds"] / case["empty"]["seconds"]
    assert case["filled_of_empty"]["seconds"] == pytest.approx(ratio)
    assert case["filled_of_empty"]["first_steps_seconds"] < 1  # nothing was traced or compiled
    machine, help_line, title, header, empty, filled = capsys.readouterr().out.splitlines()
    assert machine.startswith(report["machine"]["date"])
    assert help_line == f"--help: {report['help']['seconds']:.2f} s"
    assert title == "tiny-32, from 8 px" and header == command.HEADER
    assert empty.split()[:4] == ["fast", "2", "2", "empty"] and empty.split()[5] == "1.00x"
    assert filled.split()[3] == "filled" and filled.split()[5] == f"{ratio:.2f}x"
    assert len(header) == len(empty) == len(filled)
