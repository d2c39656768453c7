"""Hostile command lines of `evaluate`: originals, names, masks, references, options, kept files."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import weight_files as wf
from corpus_cases import (
    NUMBERS,
    SPECS,
    Arguments,
    Case,
    Files,
    damaged_picture,
    divisions,
    file_in,
    odd_pictures,
    out_is,
    sound_pictures,
)
from corpus_pictures import saved, smooth, with_damage

LR = 8  # px of the low-resolution images
SIZES = ("--lr-size", str(LR), "--score-size", "64", "--niqe-size", "64", "--frechet-size", "32")


def evaluated(files: Files, *images: Any, options: tuple[Any, ...] = ()) -> Arguments:
    """The command on some originals; `options` come last and count most."""
    own = ("--generator", files.generator, "--prior", files.prior, "--methods", "bicubic")
    given: tuple[Any, ...] = ("--images", *(images or [files.original]))
    return [*given, *own, *SIZES, "--out", files.folder / "out", "--quiet", *options]


def _original(seed: int = 0) -> bytes:
    return saved(smooth("RGB").resize((24, 24)).rotate(90 * seed), "PNG")


def _folder(files: Files, pictures: dict[str, bytes]) -> Path:
    folder = files.folder / "in"
    for name, data in pictures.items():
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


# --- Originals --------------------------------------------------------------------------------


def _on(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    return evaluated(files, file_in(files, name, data()))


def _beside(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    """A folder of an odd file and a sound one."""
    return evaluated(files, _folder(files, {name: data(), "sound.png": _original()}))


def _original_cases() -> Iterator[Case]:
    for name, (file, data) in odd_pictures().items():
        yield Case(f"evaluate: {name}", "evaluate", partial(_on, file, data))
    for i, name in enumerate(sound_pictures()):
        data = partial(damaged_picture, name, 100 + i)
        yield Case(f"evaluate: {name}, damage {100 + i}", "evaluate", partial(_on, name, data))
    for name in ("empty", "noise", "1x1", "30000x1", "claims 50000x50000", "text called png"):
        file, data = odd_pictures()[name]
        yield Case(f"evaluate: a sound one and {name}", "evaluate", partial(_beside, file, data))


# --- Names ------------------------------------------------------------------------------------


def _named(name: bytes, files: Files) -> Arguments:
    folder = _folder(files, {os.fsdecode(name): _original()})
    return evaluated(files, folder / os.fsdecode(name), options=("--solutions", "2"))


def _given(text: str, files: Files) -> Arguments:
    return evaluated(files, text.replace("FOLDER", str(files.folder)))


def _twice(files: Files) -> Arguments:
    return evaluated(files, files.original, files.original)


def _two_of_a_name(files: Files) -> Arguments:
    folder = _folder(files, {"a/x\x1b.png": _original(), "b/x\x1b.png": _original(1)})
    return evaluated(files, folder / "a", folder / "b")


def _and_nothing(files: Files) -> Arguments:
    return evaluated(files, files.original, files.folder / "none.png")


def _only_others(files: Files) -> Arguments:
    return evaluated(files, _folder(files, {"a.heic": b"x", "b.mov": b"y", "._c.png": b"z"}))


def _with_others(files: Files) -> Arguments:
    others = {"a.heic": b"x", "._c.png": b"z", ".hidden.png": b"", "notes.txt": b"hello"}
    return evaluated(files, _folder(files, {**others, "sound.png": _original()}))


def _with_odd_entries(files: Files) -> Arguments:
    folder = _folder(files, {"sound.png": _original()})
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "again").symlink_to(folder)
    return evaluated(files, folder)


def _pipe(option: str, files: Files) -> Arguments:
    pipe = files.folder / "pipe.png"
    os.mkfifo(pipe)
    return evaluated(files, _two(files), options=(option, pipe))


def _loop(option: str, files: Files) -> Arguments:
    link = files.folder / "loop.png"
    link.symlink_to(link)
    return evaluated(files, options=(option, link))


def _name_cases() -> Iterator[Case]:
    for name in (
        b"...png", b"table.md", b"rows.jsonl", b"caf\xe9.png", b"two\nlines.png", b"|a|b|.png",
        b"x" * 251 + b".png", b"-rf.png", b"*.png", b"a b\t.png", "\u202egnp.png".encode(),
        b"\x1b[31m.png", b"%s%n{x}.png", b"original.png", b"\\.png", b"a,b\"c'.png",
    ):  # fmt: skip
        yield Case(f"evaluate: called {name!r:.40}", "evaluate", partial(_named, name), (0,))
    for text in (
        "", " ", "/dev/null", "/dev/zero", "FOLDER/none.png", "FOLDER/*.bmp", "x" * 5000,
        "FOLDER/" + "a/" * 2000, "http://example.org/a.png", "[", "two\nlines", "--", "-1",
    ):  # fmt: skip
        yield Case(f"evaluate: images {text[:30]!r}", "evaluate", partial(_given, text), (2,))
    for name, make, end in (
        ("a file twice", _twice, 0),
        ("two of a name", _two_of_a_name, 2),
        ("a file and none", _and_nothing, 2),
        ("only others", _only_others, 2),
        ("others too", _with_others, 0),
        ("odd entries", _with_odd_entries, 0),
    ):
        yield Case(f"evaluate: {name}", "evaluate", make, (end,))
    for option in ("--images", "--generator", "--noise-mask", "--reference", "--inception"):
        yield Case(f"evaluate: {option} is a pipe", "evaluate", partial(_pipe, option), (2,))
        yield Case(f"evaluate: {option} loops", "evaluate", partial(_loop, option), (2,))
    for kind in ("a file", "a loop", "long", "of long parts", "a device"):
        make = partial(_out_is, kind)
        yield Case(f"evaluate: --out is {kind}", "evaluate", make, (2,))


def _out_is(kind: str, files: Files) -> Arguments:
    return out_is(kind, files, evaluated(files))


# --- Masks ------------------------------------------------------------------------------------


def _masked(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    mask = file_in(files, f"mask-{name}", data())
    method = ("--methods", "csgm:noise_std=0.1", "--steps", "2")
    return evaluated(files, options=(*method, "--noise-mask", mask))


def _hole(name: str, data: Callable[[], bytes], files: Files) -> Arguments:
    spec = f"bicubic({LR})|mask({file_in(files, f'mask-{name}', data())})"
    return evaluated(files, options=("--degradation", spec, "--search-degradation", "truth"))


def _mask_cases() -> Iterator[Case]:
    for name in ("empty", "noise", "1x1", "1x30000", "claims 50000x50000", "animated gif",
                 "text called png", "claims 0x5"):  # fmt: skip
        file, data = odd_pictures()[name]
        yield Case(f"evaluate: mask {name}", "evaluate", partial(_masked, file, data))
        yield Case(f"evaluate: hole {name}", "evaluate", partial(_hole, file, data))


# --- References -------------------------------------------------------------------------------


def _two(files: Files) -> Path:
    return _folder(files, {"a.png": _original(), "b.png": _original(1)})


def _referred(pictures: dict[str, bytes], files: Files) -> Arguments:
    """A folder to compare with."""
    folder = files.folder / "reference"
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    return evaluated(files, _two(files), options=("--reference", folder))


def _sheet(tile: str, data: Callable[[], bytes], files: Files) -> Arguments:
    sheet = file_in(files, "sheet.png", data())
    options = ("--reference", sheet, "--reference-tile", tile)
    return evaluated(files, _two(files), options=options)


def _reference_is(text: str, files: Files) -> Arguments:
    return evaluated(files, _two(files), options=("--reference", text))


def _inception_is(text: str, files: Files) -> Arguments:
    return evaluated(files, options=("--inception", text))


def _inception(name: str, data: Callable[[Files], bytes], files: Files) -> Arguments:
    return _inception_is(str(file_in(files, name, data(files))), files)


def _false_inception(**arrays: Any) -> bytes:
    header = {"stylesr_jax": json.dumps({"kind": "inception"})}
    return safetensors.numpy.save(arrays, header)


def _reference_cases() -> Iterator[Case]:
    sound = {"a.png": _original(2), "b.png": _original(3)}
    odd = {name: data() for name, (_, data) in odd_pictures().items() if name in ("noise", "1x1")}
    for name, pictures, end in (
        ("sound", sound, 0),
        ("empty", {}, 2),
        ("of one", {"a.png": _original()}, 2),
        ("with a broken one", {**sound, "c.png": odd["noise"]}, 2),
        ("with a pixel", {**sound, "c.png": odd["1x1"]}, 0),
        ("of texts", {"a.txt": b"x", "b.txt": b"y"}, 2),
        ("of heic", {"a.heic": b"x", "b.heic": b"y"}, 2),
    ):
        make = partial(_referred, pictures)
        yield Case(f"evaluate: reference {name}", "evaluate", make, (end,))
    for name, tile, data in (
        ("of noise", "16", lambda: odd["noise"]),
        ("of nothing", "16", bytes),
        ("of one tile", "4096", _original),
        ("of little tiles", "16", lambda: saved(smooth("RGB"), "PNG")),
    ):
        make = partial(_sheet, tile, data)
        yield Case(f"evaluate: reference sheet {name}", "evaluate", make)
    for text in ("", "none", "x" * 5000, "/dev/null", "/dev/zero", "http://example.org/a",
                 "two\nlines"):  # fmt: skip
        make = partial(_reference_is, text)
        yield Case(f"evaluate: reference {text[:20]!r}", "evaluate", make, (2,))
        if not text.startswith("http"):  # which is an address of Inception's weights
            make = partial(_inception_is, text)
            yield Case(f"evaluate: inception {text[:20]!r}", "evaluate", make, (2,))
    for name, data in {
        "empty.pth": lambda _: b"",
        "page.pth": lambda _: b"<html>",
        "picture.pth": lambda _: _original(),
        "nothing.pth": lambda _: wf.torch_save_zip({}),
        "other.pth": lambda _: wf.torch_save_zip({"a": np.zeros(3, np.float32)}),
        "pickle.pth": lambda _: b"N.",
        "generator.safetensors": lambda files: files.generator.read_bytes(),
        "bare.safetensors": lambda _: safetensors.numpy.save({"a": np.zeros(3)}),
        "arrays.safetensors": lambda _: _false_inception(a=np.zeros(3)),
        "no-bias.safetensors": lambda _: _false_inception(**{"a/kernel": np.zeros(3)}),
        "kernels.safetensors": lambda _: _false_inception(**{"a/kernel/b": np.zeros(3)}),
        "cut.safetensors": lambda files: files.generator.read_bytes()[:300],
    }.items():
        make = partial(_inception, name, data)
        yield Case(f"evaluate: inception {name}", "evaluate", make, (2,))


# --- Options ----------------------------------------------------------------------------------

METHODS = (
    "", ",", "bicubic,", ",bicubic", "@", "=", "=bicubic", "bicubic=", "a=b=bicubic", "bicubic@",
    "bicubic@magic", "bicubic:", "bicubic:steps", "bicubic:steps=3", "csgm:steps=", "csgm:steps=-1",
    "csgm:steps=nan", "csgm:steps=0", "csgm:steps=" + "9" * 400, "csgm:learning_rate=inf",
    "csgm:learning_rate=nan", "csgm:nonsense=1", "csgm:fidelity=2", "csgm:noise_std=nan",
    "x" * 5000, "x" * 5000 + "=bicubic", "two\nlines=bicubic", "../../up=bicubic", "..=bicubic",
    "/=bicubic", "a|b=bicubic", "original=bicubic", "original=csgm,bicubic", "a=bicubic,a=bicubic",
    "a/b=bicubic,a:b=bicubic", "\x1b[31m=bicubic", "caf\udce9=bicubic", " bicubic ",
    "bicubic," * 300, "csgm" + ":a=1" * 500, "csgm:inject_noise=0.1:inject_layers=99",
    "csgm:inject_noise=0.1:inject_layers=" + "9" * 50, "csgm:diversity=nan", "csgm:diversity=-1",
    "csgm:steps=2,bicubic,magic",
)  # fmt: skip
SETS = (
    "", "=", "csgm", "csgm.=", "csgm.steps", "csgm.steps=", "csgm.steps=-1", "csgm.nonsense=1",
    "csgm.learning_rate=nan", "csgm.steps=" + "9" * 400, "bicubic.a=1", "csgm.a\nb=1",
)  # fmt: skip
FIDELITIES = ("", "nan", "inf", "-1", "2", "sigma=", "sigma=nan", "sigma=-1", "sigma=1e9", "x=1")


def _with_option(option: str, text: str, files: Files) -> Arguments:
    return evaluated(files, options=(f"{option}={text}",))


def _with_options(options: tuple[str, ...], files: Files) -> Arguments:
    return evaluated(files, options=options)


def _with_methods(text: str, files: Files) -> Arguments:
    return evaluated(files, options=("--methods", text, "--steps", "2"))


def _with_set(text: str, files: Files) -> Arguments:
    return evaluated(files, options=("--methods", "csgm", "--steps", "2", f"--set={text}"))


def _truth(spec: str, files: Files) -> Arguments:
    return evaluated(files, options=("--degradation", spec, "--search-degradation", "truth"))


def _option_cases() -> Iterator[Case]:
    for text in METHODS:
        make = partial(_with_methods, text)
        yield Case(f"evaluate: methods {text[:40]!r}", "evaluate", make)
    for text in SETS:
        yield Case(f"evaluate: set {text[:24]!r}", "evaluate", partial(_with_set, text))
    for spec in SPECS:
        yield Case(f"evaluate: degradation {spec[:24]!r}", "evaluate", partial(_truth, spec))
    for option in (
        "--limit", "--lr-size", "--evaluations", "--solutions", "--seed", "--score-size",
        "--niqe-size", "--frechet-size", "--reference-tile", "--figure-images", "--batch",
        "--devices", "--class",
    ):  # fmt: skip
        for text in NUMBERS:
            make = partial(_with_option, option, text)
            yield Case(f"evaluate: {option} {text[:12]!r}", "evaluate", make)
    for text in FIDELITIES:
        make = partial(_with_option, "--fidelity", text)
        yield Case(f"evaluate: --fidelity {text[:12]!r}", "evaluate", make, (2,))
    for name, options in divisions().items():
        make = partial(_with_options, options)
        yield Case(f"evaluate: division {name}", "evaluate", make, (2,))
    for option in ("--preset", "--search-degradation", "--nonsense", "--own-steps"):
        for text in ("", "magic", "two\nlines", "x" * 3000):
            make = partial(_with_option, option, text)
            yield Case(f"evaluate: {option} {text[:12]!r}", "evaluate", make, (2,))


# --- What an earlier run left -----------------------------------------------------------------

Change = Callable[[Path], Any]


def _kept(change: Change, files: Files) -> Arguments:
    """The command again on a folder of results that something has changed."""
    out = files.folder / "out"
    shutil.copytree(files.evaluation / "out", out)
    change(out)
    return evaluated(files, _two(files), options=("--solutions", "2"))


def _rewritten(pattern: str, data: Callable[[bytes], bytes]) -> Change:
    def change(out: Path) -> None:
        paths = sorted(out.glob(pattern))
        assert paths
        for path in paths:
            path.write_bytes(data(path.read_bytes()))

    return change


def _rows(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Rows changed one by one; a value that is returned replaces the row."""

    def data(lines: bytes) -> bytes:
        rows = []
        for line in lines.splitlines():
            row = json.loads(line)
            rows.append(change(row) or row)
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    return _rewritten("rows.jsonl", data)


def _damaged_rows(seed: int) -> Change:
    return _rewritten("rows.jsonl", lambda data: with_damage(data, np.random.default_rng(seed)))


def _damaged_features(seed: int) -> Change:
    return _rewritten("features/*/*.npz", lambda d: with_damage(d, np.random.default_rng(seed)))


def _damaged_pictures(seed: int) -> Change:
    return _rewritten("images/*/*.png", lambda d: with_damage(d, np.random.default_rng(seed)))


def _as_folder(name: str) -> Change:
    def change(out: Path) -> None:
        (out / name).unlink()
        (out / name / "inner").mkdir(parents=True)

    return change


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _score_is(value: Any) -> Change:
    return _rows(lambda row: [one.update(lpips_vgg=value, niqe=value) for one in row["solutions"]])


ROWS: dict[str, Change] = {
    "empty": _rewritten("rows.jsonl", lambda _: b""),
    "zeros": _rewritten("rows.jsonl", lambda d: bytes(len(d))),
    "cut off": _rewritten("rows.jsonl", lambda d: d[:-40]),
    "without a newline": _rewritten("rows.jsonl", lambda d: d[:-1]),
    "twice": _rewritten("rows.jsonl", lambda d: d + d),
    "nested deeply": _rewritten("rows.jsonl", lambda d: b"[" * 100_000 + b"\n" + d),
    "not UTF-8": _rewritten("rows.jsonl", lambda d: b"\xff\xfe\n" + d),
    "of other values": _rewritten("rows.jsonl", lambda d: b'3\nnull\n"a"\n[1]\n{}\n' + d),
    "of huge numbers": _rewritten("rows.jsonl", lambda d: b"9" * 9000 + b"\n" + d),
    "status gone": _rows(lambda row: row.pop("status") and None),
    "status is a list": _rows(lambda row: row.update(status=[1])),
    "status is failed": _rows(lambda row: row.update(status="failed")),
    "fingerprint is a list": _rows(lambda row: row.update(fingerprint=[1])),
    "fingerprint is null": _rows(lambda row: row.update(fingerprint=None)),
    "solutions gone": _rows(lambda row: row.pop("solutions") and None),
    "solutions is a number": _rows(lambda row: row.update(solutions=3)),
    "solutions is empty": _rows(lambda row: row.update(solutions=[])),
    "solutions of numbers": _rows(lambda row: row.update(solutions=[1, 2])),
    "a solution less": _rows(lambda row: row["solutions"].pop() and None),
    "label gone": _rows(lambda row: row.pop("label") and None),
    "diversity is a text": _rows(lambda row: row.update(diversity_l1="a")),
    "scores are texts": _score_is("a"),
    "scores are lists": _score_is([1]),
    "scores are NaN": _score_is(float("nan")),
    "scores are gone": _rows(lambda row: [one.clear() for one in row["solutions"]]),
    "is a folder": _as_folder("rows.jsonl"),
}
KEPT: dict[str, Change] = {
    "features empty": _rewritten("features/*/*.npz", lambda _: b""),
    "features of objects": _rewritten(
        "features/*/*.npz", lambda _: _npz(frechet_vgg16=np.array([{}], object))
    ),
    "features of nothing": _rewritten("features/*/*.npz", lambda _: _npz()),
    "features of another shape": _rewritten(
        "features/*/*.npz", lambda _: _npz(frechet_vgg16=np.zeros((2, 3)))
    ),
    "features of NaN": _rewritten(
        "features/*/*.npz", lambda _: _npz(frechet_vgg16=np.full((2, 512), np.nan, np.float32))
    ),
    "pictures empty": _rewritten("images/*/*.png", lambda _: b""),
    "pictures of noise": _rewritten("images/*/*.png", lambda d: os.urandom(len(d))),
    "table is a folder": _as_folder("table.json"),
    "page is a folder": _as_folder("table.md"),
}


def _referred_again(change: Change, files: Files) -> Arguments:
    arguments = _kept(change, files)
    reference = files.folder / "reference"
    reference.mkdir()
    for i in range(2):
        (reference / f"{i}.png").write_bytes(_original(2 + i))
    return [*arguments, "--reference", reference]


def _kept_cases() -> Iterator[Case]:
    changes = {f"rows {name}": change for name, change in ROWS.items()} | KEPT
    changes |= {f"rows, damage {seed}": _damaged_rows(seed) for seed in range(6)}
    for name, change in changes.items():
        yield Case(f"evaluate: kept {name}", "evaluate", partial(_kept, change))
    damaged = {f"features, damage {seed}": _damaged_features(seed) for seed in range(6)}
    damaged |= {f"pictures, damage {seed}": _damaged_pictures(seed) for seed in range(6)}
    for name, change in {**damaged, **KEPT}.items():
        make = partial(_referred_again, change)
        yield Case(f"evaluate: kept {name}, and a reference", "evaluate", make)


def evaluate_cases() -> list[Case]:
    """Every case of `evaluate`; the same at each call."""
    makers = (
        _original_cases,
        _name_cases,
        _mask_cases,
        _reference_cases,
        _option_cases,
        _kept_cases,
    )
    return [case for make in makers for case in make()]


def sound_evaluation(files: Files) -> Arguments:
    """What makes the results that `Files.evaluation` holds."""
    return evaluated(files, _two(files), options=("--solutions", "2"))
