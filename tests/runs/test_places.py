"""Where results go, whatever their inputs are called, and what killed runs leave behind."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stylesr_jax.errors import UserError
from stylesr_jax.runs import places
from stylesr_jax.runs.photos import PhotosJob, PhotosPlan
from stylesr_jax.runs.places import distinct, safe_stem, short_name
from stylesr_jax.runs.plan import variant
from stylesr_jax.runs.worker import Source
from stylesr_jax.runtime.files import atomic_path, remove_leftovers
from where import ROOT


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("face.png", "face"),
        ("a.b.png", "a.b"),
        ("...png", "image"),
        ("..png", "image"),
        (".claims.png", "claims"),
        ("face. .png", "face"),
        (os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"caf\xe9")),
        ("x" * 251 + ".png", "x" * 200),
        ("é" * 125 + ".png", "é" * 100),
    ],
)
def test_stems_are_names_of_folders(name, stem):
    assert safe_stem(Path("in") / name) == stem


def test_long_names_stay_apart():
    long = [f"{'x' * 250}{i}.png" for i in range(2)]
    short = [short_name(name) for name in long]
    assert len(set(short)) == 2 and all(len(name) < 220 for name in short)
    assert short_name("face.png") == "face.png"
    hidden = [short_name(name) for name in (".", "..", "...png", "..png", ".png")]
    assert len(set(hidden)) == 5 and not [name for name in hidden if name.startswith(".")]


def test_a_file_counts_once_however_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    Path("b.png").touch()
    Path("link.png").symlink_to("a.png")
    named = [Path("b.png"), Path("a.png"), tmp_path / "a.png", Path("link.png"), Path("./b.png")]
    assert distinct(named) == [Path("b.png"), Path("a.png")]


# --- names of results -----------------------------------------------------------------------


def _source(path, content):
    return Source(Path(path), hashlib.sha256(content.encode()).hexdigest())


@pytest.fixture
def job(tiny, tmp_path):
    """A run of these photos; its results are finished by `finish`."""

    def make(*sources, **options):
        plan = PhotosPlan(
            photos=tuple(source.path for source in sources),
            variants=(variant("bicubic"),),
            out=tmp_path,
            generator=tiny,
            generator_name="tiny",
            lr_size=8,
            **options,
        )
        return PhotosJob(plan, say=print, error=print)

    return make


def _finish(job, source):
    place = job.plan.place_of(job.name(source))
    place.report.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        **job.facts(source),
        "status": "ok",
        "solutions": [{"file": "0.png"}] * job.plan.solutions,
    }
    place.report.write_text(json.dumps(facts))
    return job.name(source)


A, B = _source("a/face.png", "one"), _source("b/face.png", "other")


def _hashed(source):
    return f"face-{source.sha256[:8]}"


def test_photos_of_one_stem_have_folders_of_their_own(job):
    run = job(A, B)
    assert (run.name(B), run.name(A)) == (_hashed(B), "face")  # whoever is read first


def test_a_photo_that_is_added_later_moves_no_other(job):
    assert _finish(job(B), B) == "face"
    run = job(A, B)
    assert (run.name(A), run.name(B)) == (_hashed(A), "face")
    assert _finish(run, A) == _hashed(A)
    assert job(A).name(A) == _hashed(A)  # alone again


def test_another_run_overwrites_nothing(job):
    names = [_finish(job(A, seed=seed), A) for seed in range(4)]
    assert names[:2] == ["face", _hashed(A)] and len(set(names)) == 4
    assert [job(A, seed=seed).name(A) for seed in range(4)] == names


def test_what_is_no_result_is_not_written_into(job, tmp_path):
    (tmp_path / "face").write_text("a file of the user's")
    assert job(A).name(A) == _hashed(A)
    for stem in ("summary.json", "summary-0-of-8.json"):
        summary = _source(f"{stem}.png", "s")
        assert job(summary).name(summary) == f"{stem}-{summary.sha256[:8]}"


def test_an_unfinished_folder_is_taken(job, tmp_path):
    (tmp_path / "face").mkdir()
    (tmp_path / "face" / "solution_0.png").touch()
    assert job(A).name(A) == "face"


def test_names_that_some_systems_do_not_tell_apart_share_no_folder(job):
    upper = _source("b/FACE.png", "other")
    run = job(A, upper)
    assert run.name(A) == "face" and run.name(upper) == f"FACE-{upper.sha256[:8]}"


def test_a_copy_of_the_same_name_is_no_second_work(job):
    copy = Source(Path("b/face.png"), A.sha256)
    run = job(A, copy)
    assert not run.is_done(A, run.plan.variant) and run.is_done(copy, run.plan.variant)


@pytest.mark.parametrize("options", [{"flat": True}, {"only_images": True}])
def test_results_without_folders_or_reports_are_known_again(job, options):
    assert _finish(job(B, **options), B) == "face"
    run = job(A, B, resume=True, **options)
    assert (run.name(A), run.name(B)) == (_hashed(A), "face")
    assert run.is_done(B, run.plan.variant) and not run.is_done(A, run.plan.variant)


# --- leftovers ------------------------------------------------------------------------------


def _leave(folder, *, machine=None):
    """A temporary file of a process that is killed; its path."""
    script = (
        "import sys; from pathlib import Path; from stylesr_jax.runtime import files\n"
        f"if {machine!r}: files._MACHINE = {machine!r}\n"
        "with files.atomic_path(sys.argv[1]) as path:\n"
        "    print(path, flush=True); import os; os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, str(folder / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return Path(done.stdout.strip())


def test_what_killed_processes_leave_is_removed(tmp_path):
    left = [_leave(tmp_path), _leave(tmp_path / "photo")]
    assert all(path.is_file() for path in left)
    (tmp_path / ".hidden-file").touch()
    remove_leftovers(tmp_path)
    assert [path.exists() for path in left] == [False, True]
    remove_leftovers(tmp_path, depth=1)
    assert not left[1].exists() and (tmp_path / ".hidden-file").exists()


def test_what_is_still_being_written_stays(tmp_path):
    with atomic_path(tmp_path / "a.json") as path:
        path.write_text("half")
        remove_leftovers(tmp_path)
        assert path.exists()


def test_files_of_other_machines_go_after_a_day(tmp_path):
    other = "0" * 8
    assert other != hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    path = _leave(tmp_path, machine=other)
    remove_leftovers(tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - 2 * 86_400,) * 2)
    remove_leftovers(tmp_path)
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        places.make_ready(tmp_path / "file" / "out", depth=1)
