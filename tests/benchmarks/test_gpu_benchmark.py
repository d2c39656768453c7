"""The benchmark for a GPU: its arithmetic, and a shortened run on the tiny generator."""

import json

import pytest

from benchmarks import gpu
from benchmarks.gpu import PARTS, PUBLISHED, Rates, goal, rates_of, roofline


def test_devices_are_known_by_their_names():
    assert rates_of("NVIDIA H200") == PUBLISHED["H200"]
    assert rates_of("NVIDIA A100-SXM4-80GB") == PUBLISHED["A100"]
    assert rates_of("Tesla T4") == PUBLISHED["T4"]
    assert rates_of("NVIDIA GeForce RTX 4090") == PUBLISHED["4090"]
    assert rates_of("cpu") is None and rates_of("NVIDIA L40S") is None


def test_the_roofline_is_the_slower_of_products_and_memory():
    rates = Rates(tflops=10.0, tf32=100.0, half=200.0, terabytes=2.0)
    assert roofline(100.0, 1.0, rates, tensor_cores=False) == pytest.approx(0.01)
    assert roofline(100.0, 1.0, rates, tensor_cores=True) == pytest.approx(0.001)
    assert roofline(100.0, 10.0, rates, tensor_cores=True) == pytest.approx(0.005)


def test_the_goal_is_of_many_starts_together():
    rows = [
        {"preset": "fast", "starts": 1, "of_one_start": 1.0},
        {"preset": "fast", "starts": 64, "of_one_start": 4.5},
        {"preset": "balanced", "starts": 64, "of_one_start": 3.5},
        {"preset": "fast", "starts": 16, "of_one_start": 1.5},
        {"preset": "best", "starts": 64, "memory": "RESOURCE_EXHAUSTED"},
    ]
    missed, reached = goal(rows)
    assert "fast: 64 starts take 4.5" in missed and "not reached" in missed
    assert "3.5" in reached and "is reached" in reached


@pytest.fixture
def call(tiny_files, tmp_path, monkeypatch, kept_programs):
    """Runs the command with the tiny generator; what gpu.json holds."""
    monkeypatch.setattr(gpu, "configure", lambda: None)  # caches stay as the tests have them

    def run(*arguments):
        own = ["--out", tmp_path, "--generator", tiny_files["generator"], "--steps", "2"]
        own += ["--prior", tiny_files["prior"], "--repeats", "1", "--starts", "2,1"]
        own += ["--evaluations", "4", "--resolution", "32", *arguments]
        assert gpu.main([str(a) for a in own]) == 0
        return json.loads((tmp_path / "gpu.json").read_text())["parts"]

    return run


def test_a_shortened_run_on_the_cpu(call, tmp_path, capsys):
    parts = call("--parts", "agreement,steps,roofline")
    assert [row["what"] for row in parts["agreement"]][:2] == ["image", "gradient"]
    for row in parts["agreement"]:  # the same programs on the same device
        assert row["max_difference"] <= 1e-5 * row["max"] and row["max"] > 0.0
    assert [row["starts"] for row in parts["steps"]] == [1, 2]
    assert all(row["start_steps_a_second"] > 0 for row in parts["steps"])
    bounds = {row["device"]: row for row in parts["roofline"]}
    assert list(bounds) == list(PUBLISHED)  # this machine has none of them
    h200, t4 = bounds["H200"], bounds["T4"]
    assert h200["roofline_start_steps_a_second"] > t4["roofline_start_steps_a_second"]
    assert h200["gflop"] > 0.01 and h200["gigabytes"] > 0.001
    text = (tmp_path / "table.md").read_text()
    assert all(f"## {name}" in text for name in parts)
    assert (tmp_path / "gpu.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("\nagreement: ") == 3


@pytest.mark.slow
def test_a_run_of_all_parts(call):
    parts = call("--presets", "fast")
    assert list(parts) == list(PARTS)
    assert [(row["preset"], row["starts"]) for row in parts["solutions"]] == [
        ("fast", 1),
        ("fast", 2),
    ]
    assert all(row["solutions_a_minute"] > 0 for row in parts["solutions"])
    assert [(row["starts"], row["blocks"]) for row in parts["stylegan2"]] == [
        (starts, blocks) for blocks in gpu.DTYPES for starts in (1, 2)
    ]


def test_nothing_begins_after_the_deadline(call):
    parts = call("--seconds", "0")
    assert all(
        rows == [{"left_out": "no time is left for the next row"}] for rows in parts.values()
    )
    assert list(parts) == list(PARTS)


def test_a_part_that_fails_leaves_the_others(call, monkeypatch):
    def breaks(options):
        yield {"a": 1}
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(PARTS, "steps", breaks)
    monkeypatch.setitem(PARTS, "torch", lambda options: iter([{"b": 2}]))
    parts = call("--parts", "steps,torch")
    assert parts == {
        "steps": [{"a": 1}, {"failed": "RuntimeError: no such kernel"}],
        "torch": [{"b": 2}],
    }


def test_parts_that_there_are_not_are_refused(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path), "--parts", "steps,magic"]) == 2
    assert "--parts magic: there are agreement" in capsys.readouterr().err
