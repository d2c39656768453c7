"""Evaluations: degrade, search with equal budgets, score.

An `EvaluationPlan` says everything that decides the numbers; `run` does what is left of it. Each
finished piece of work is a row in OUT (see `records.Rows`) under a hash of all that decided it, so
that a killed run goes on where it stopped and nothing is taken over that is not the same.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from stylesr_jax.degradations import output_shape
from stylesr_jax.errors import UserError, in_a_line
from stylesr_jax.images.decoding import decode
from stylesr_jax.images.files import write_png
from stylesr_jax.images.kinds import printable
from stylesr_jax.loading import inception_path
from stylesr_jax.metrics.inception import load_inception
from stylesr_jax.metrics.scorer import MEASURES, Scorer, Sizes, at_size, mean_scores
from stylesr_jax.runs.places import make_ready, short_name
from stylesr_jax.runs.plan import Plan, Variant
from stylesr_jax.runs.records import Row, Rows
from stylesr_jax.runs.worker import Job, Source, Subject, open_source, work
from stylesr_jax.runtime import files
from stylesr_jax.solver.observation import degrade_original, key_of
from stylesr_jax.solver.result import Result

ORIGINAL = "original"  # the label of the originals themselves
FIGURE = 256  # px: longer side of an original in the figures

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan(Plan):
    """An evaluation.

    Attributes:
        images: files of the originals.
        sizes: at which pictures are compared.
        reference: a folder or a sheet of tiles for the Fréchet distances, or None.
        reference_tile: pixels of a tile of the sheet.
        inception: file or address of Inception weights, without which no FID is given.
        figure_images: how many images the figure of examples shows.
        apart: whether rows are files of their own, see `records.Rows`.
    """

    images: tuple[Path, ...]
    lr_size: int = 16
    sizes: Sizes = field(default_factory=Sizes)
    reference: Path | None = None
    reference_tile: int = 128
    inception: str | None = None
    figure_images: int = 6
    apart: bool = False

    @cached_property
    def inception_identity(self) -> str | None:
        """The address of the Inception weights, or a hash of their file."""
        if self.inception is None or not os.path.isfile(self.inception):
            return self.inception
        return files.sha256(self.inception)

    @cached_property
    def observed_size(self) -> int | None:
        """Pixels of the longer side of the low-resolution version of a square original.

        None for a degradation that does not fit square images.
        """
        if self.degradation is None:
            return self.lr_size
        resolution = self.generator.resolution
        realised = self.degradation.realise(jax.random.key(0))
        try:
            return max(output_shape(realised, (resolution, resolution, 3))[:2])
        except UserError:
            return None


# --- Data -----------------------------------------------------------------------------------


class Example(NamedTuple):
    """What the figures show of an image beside its solutions: (h, w, 3) in [-1, 1]."""

    low: np.ndarray
    original: np.ndarray


def prepare(plan: EvaluationPlan, path: Path) -> Subject:
    """Read and degrade one image.

    Raises:
        UserError: the file is no image, is smaller than its low-resolution version or too
            narrow to be scored, or the degradation does not fit it.
    """
    return _prepare(plan, *open_source(path))


def _prepare(plan: EvaluationPlan, source: Source, data: bytes) -> Subject:
    picture = decode(data, printable(source.path))
    original = picture.pixels
    height, width = original.shape[:2]
    if max(height, width) <= plan.lr_size:
        raise UserError(
            f"{source.shown}: {width}x{height} px is no larger than --lr-size {plan.lr_size}; "
            "give the high-resolution originals"
        )
    try:
        plan.sizes.refuse_narrow(original.shape)
        observation, assumed = degrade_original(
            original,
            key_of(plan.seed, source.sha256),
            resolution=plan.generator.resolution,
            lr_size=plan.lr_size,
            degradation=plan.degradation,
            truth=plan.truth,
            noise=plan.told_noise,
        )
    except UserError as error:
        raise UserError(f"{source.shown}: {error}") from error
    return Subject(source.path, source.sha256, observation, assumed, original, picture.notes)


def scorer_of(plan: EvaluationPlan) -> Scorer:
    """The scores that an evaluation asks for."""
    inception = None
    if plan.inception is not None:
        inception = load_inception(inception_path(plan.inception))
    return Scorer(plan.sizes, inception)


def example_of(subject: Subject) -> Example:
    """The images of a subject as figures show them."""
    return Example(subject.observation.image, np.asarray(at_size(subject.original, FIGURE)))


# --- Rows and files -------------------------------------------------------------------------


def fingerprint(plan: EvaluationPlan, image: Source, variant: Variant) -> str:
    """A hash of everything that decides a row, so that only equal work is taken over."""
    facts = {
        "image": [image.name, image.sha256],
        "method": variant.method.name,
        "settings": variant.settings,
        "identity": {
            name: value
            for name, value in plan.identity.items()
            if variant.method.needs_prior or not name.startswith("prior")
        },
        "lr_size": plan.lr_size,
        "degradation": plan.degradation_identity,
        "truth": plan.truth,
        "input_noise_std": plan.noise_std,
        "solutions": plan.solutions,
        "seed": plan.seed,
        "sizes": dataclasses.asdict(plan.sizes),
        "inception": plan.inception_identity,
        "noise_mask": None if plan.noise_mask is None else plan.noise_mask.tolist(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _slug(label: str) -> str:
    return short_name(re.sub(r"[^\w.@=+-]+", "_", label))


def picture_path(plan: Plan, variant: Variant, image: str, solution: int) -> Path:
    """Where a solution's picture is kept."""
    return plan.out / "images" / _slug(variant.label) / f"{short_name(image)}_{solution}.png"


def features_path(plan: Plan, label: str, image: str) -> Path:
    """Where the features of an image's pictures under a label are kept."""
    return plan.out / "features" / _slug(label) / f"{short_name(image)}.npz"


def save_features(path: Path, features: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write the features of several pictures, whole or not at all: (pictures, width) each."""
    stacked = {name: np.stack([f[name] for f in features]) for name in features[0]}
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **stacked)  # type: ignore[arg-type]


def read_features(path: Path) -> dict[str, np.ndarray]:
    """What `save_features` wrote.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{printable(path)} cannot be read ({reason}); check it") from error
    try:
        with np.load(io.BytesIO(data)) as file:
            features = dict(file)
        if not features or not all(np.isfinite(f).all() and f.ndim == 2 for f in features.values()):
            raise ValueError("no rows of numbers")
    except Exception as error:  # NumPy and zipfile raise whatever they meet in a damaged file
        raise damaged(path) from error
    return features


def damaged(path: Path) -> UserError:
    """That a file which an earlier run left is of no use."""
    return UserError(
        f"{printable(path)} is damaged: remove it, and the same command makes it again"
    )


def _is_whole(row: Row, solutions: int) -> bool:
    """Whether a row has scores of so many solutions, numbers or unknown; others may edit files."""
    try:
        scores = [part.get(name) for part in (row, *row["solutions"]) for name in MEASURES]
        return len(row["solutions"]) == solutions and all(map(_is_score, scores))
    except (AttributeError, LookupError, TypeError):
        return False


def _is_score(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))


# --- The run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        rows: image name -> label -> row, of this plan alone; "original" is a label too.
        failed: (image, label, message) of what could not be done.
        interrupted: by Ctrl-C.
        examples: image name -> pictures for the figures, of images that were decoded.
    """

    rows: dict[str, dict[str, Row]]
    failed: tuple[tuple[str, str, str], ...]
    interrupted: bool
    examples: Mapping[str, Example] = field(default_factory=dict, compare=False)


def run(
    plan: EvaluationPlan,
    *,
    say: Say = print,
    job: "EvaluationJob | None" = None,
    do: Callable[[Sequence[Path], "EvaluationJob"], None] = work,
) -> Outcome:
    """Do what is left of an evaluation; rows are kept in OUT as they come.

    Args:
        say: called with a line for each piece of work.
        job: of the plan, where results are scored in another way.
        do: does all that is left of a job, here or elsewhere.

    Raises:
        UserError: OUT cannot be written, or two images or variants share a name.
    """
    names = [path.name for path in plan.images]
    labels = [ORIGINAL, *(_slug(variant.label) for variant in plan.variants)]
    _check_distinct("images", names)
    _check_distinct("methods", labels)
    make_ready(plan.out, depth=2)
    job, interrupted = job or EvaluationJob(plan, say), False
    try:
        do(plan.part(plan.images), job)
    except KeyboardInterrupt:
        interrupted = True
    rows = {name: job.rows[name] for name in names if name in job.rows}
    return Outcome(rows, tuple(job.failed), interrupted, job.examples)


def _check_distinct(kind: str, names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"two {kind} are called {', '.join(twice)}; give them other names")


class EvaluationJob(Job[EvaluationPlan]):
    """Scores of every variant's solutions against the original, in rows."""

    voices = ("say", "report")

    def __init__(self, plan: EvaluationPlan, say: Say) -> None:
        super().__init__(plan)
        self.say = say
        self.report = self._report
        self.scorer = scorer_of(plan)
        self.finished = Rows(plan.out, apart=plan.apart)
        self.rows: dict[str, dict[str, Row]] = {}
        self.examples: dict[str, Example] = {}
        self.failed: list[tuple[str, str, str]] = []
        self.total = len(plan.part(plan.images)) * len(plan.variants)
        self.done = self.worked = 0
        self.spent = 0.0
        self._lock = threading.RLock()  # around what both the search and the writing thread say

    def is_done(self, source: Source, variant: Variant) -> bool:
        return self._row(source, variant) is not None

    def is_complete(self, source: Source) -> bool:
        return super().is_complete(source) and self._row_of_original(source) is not None

    def prepare(self, source: Source, data: bytes) -> list[Subject]:
        """Read and degrade an image, and score the original."""
        subject = _prepare(self.plan, source, data)
        for note in subject.notes:
            self.say(f"{source.shown}: {note}")
        if len(self.examples) < self.plan.figure_images:
            self.examples[source.name] = example_of(subject)
        if self._row_of_original(source) is None:
            self._score_original(subject)
        self._rows_of(source)
        return [subject]

    def skip(self, source: Source, variant: Variant) -> None:
        row = self._row(source, variant)
        if row is not None and variant.label not in self._rows_of(source):
            self._rows_of(source)[variant.label] = row
            self.report(source.name, variant.label, "already done")

    def write(self, subject: Subject, variant: Variant, result: Result) -> None:
        """Score a result, unless it was interrupted, and append its row."""
        if result.interrupted:
            return
        row = self.finished.append(self._scored(subject, variant, result))
        self._rows_of(subject)[variant.label] = row
        text = f"{result.seconds:.0f} s; {_in_short(row)}"
        self.report(subject.name, variant.label, text, result.seconds)

    def fail(self, path: Path, variant: Variant, error: Exception) -> None:
        message = in_a_line(error)
        self.failed.append((path.name, variant.label, message))
        self.report(path.name, variant.label, f"FAILED: {message}")

    def note(self, text: str) -> None:
        self.say(text)

    def collect(self, path: Path) -> tuple[dict[str, Row], list[tuple[str, str, str]]]:
        failed = [failure for failure in self.failed if failure[0] == path.name]
        return self.rows.get(path.name, {}), failed

    def receive(
        self, path: Path, collected: tuple[dict[str, Row], list[tuple[str, str, str]]]
    ) -> None:
        rows, failed = collected
        if rows:
            self.rows[path.name] = rows
        self.failed += failed

    def _rows_of(self, source: Source) -> dict[str, Row]:
        """The rows of an image so far, that of the original first."""
        if source.name not in self.rows:
            original = self._row_of_original(source)
            self.rows[source.name] = {} if original is None else {ORIGINAL: original}
        return self.rows[source.name]

    def _row(self, source: Source, variant: Variant) -> Row | None:
        """The row of this very work, if it was done and its files are there."""
        plan = self.plan
        pictures = [picture_path(plan, variant, source.name, i) for i in range(plan.solutions)]
        kept = [features_path(plan, variant.label, source.name), *pictures]
        row = self.finished.get(fingerprint(plan, source, variant))
        if row is None or not _is_whole(row, plan.solutions):
            return None
        return row if all(file.is_file() for file in kept) else None

    def _row_of_original(self, source: Source) -> Row | None:
        row = self.finished.get(self._fingerprint_of_original(source))
        if row is None or not _is_whole(row, 1):
            return None
        return row if features_path(self.plan, ORIGINAL, source.name).is_file() else None

    def _fingerprint_of_original(self, source: Source) -> str:
        facts = f"{source.name} {source.sha256} {self.plan.sizes} {self.plan.inception_identity}"
        return hashlib.sha256(facts.encode(errors="surrogatepass")).hexdigest()[:24]

    def _score_original(self, subject: Subject) -> None:
        """NIQE of the original itself, and its features."""
        saved = features_path(self.plan, ORIGINAL, subject.name)
        save_features(saved, [self.scorer.features(subject.original)])
        self.finished.append(
            {
                "image": subject.name,
                "label": ORIGINAL,
                "fingerprint": self._fingerprint_of_original(subject),
                "status": "ok",
                "solutions": [{"niqe": self.scorer.niqe(subject.original)}],
            }
        )

    def _scored(self, subject: Subject, variant: Variant, result: Result) -> Row:
        """Write the pictures and features of a result, and return its row."""
        plan, scorer = self.plan, self.scorer
        images = [solution.image for solution in result.solutions]
        scores = []
        for i, (solution, image) in enumerate(zip(result.solutions, images, strict=True)):
            write_png(picture_path(plan, variant, subject.name, i), image)
            scores.append(
                {
                    **scorer.against(image, subject.original),
                    "niqe": scorer.niqe(image),
                    "low_l1": solution.residual_l1,
                    "low_psnr": solution.residual_psnr,
                    "seconds": result.seconds / len(images),
                    "steps": len(next(iter(solution.history.values()), ())),
                    "terms": solution.terms,
                    "status": solution.status,
                }
            )
        features = [scorer.features(image) for image in images]
        save_features(features_path(plan, variant.label, subject.name), features)
        return {
            "image": subject.name,
            "label": variant.label,
            "method": variant.method.name,
            "fingerprint": fingerprint(plan, subject, variant),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "status": "ok",
            "solutions": scores,
            **(scorer.diversity(images) if len(images) > 1 else {}),
        }

    def _report(self, image: str, label: str, text: str, seconds: float | None = None) -> None:
        """Say what became of a piece of work, which took so long; None: nothing was searched."""
        with self._lock:
            self.done += 1
            if seconds is not None:
                self.worked += 1
                self.spent += seconds
            remaining = self.total - self.done
            if self.worked and remaining:
                text += f"; about {self.spent / self.worked * remaining / 60:.1f} min left"
            self.say(f"[{self.done}/{self.total}] {printable(image)} {label}: {text}")


def _in_short(row: Row) -> str:
    mean = mean_scores(row)
    return ", ".join(
        f"{MEASURES[name].heading} {mean[name]:.{MEASURES[name].digits}f}"
        for name in ("lpips_vgg", "niqe", "low_l1")
        if mean[name] is not None
    )
