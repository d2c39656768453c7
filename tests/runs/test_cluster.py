"""Many machines: who does what, and real Ray clusters of three machines that lose parts."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import KEPT
from PIL import Image

import buckets
import ray_cluster
from stylesr_jax.cli.options import parse_evaluate, parse_upsample
from stylesr_jax.errors import UserError
from stylesr_jax.runs import cluster
from stylesr_jax.runs.cluster import Allotment, Ledger, PieceWorker, allot, piece_size, pieces
from stylesr_jax.runs.photos import PhotosJob, PhotosPlan
from stylesr_jax.runs.plan import variant
from where import ROOT

with_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install 'stylesr-jax[cluster]'"
)
HAS_BUCKETS = find_spec("s3fs") is not None and find_spec("moto") is not None
with_buckets = pytest.mark.skipif(not HAS_BUCKETS, reason="s3fs or moto is not installed")


# --- who does what --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        ([{"CPU": 16, "GPU": 8}, {"CPU": 16, "GPU": 4}, {"CPU": 4}], None, (12, 1, 1)),
        ([{"CPU": 16, "GPU": 8}], 3, (3, 1, 1)),
        ([{"CPU": 8}, {"CPU": 4}, {"CPU": 0.0}, {}], None, (3, 4, 0)),  # two on the larger one
        ([{"CPU": 8}, {"CPU": 8}], 1, (1, 8, 0)),
        ([{"CPU": 8}, {"CPU": 8}], 4, (4, 4, 0)),
        ([{"CPU": 2}], 8, (8, 1, 0)),
    ],
)
def test_workers_are_allotted(nodes, wanted, expected):
    assert allot(nodes, wanted) == expected


def test_a_cluster_of_nothing_is_refused():
    with pytest.raises(UserError, match="neither CPUs nor GPUs"):
        allot([{}, {"CPU": 0.0}], None)


def test_photos_of_one_stem_stay_together():
    names = ["d/x.png", "a/b.png", "c/B.jpg", "a/a.png", "e/x.png", "f/y.png"]
    ordered, spans = pieces([Path(name) for name in names], 1)
    parts = [[str(path) for path in ordered[begin:end]] for begin, end in spans]
    assert parts == [["a/a.png"], ["a/b.png", "c/B.jpg"], ["d/x.png", "e/x.png"], ["f/y.png"]]
    assert pieces([Path(name) for name in names], 4)[1] == [(0, 5), (5, 6)]


def _plan(tiny, out=Path("out"), photos=(), **options):
    return PhotosPlan(
        photos=tuple(photos),
        variants=(variant("bicubic"),),
        out=out,
        generator=tiny,
        generator_name="tiny",
        lr_size=8,
        identity={"weights_sha256": "0" * 64},
        **options,
    )


def test_pieces_fill_batches_and_leave_nobody_idle(tiny):
    gpus, cpus = Allotment(8, 1, 1), Allotment(8, 4, 0)
    plan = _plan(tiny, solutions=4)
    assert piece_size(plan, 70_000, gpus) == 4 * 16  # four batches of 64 starts
    assert piece_size(plan, 64, gpus) == 8
    assert piece_size(plan, 1000, cpus) == 1
    assert piece_size(plan, 70_000, cpus) == 7  # Ray keeps an account of 10,000 pieces
    assert piece_size(_plan(tiny, solutions=4, batch=8), 1000, cpus) == 2


def _photo(path, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def worker(tiny, tmp_path, monkeypatch):
    """Makes workers of this process, with the ledger they ask."""
    ledger = Ledger()

    def ask(self, question, numbers):
        return getattr(ledger, question)(numbers)

    monkeypatch.setattr(PieceWorker, "_ask", ask)
    monkeypatch.setattr(cluster, "configure", lambda: None)
    photos = [_photo(tmp_path / f"face{i}.png", i) for i in range(4)]

    def make():
        job = PhotosJob(_plan(tiny, tmp_path / "out", photos, resume=True), say=None, error=None)
        return PieceWorker(lambda: job, photos, 4, ledger, str(tmp_path))

    return make, ledger, photos


def _events(report):
    return [(name, *arguments[:1]) for name, arguments, _ in report.said]


def test_a_worker_reports_what_it_says_and_finds(worker):
    make, ledger, _ = worker
    one = make()
    report = pickle.loads(one({"begin": [1], "end": [3]})[cluster.COLUMN][0])
    assert _events(report) == [("say", "result")] * 2
    assert {path.name: collected["status"] for path, collected in report.collected.items()} == {
        "face1.png": "ok",
        "face2.png": "ok",
    }
    assert ledger.deaths(range(4)) == {}
    assert _events(one.do(0, 2)) == [("say", "skip"), ("say", "result")]  # what is read comes first


def test_inputs_that_were_in_work_at_a_death_are_done_alone(worker, monkeypatch):
    make, ledger, photos = worker
    ledger.begin([1, 2])  # of a worker that died
    one, groups = make(), []
    work = one.worker.work
    monkeypatch.setattr(one.worker, "work", lambda paths: (groups.append(paths), work(paths)))
    report = one.do(0, 4)
    assert [[path.stem for path in group] for group in groups] == [
        ["face0", "face3"],
        ["face1"],
        ["face2"],
    ]
    assert report.retried == {photos[1]: 1, photos[2]: 1} and ledger.deaths(range(4)) == {}


def test_an_input_is_left_out_after_the_third_death(worker):
    make, ledger, photos = worker
    for _ in range(3):
        ledger.begin([1])
    report = make().do(0, 2)
    assert _events(report)[0] == ("say", "result")
    assert "face1.png: its worker died 3 times; left out" in _events(report)[1][1]
    assert report.collected[photos[1]]["status"] == "failed"
    assert report.collected[photos[0]]["status"] == "ok"


def test_a_worker_that_cannot_begin_says_why(worker, tmp_path, monkeypatch):
    _, ledger, photos = worker

    def broken():
        raise UserError("there is no such generator here")

    report = PieceWorker(broken, photos, 4, ledger, str(tmp_path)).do(0, 1)
    with pytest.raises(UserError, match="cannot begin: there is no such generator here"):
        cluster._receive(None, report)


@pytest.mark.parametrize("parse", [parse_upsample, parse_evaluate])
def test_options_that_do_not_go_together(parse, capsys):
    own = ["a.png"] if parse is parse_upsample else ["--images", "a.png"]
    for options in (["--workers", "2"], ["--cluster", "auto", "--shard", "0/2"]):
        with pytest.raises(SystemExit):
            parse([*own, "--out", "out", *options])
    errors = capsys.readouterr().err
    assert "add --cluster auto" in errors and "not allowed with argument" in errors


# --- real clusters --------------------------------------------------------------------------

ENVIRONMENT = {"STYLESR_CACHE": str(KEPT), "PYTHONPATH": f"{ROOT}:{ROOT}/tests/helpers"}


class Commands:
    """Runs commands on the tiny generator."""

    def __init__(self, files, environment):
        self.own = ["--generator", str(files["generator"]), "--prior", str(files["prior"])]
        self.environment = {**os.environ, **ENVIRONMENT, **environment}

    def start(self, module, *arguments, code=None, **variables):
        what = ["-c", code] if code else ["-m", f"stylesr_jax.{module}"]
        command = [sys.executable, *what, *map(str, arguments), *self.own]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**self.environment, **variables}
        return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

    def run(self, module, *arguments, **options):
        """(exit code, standard output, standard error)."""
        process = self.start(module, *arguments, **options)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of buckets, or None where there is none to be had."""
    if not HAS_BUCKETS:
        yield None
        return
    with buckets.server(tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture(scope="module")
def commands(tiny_files, server):
    """Runs commands, which find the server."""
    return Commands(tiny_files, {} if server is None else server.environment)


@pytest.fixture(scope="module")
def three(commands):
    """A cluster of three machines, of which none is lost."""
    with ray_cluster.running(commands.environment) as one:
        yield one


@pytest.fixture
def folder(tmp_path):
    """Six photos and a file that is none."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    for i in range(6):
        _photo(inputs / f"face{i}.png", i)
    (inputs / "broken.png").write_bytes(b"no picture")
    return inputs


QUICK = ("--method", "csgm", "--steps", "10", "--solutions", "2", "--batch", "1")


def _solutions(out):
    found = sorted(out.glob("*/solution_*.png"))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def _entries(out):
    """name -> status, of the summary."""
    entries = json.loads((out / "summary.json").read_text())["inputs"]
    return {Path(entry["input"]).stem: entry["status"] for entry in entries}


def _timeless(found):
    """JSON without what depends on the pace, wherever it stands."""
    if isinstance(found, dict):
        return {name: _timeless(one) for name, one in found.items() if "seconds" not in name}
    return [_timeless(one) for one in found] if isinstance(found, list) else found


def _told(out, text):
    """What a run wrote and said of its inputs, but for times."""
    paths = [*out.glob("*/report.json"), out / "summary.json"]
    files = {str(path.relative_to(out)): json.loads(path.read_text()) for path in paths}
    events = [json.loads(line.replace(str(out), "OUT")) for line in text.splitlines()]
    said = [event for event in events if event["event"] in ("result", "error")]
    return _timeless([files, sorted(said, key=lambda event: event["input"])])


@with_ray
def test_a_cluster_finds_what_one_machine_finds(commands, three, folder, tmp_path):
    alone, out, search = tmp_path / "alone", tmp_path / "out", (*QUICK, "--json")
    code, said_alone, errors_alone = commands.run("upsample", folder, "--out", alone, *search)
    assert code == 2
    own = ("--out", out, *search, "--cluster", three.address)
    code, said, errors = commands.run("upsample", folder, *own)
    assert code == 2 and errors == errors_alone
    assert "a cluster of 3 machine(s): 2 worker(s) with 1 CPU(s) each" in said
    assert len(_solutions(out)) == 12 and _solutions(out) == _solutions(alone)
    told = _told(out, said)
    assert len(told[0]) == 7 and len(told[1]) == 7 and told == _told(alone, said_alone)
    progress = [event for event in map(json.loads, said.splitlines()) if event["event"] == "step"]
    assert [(event["step"], event["steps"]) for event in progress] == [(i, 7) for i in range(1, 8)]


@with_ray
@pytest.mark.slow
def test_a_cluster_compares_as_one_machine_does(commands, three, folder, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "out"
    code, _, errors_alone = commands.run("evaluate", *_comparison(folder, alone))
    assert code == 2
    own = (*_comparison(folder, out), "--cluster", three.address)
    code, said, errors = commands.run("evaluate", *own)
    assert code == 2 and "2 worker(s) with 1 CPU(s) each" in said
    assert errors == errors_alone and "broken.png" in errors
    tables = [json.loads((one / "table.json").read_text()) for one in (out, alone)]
    assert _timeless(tables[0]) == _timeless(tables[1])


def _comparison(images, out):
    """Options of a short `evaluate`."""
    sizes = ("--score-size", "32", "--niqe-size", "32", "--frechet-size", "32", "--lr-size", "4")
    return ("--images", images, "--out", out, "--methods", "bicubic,csgm", "--steps", "4", *sizes)


@with_ray
@pytest.mark.slow
def test_auto_starts_a_cluster_of_this_machine(commands, folder, tmp_path):
    with tempfile.TemporaryDirectory() as short:  # where Ray notes the clusters that it starts
        own = {"RAY_TMPDIR": short, "RAY_ADDRESS": "", "RAY_AUTH_TOKEN": "a" * 64}
        code, said, _ = commands.run(
            "upsample", folder, "--out", tmp_path / "out", *QUICK, "--cluster", "auto", **own
        )
    assert code == 2 and "a cluster of 1 machine(s): 1 worker(s)" in said
    assert [*_entries(tmp_path / "out").values()].count("ok") == 6


@with_ray
@pytest.mark.slow
def test_auto_obeys_ray_address_and_gives_the_token(commands, folder, tmp_path):
    token = {"RAY_AUTH_TOKEN": "a" * 64}
    own = {**commands.environment, **token, "RAY_AUTH_MODE": "token"}
    options = (folder, "--out", tmp_path / "out", *QUICK, "--cluster", "auto")
    with ray_cluster.running(own) as locked:
        there = {"RAY_ADDRESS": locked.address}
        refused, _, errors = commands.run("upsample", *options, **there, RAY_AUTH_TOKEN="b" * 64)
        note = tmp_path / "ray" / "ray_current_cluster"
        note.parent.mkdir()
        note.write_text(locked.address)
        found = {"RAY_ADDRESS": "", "RAY_TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
        unnamed, _, more = commands.run("upsample", *options, **found)
        code, said, _ = commands.run("upsample", *options, **there, **token)
    assert refused == unnamed == 2
    for lines in (errors, more):
        assert "asks for a token that is not here" in lines and len(lines.splitlines()) == 1
    assert f"this machine's cluster, {locked.address}" in more
    assert code == 2 and "a cluster of 3 machine(s)" in said
    assert [*_entries(tmp_path / "out").values()].count("ok") == 6


@with_ray
@pytest.mark.slow
def test_an_input_that_kills_its_workers_is_reported(commands, three, folder, tmp_path):
    out, code = tmp_path / "out", "import poisoned, sys; sys.exit(poisoned.run())"
    _photo(folder / "poison.png", 9)
    code, _, errors = commands.run(
        "", folder, "--out", out, *QUICK, "--cluster", three.address, code=code
    )
    assert code == 2
    assert "poison.png: its worker died 3 times; left out" in errors
    found = _entries(out)
    assert found.pop("poison") == found.pop("broken") == "failed"
    assert set(found.values()) == {"ok"} and len(found) == 6


def _fill(commands, folder, name):
    """Copy a folder into the bucket."""
    code = (
        "import fsspec; fs = fsspec.filesystem('s3'); "
        f"fs.put({str(folder)!r} + '/', 'faces/{name}/', recursive=True)"
    )
    assert commands.run("", code=code)[0] == 0


@with_ray
@with_buckets
@pytest.mark.slow
def test_a_bucket_is_read_and_written_by_a_cluster(commands, three, server, folder):
    _fill(commands, folder, "originals")
    own = _comparison("s3://faces/originals", "s3://faces/table")
    code, said, _ = commands.run("evaluate", *own, "--cluster", three.address)
    assert code == 2 and "| csgm | 4 |" in said and "[14/14]" in said
    puts = [key for key in server.asked("PUT") if key.startswith("faces/table/")]
    assert len(puts) == len(set(puts))
    assert sum(key.startswith("faces/table/rows/") for key in puts) == 6 * 3
    for i in range(6):
        picture = puts.index(f"faces/table/images/csgm/face{i}.png_0.png")
        assert picture < puts.index(f"faces/table/features/csgm/face{i}.png.npz")
    assert {f"faces/table/{name}" for name in ("table.md", "table.json", "rows.csv")} <= {*puts}


@with_buckets
def test_a_bucket_gets_each_file_once_and_the_report_last(commands, server, folder):
    _fill(commands, folder, "in")
    own = ("s3://faces/in", "--out", "s3://faces/out", *QUICK)
    code, _, errors = commands.run("upsample", *own)
    assert code == 2 and "s3://faces/in/broken.png: not an image" in errors
    puts = [key for key in server.asked("PUT") if key.startswith("faces/out/")]
    again, said, _ = commands.run("upsample", *own, "--resume")
    assert again == 2 and said.count("already done") == 6
    assert len(puts) == len(set(puts))
    for i in range(6):
        own = [key.rpartition("/")[2] for key in puts if f"/face{i}/" in key]
        assert sorted(own[:-1]) == ["grid.png", "solution_0.png", "solution_1.png", "solutions.npz"]
        assert own[-1] == "report.json"
    assert puts[-1] == "faces/out/summary.json"


# --- what may be killed


def _run_and_kill(commands, options, deeds):
    """(exit code, events) of a command; deeds: number of results -> what is done after so many."""
    process, events, results = commands.start("upsample", *options, "--json"), [], 0
    assert process.stdout is not None
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == "result":
            results += 1
            deeds.get(results, lambda _: None)(process)
    process.communicate()
    assert set(deeds) <= set(range(results + 1))  # all were done
    return process.returncode, events


def _named(events, kind):
    return [Path(event["input"]).stem for event in events if event["event"] == kind]


def _told_of(events):
    """Names of the photos that were reported; a result never twice.

    A worker may die between a result and its report; who is given the photo then finds it done.
    """
    results = _named(events, "result")
    assert len(results) == len(set(results))
    return {*results, *_named(events, "skip"), *_named(events, "error")}


def _finished(out):
    """file -> when it was written, of the reports of finished photos."""
    return {path: path.stat().st_mtime_ns for path in out.glob("*/report.json")}


@pytest.fixture
def twelve(folder):
    """Twelve photos and a file that is none, and the statuses that they shall have."""
    for i in range(12):
        _photo(folder / f"face{i}.png", i)
    return folder, {**{f"face{i}": "ok" for i in range(12)}, "broken": "failed"}


LONGER = ("--method", "csgm", "--steps", "100", "--solutions", "1", "--batch", "1")


@with_ray
@pytest.mark.slow
def test_a_worker_may_be_killed(commands, three, twelve, tmp_path):
    folder, statuses = twelve
    options = (folder, "--out", tmp_path / "out", *LONGER, "--cluster", three.address)
    deeds = {2: lambda _: three.kill("worker"), 4: lambda _: three.kill("worker")}
    code, events = _run_and_kill(commands, options, deeds)
    assert code == 2 and _told_of(events) == set(statuses)
    assert _entries(tmp_path / "out") == statuses


@with_ray
@pytest.mark.slow
def test_the_command_may_be_killed(commands, three, twelve, tmp_path):
    folder, statuses = twelve
    out = tmp_path / "out"
    options = (folder, "--out", out, *LONGER, "--cluster", three.address)
    code, events = _run_and_kill(commands, options, {3: lambda process: process.kill()})
    before = _finished(out)
    assert code == -signal.SIGKILL and len(before) >= 3
    code, more = _run_and_kill(commands, options, {})
    assert code == 2 and _entries(out) == statuses
    assert before.items() <= _finished(out).items()  # what was finished is not done again
    assert _told_of([*events, *more]) == _told_of(more) == set(statuses)


@with_ray
@pytest.mark.slow
def test_a_worker_its_machine_and_the_command_may_be_killed(commands, twelve, tmp_path):
    folder, statuses = twelve
    out = tmp_path / "out"
    with ray_cluster.running(commands.environment) as doomed:
        options = (folder, "--out", out, *LONGER, "--cluster", doomed.address)
        deeds = {
            2: lambda _: doomed.kill("worker"),
            4: lambda _: doomed.kill("machine"),
            6: lambda process: process.kill(),
        }
        code, events = _run_and_kill(commands, options, deeds)
        before = _finished(out)
        assert code == -signal.SIGKILL
        code, more = _run_and_kill(commands, options, {})
    assert code == 2 and _entries(out) == statuses
    assert before.items() <= _finished(out).items()
    assert _told_of([*events, *more]) == _told_of(more) == set(statuses)
    assert len(_solutions(out)) == 12
