"""Photos: for each, a folder of solutions, a report, and latents that redraw the solutions."""

import hashlib
import json
import os
import platform
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stylesr_jax.errors import UserError, in_a_line
from stylesr_jax.faces.align import Face
from stylesr_jax.images.decoding import Picture, decode
from stylesr_jax.images.kinds import printable
from stylesr_jax.metrics.image import scores
from stylesr_jax.metrics.lpips import load_features
from stylesr_jax.runs import pace
from stylesr_jax.runs.alignment import Alignment, note_of_frame
from stylesr_jax.runs.folder import Format, Place, place_in, write_result
from stylesr_jax.runs.pasting import Photo, paste, photo_of
from stylesr_jax.runs.places import (
    SUMMARY,
    candidates,
    firsts_of_stem,
    is_reserved,
    safe_stem,
    same_name,
)
from stylesr_jax.runs.plan import Plan, Variant
from stylesr_jax.runs.records import content_key, write_json
from stylesr_jax.runs.subjects import COMPARED, face_of, whole
from stylesr_jax.runs.worker import Job, Source, Subject
from stylesr_jax.runtime.machine import versions
from stylesr_jax.runtime.program_cache import kept_jit
from stylesr_jax.solver.observation import Observation
from stylesr_jax.solver.result import Result, Solution

NOTICE = "These faces are imagined; they do not identify anyone."

_score = kept_jit(scores)
Say = Callable[..., None]  # (event, text, **values)


@dataclass(frozen=True, kw_only=True)
class PhotosPlan(Plan):
    """What is made of a command's photos, by one variant.

    Attributes:
        photos: their files.
        generator_name: as the user gave it.
        alignment: how faces are chosen.
        paste_back: whether solutions of faces are put back into their photo.
        scale: how many times the photo is enlarged then; None: as its largest face needs.
        noise_mask_sha256: of the mask's file, or None.
        resume: leave out those of which `out` holds a whole result.
        uncertainty: write each pixel's deviation over solutions.
        only_images: write the solutions alone.
        format: of the solutions: png, jpg or webp.
        flat: write all into `out`, names begin with the photo's.
    """

    photos: tuple[Path, ...]
    generator_name: str
    alignment: Alignment = field(default_factory=Alignment)
    paste_back: bool = False
    scale: int | None = None
    noise_mask_sha256: str | None = None
    resume: bool = False
    uncertainty: bool = False
    only_images: bool = False
    format: Format = "png"
    flat: bool = False

    @property
    def variant(self) -> Variant:
        """The one that searches."""
        (variant,) = self.variants
        return variant

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides all photos' results, as their reports have it."""
        return {
            "method": self.variant.method.name,
            "settings": self.variant.settings,
            "seed": self.seed,
            "noise_mask_sha256": self.noise_mask_sha256,
            "input_noise_std": self.noise_std,
            "lr_size": self.lr_size,
            "degradation": self.degradation_identity,
            "search_degradation": "truth" if self.truth else "bicubic",
            "start_sha256": None if self.start is None else _sha256(self.start),
            "class": None,
            "prior_sha256": None,
            **self.identity,
        }

    @property
    def reports(self) -> Path:
        """Where reports lie that stand beside nothing, and the summary."""
        return self.out / ".reports" if self.only_images else self.out

    def place_of(self, name: str, face: int | None = None) -> Place:
        """Where a result of this name lies, or that of a face in the photo of this name."""
        part = "" if face is None else f"face_{face}"
        folder = self.out / name
        place = place_in(folder / part if part else folder)
        if self.flat:
            place = Place(self.out, self.out, f"{name}_", part and f"_{part}")
            place = replace(place, report=place.file("report.json"))
        if self.only_images:
            reports = self.reports / part if part else self.reports
            place = replace(place, report=reports / f"{name}.json")
        return place


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class PhotosJob(Job[PhotosPlan]):
    """Results of photos, as files."""

    voices = ("say", "error")

    def __init__(self, plan: PhotosPlan, *, say: Say, error: Say) -> None:
        super().__init__(plan)
        self.say, self.error = say, error
        self.failed: dict[Path, str] = {}
        self._entries: dict[Path, dict[str, Any]] = {}  # of the summary, from other processes
        self._first = firsts_of_stem(plan.photos)
        self._names: dict[Path, str] = {}
        self._owners: dict[tuple[str, str], Path] = {}  # (stem, content) -> first photo
        self._owner_of: dict[Path, Path] = {}
        self._photos: dict[Path, Photo] = {}  # those that have faces, while these are searched
        self._lock = threading.Lock()  # the search and the writing thread both finish photos

    # --- where

    def facts(self, source: Source) -> dict[str, Any]:
        """What decides a photo's result, as its report has it."""
        align = self.plan.alignment.identity(source.path)
        of_source = {"input_sha256": source.sha256, "align": align, "face": source.face}
        return {**of_source, **self.plan.facts}

    def name(self, source: Source) -> str:
        """The name of a photo's result, which is decided once."""
        if source.path not in self._names:
            self._names[source.path] = self._name(source)
        return self._names[source.path]

    def _name(self, source: Source) -> str:
        facts = {**self.facts(source), "face": None}
        names = list(candidates(source.path, source.sha256, content_key(facts)))
        for name in names[:-1]:
            report = _read_report(self.plan.place_of(name))
            if report is not None and _is_of(report, facts):
                return name
            may_be_new = name != names[0] or source.path in self._first
            if may_be_new and self._is_free(name, report):
                return name
        return names[-1]

    def _is_free(self, name: str, report: Mapping[str, Any] | None) -> bool:
        place = self.plan.place_of(name)
        taken = report is not None or is_reserved(name)
        return not taken and (self.plan.flat or not place.folder.is_file())

    def _owner(self, source: Source) -> Path:
        """The first photo of the same stem and content."""
        key = same_name(safe_stem(source.path)), source.sha256
        owner = self._owner_of[source.path] = self._owners.setdefault(key, source.path)
        return owner

    # --- what is left

    def is_done(self, source: Source, variant: Variant) -> bool:
        if self._owner(source) != source.path:
            return True
        return self.plan.resume and self.is_finished(source)

    def is_finished(self, source: Source) -> bool:
        """Whether there is a whole result of the same photo and settings."""
        report = _read_report(self._place(source))
        if report is None or not _is_of(report, self.facts(source)):
            return False
        try:
            return self._says_whole(report, source)
        except (AttributeError, LookupError, TypeError):  # something else has edited it
            return False

    def _says_whole(self, report: Mapping[str, Any], source: Source) -> bool:
        if report["status"] != "ok":
            return False
        if "faces" in report:
            return self._has_all(source, report)
        named = [str(solution["file"]) for solution in report["solutions"]]
        return len(named) == self.plan.solutions

    def _has_all(self, source: Source, report: Mapping[str, Any]) -> bool:
        """Whether a photo's report is of as many faces and enlarged photos as are wanted."""
        plan, faces = self.plan, report["faces"]
        if len(faces) != min(report["found"], plan.alignment.most or report["found"]):
            return False
        if plan.paste_back:
            pasted = report["paste_back"] or {"scale": 0, "files": []}
            wanted = plan.scale or pasted["scale"]
            if (pasted["scale"], len(pasted["files"])) != (wanted, plan.solutions):
                return False
        return all(self.is_finished(source.of_face(k)) for k in range(len(faces)))

    def _place(self, source: Source) -> Place:
        return self.plan.place_of(self.name(source), source.face)

    def skip(self, source: Source, variant: Variant) -> None:
        owner = self._owner(source)
        why = "already done"
        if owner != source.path:
            why = f"the same picture as {printable(owner)}"
        self.say("skip", f"{source.shown}: {why}", input=str(source.path))
        if source.face is not None:
            try:
                self._finish(source.of_face(None))
            except Exception as error:  # of one photo; the others are done
                self.fail(source.path, variant, error)

    # --- reading

    def prepare(self, source: Source, data: bytes) -> list[Subject]:
        picture = decode(data, printable(source.path))
        self._say_notes(source, picture.notes)
        try:
            faces = self.plan.alignment.faces(picture.pixels, source.path)
            if faces is None:
                subjects = [whole(self.plan, source, picture, self._doubts(picture))]
            else:
                photo = self._photo(picture, faces)
                subjects = [
                    face_of(self.plan, source, picture, number, face)
                    for number, face in enumerate(photo.faces)
                ]
                self._begin(source, photo)
        except UserError as error:
            raise UserError(f"{source.shown}: {error}") from error
        for subject in subjects:
            self._say_notes(subject, subject.notes[len(picture.notes) :])
        return subjects

    def _doubts(self, picture: Picture) -> list[str]:
        """What is to be said of a picture that is taken as it is."""
        notes = note_of_frame(picture.pixels) if self.plan.alignment.mode == "off" else []
        if self.plan.paste_back:
            notes.append("taken as it is: there is no photo to put its solutions back into")
        return notes

    def _photo(self, picture: Picture, faces: Sequence[Face]) -> Photo:
        plan = self.plan
        return photo_of(
            picture.pixels,
            faces,
            most=plan.alignment.most,
            resolution=plan.generator.resolution,
            scale=plan.scale,
            pasted=plan.paste_back,
        )

    def _say_notes(self, source: Source, notes: Iterable[str]) -> None:
        for note in notes:
            values = {"input": str(source.path), "face": source.face, "note": note}
            self.say("note", f"{source.shown}: {note}", **values)

    # --- photos with faces

    def _begin(self, source: Source, photo: Photo) -> None:
        """Say what faces there are, and note them beside their results."""
        faces = [source.of_face(k) for k in range(len(photo.faces))]
        unfinished = [face for face in faces if not self.is_done(face, self.plan.variant)]
        for stale in (
            *self._place(source).pictures(),
            *(self._place(face).report for face in unfinished),
        ):
            stale.unlink(missing_ok=True)
        self._photos[source.path] = photo
        self._write_photo(source, photo, "unfinished", None)
        sizes = [entry["observation_size"] for entry in photo.entries]
        solutions = len(unfinished) * self.plan.solutions
        seconds = pace.expected_seconds(self.plan, solutions)
        time = "" if seconds is None or not unfinished else f", about {duration(seconds)}"
        of = "" if len(faces) == photo.found else f" of {photo.found}"
        self.say(
            "faces",
            f"{source.shown}: {_count(len(faces), 'face')}{of}, {_listed(sizes)} px; "
            f"{_count(solutions, 'solution')} to search for{time}",
            input=str(source.path),
            found=photo.found,
            sizes=sizes,
            solutions=solutions,
            seconds_expected=seconds and round(seconds, 1),
        )

    def _write_photo(
        self, source: Source, photo: Photo, status: str, pasted: Mapping[str, Any] | None
    ) -> None:
        """The report of a photo with faces."""
        report = {
            **self.facts(source),
            "status": status,
            "input": str(source.path),
            "photo_size": photo.size,
            "found": photo.found,
            "faces": photo.entries,
            "paste_back": pasted,
            "host": platform.node(),
            "versions": versions(),
            "notice": NOTICE,
        }
        write_json(self._place(source).report, report)

    def _finish(self, source: Source) -> None:
        """Put the solutions back into their photo, if all its faces are done."""
        with self._lock:
            photo = self._photos.get(source.path)
            if photo is None:
                return
            faces = [source.of_face(k) for k in range(len(photo.faces))]
            if not all(map(self.is_finished, faces)):
                return
            del self._photos[source.path]
        pasted = None
        if photo.pixels is not None:
            pictures = [self._pictures(face) for face in faces]
            pasted = paste(photo, pictures, self._place(source), self.plan.format)
        self._write_photo(source, photo, "ok", pasted)
        if pasted is not None:
            self._say_pasted(source, pasted)

    def _pictures(self, source: Source) -> list[Path]:
        """The solutions of a face that is finished."""
        place = self._place(source)
        report = _read_report(place) or {"solutions": []}
        return [place.file(solution["file"]) for solution in report["solutions"]]

    def _say_pasted(self, source: Source, pasted: Mapping[str, Any]) -> None:
        folder, agreement = self._place(source).folder, pasted["downscaled_psnr"]
        self.say(
            "photo",
            f"{source.shown}: enlarged {pasted['scale']} times with its faces; downscaled it "
            f"matches the photo to {', '.join(f'{psnr:.1f}' for psnr in agreement)} dB\n  "
            f"{printable(folder / pasted['files'][0])}",
            input=str(source.path),
            folder=str(folder),
            **pasted,
        )

    # --- writing

    def write(self, subject: Subject, variant: Variant, result: Result) -> None:
        plan, place = self.plan, self._place(subject)
        several, of = len(result.solutions) > 1, report_of(plan, subject, result)
        write_result(
            place,
            result,
            report={**self.facts(subject), **self._alignment(subject), **of},
            config=self._config(subject),
            original=subject.original,
            uncertainty=several and (plan.uncertainty or variant.method.draws),
            only_images=plan.only_images,
            format=plan.format,
        )
        self._say_result(subject, result, place)
        if not result.interrupted:
            pace.remember(plan, result.seconds / len(result.solutions))
        if subject.face is not None:
            self._finish(subject.of_face(None))

    def _alignment(self, subject: Subject) -> dict[str, Any]:
        """Where a face lies in its photo, as its report says."""
        photo = None if subject.face is None else self._photos[subject.path]
        return {"alignment": None if photo is None else photo.entries[subject.face or 0]}

    def _config(self, subject: Subject) -> dict[str, Any]:
        """What redrawing needs to know, beside the latents."""
        plan, variant = self.plan, self.plan.variant
        return {
            "generator": plan.generator_name,
            "generator_file": str(plan.weights_file),
            "weights_sha256": plan.identity["weights_sha256"],
            "class": plan.facts["class"],
            "degradation": str(subject.degradation),
            "method": variant.method.name,
            "settings": variant.settings,
            "seed": plan.seed,
            "input": str(subject.path),
            "versions": versions(),
        }

    def _say_result(self, subject: Subject, result: Result, place: Place) -> None:
        residuals = [solution.residual_psnr for solution in result.solutions]
        shown = place.file(
            f"solution_0.{self.plan.format}" if self.plan.only_images else "grid.png"
        )
        self.say(
            "result",
            f"{subject.shown}: {len(residuals)} solution(s) in {duration(result.seconds)}, "
            f"re-downscaled they match the input to {', '.join(f'{r:.1f}' for r in residuals)} dB"
            f"\n  {printable(shown)}",
            input=str(subject.path),
            face=subject.face,
            folder=str(place.folder),
            seconds=round(result.seconds, 2),
            residual_psnr=[round(residual, 3) for residual in residuals],
            status=_status(result),
        )
        for i, solution in enumerate(result.solutions):
            if solution.failed_at >= 0:
                text = f"  solution {i}: {solution.status}"
                self.say("warning", text, solution=i, status=solution.status)

    def fail(self, path: Path, variant: Variant, error: Exception) -> None:
        message, name = in_a_line(error), printable(path.name)
        self.failed[path] = message if name in message else f"{name}: {message}"
        self.error(self.failed[path], input=str(path))
        if path in self._photos:  # it will not be whole
            self._photos[path] = replace(self._photos[path], pixels=None)
        if not self.plan.flat:
            with suppress(OSError):
                self.plan.place_of(self._name_of(path)).folder.rmdir()  # if it is empty

    def note(self, text: str) -> None:
        self.say("note", text, note=text)

    # --- the end

    def collect(self, path: Path) -> dict[str, Any]:
        return self._entry(path)

    def receive(self, path: Path, collected: dict[str, Any]) -> None:
        self._entries[path] = collected
        if collected["status"] == "failed":
            self.failed[path] = collected["message"]

    def _name_of(self, path: Path) -> str:
        """The name of a photo's result, or the likely one of a photo that was never read."""
        return self._names.get(self._owner_of.get(path, path), safe_stem(path))

    def write_summary(self) -> None:
        """summary.json: what became of each photo; that of a shard bears the shard's number."""
        plan = self.plan
        paths = sorted(plan.part(plan.photos))
        entries = [self._entries.get(path) or self._entry(path) for path in paths]
        name = SUMMARY if plan.shard is None else f"summary-{plan.shard}.json"
        write_json(plan.reports / name, {"inputs": entries})

    def _entry(self, path: Path) -> dict[str, Any]:
        name = self._name_of(path)
        entry: dict[str, Any] = {"input": str(path), "folder": name}
        if path in self.failed:
            return {**entry, "status": "failed", "message": self.failed[path]}
        report = _read_report(self.plan.place_of(name)) or {}
        try:
            entry |= {key: report[key] for key in ("status", "host")}
            if "faces" in report:
                entry["faces"] = len(report["faces"])
            else:
                entry["seconds"] = report["seconds"]
                entry["residual_l1"] = [solution["residual_l1"] for solution in report["solutions"]]
        except (LookupError, TypeError):  # another run into the same folder is at it
            entry["status"] = "unfinished"
        return entry


# --- Reports --------------------------------------------------------------------------------


def _read_report(place: Place) -> dict[str, Any] | None:
    """The report of a place, or None if there is none that is whole."""
    try:
        report = json.loads(place.report.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def _is_of(report: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a report is of the photo and the run that the facts are of."""
    return all(report.get(name) == value for name, value in facts.items())


def _status(result: Result) -> str:
    return "interrupted" if result.interrupted else "ok"


def report_of(plan: PhotosPlan, subject: Subject, result: Result) -> dict[str, Any]:
    """What a report says beside what decides the result."""
    solutions = [
        _solution_entry(i, solution, plan.format) for i, solution in enumerate(result.solutions)
    ]
    if subject.original is not None:
        for entry, against in zip(solutions, _scores(result, subject.original), strict=True):
            entry[f"against_original_at_{COMPARED}px"] = against
    return {
        "status": _status(result),
        "input": str(subject.path),
        "notes": list(subject.notes),
        "input_size": list(result.observation.image.shape[1::-1]),
        "fitted_settings": {
            name: value
            for name, value in result.settings.items()
            if value != plan.variant.settings[name]
        },
        "preset": plan.variant.preset,
        "generator": plan.generator.name,
        "device": device_line(),
        "blocks": None if not plan.variant.stages else plan.generator.config.computed_by(),
        "host": platform.node(),
        "versions": versions(),
        "seconds": result.seconds,
        "input_noise_levels": _noise_levels(result.observation),
        "solutions": solutions,
        "history": {
            f"solution_{i}": {name: values.tolist() for name, values in solution.history.items()}
            for i, solution in enumerate(result.solutions)
        },
        "notice": NOTICE,
    }


def _noise_levels(observation: Observation) -> float | None:
    """To how many of 255 levels the input's values are known; None: it was not read."""
    return None if observation.noise is None else round(127.5 * observation.noise.std, 3)


def _solution_entry(number: int, solution: Solution, format: str) -> dict[str, Any]:
    return {
        "file": f"solution_{number}.{format}",
        "status": solution.status,
        "loss": solution.loss,
        "terms": solution.terms,
        "residual_l1": solution.residual_l1,
        "residual_psnr": solution.residual_psnr,
        "generated_psnr": solution.generated_psnr,
        "best_step": solution.best_step,
        "steps": len(next(iter(solution.history.values()), ())),
        "diagnostics": solution.diagnostics,
    }


def _scores(result: Result, reference: np.ndarray) -> list[dict[str, float]]:
    """PSNR, SSIM and LPIPS of each solution to the small original."""
    network = load_features("vgg16")
    scored = [_score(solution.image, reference, network) for solution in result.solutions]
    return [{name: float(value) for name, value in score._asdict().items()} for score in scored]


def device_line() -> str:
    """The devices of this process, in words."""
    device = jax.local_devices()[0]
    kind = platform.processor() or platform.machine() if device.platform == "cpu" else ""
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    return f"{device.platform} ({device.device_kind or kind}{cores}) x {jax.local_device_count()}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(sizes: Sequence[int], most: int = 6) -> str:
    """Numbers in words; of many, the first ones."""
    texts = [str(size) for size in sizes[:most]]
    if len(sizes) > most:
        return f"{', '.join(texts)} ... {sizes[-1]}"
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
