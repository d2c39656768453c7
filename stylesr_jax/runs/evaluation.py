"""Evaluations: degrade, search with equal budgets, score, and write tables and figures.

A `Plan` says everything that decides the numbers; `evaluate` does what is left of it. Each
finished piece of work is one line of OUT/rows.jsonl under a hash of all that decided it, so that
a killed run goes on where it stopped and nothing is taken over that is not the same.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylesr_jax.errors import UserError, in_a_line
from stylesr_jax.metrics.scorer import MEASURES, Scorer, Sizes, mean_scores

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from stylesr_jax.degradations import Degradation
    from stylesr_jax.generators.base import Generator
    from stylesr_jax.methods.base import Method, Value
    from stylesr_jax.runs.claims import Claim
    from stylesr_jax.runs.pipeline import Pipeline
    from stylesr_jax.solver.solve import Observation, Result

ORIGINAL = "original"  # the label of the originals themselves
EVALUATIONS = 100  # default budget for each solution


# --- What is evaluated ----------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One row of the table: a method with its settings under a name.

    Attributes:
        label: how tables and figures call it.
        method: the method.
        preset: which of its presets the settings began with.
        settings: all of its settings, the budget included.
    """

    label: str
    method: "Method"
    preset: str
    settings: Mapping[str, "Value"]

    @property
    def evaluations(self) -> int:
        """Gradient steps for one solution."""
        stages = self.method.stages(self.settings)
        return sum(int(self.settings[stage.steps]) for stage in stages)


@dataclass(frozen=True)
class Plan:
    """An evaluation: everything that decides its numbers, and where it is written.

    Attributes:
        images: files of the originals.
        variants: what is compared.
        out: the folder of the results.
        generator, prior, perceptual: as `solve` takes them.
        identity: hashes of the weights, so that other weights do not continue a run.
        lr_size: longer side of the low-resolution image, for plain bicubic data.
        degradation: what the data suffer, applied to originals brought to the generator's
            resolution (so that its pixels mean the same for every image); None is bicubic.
        truth: whether the search is told the data's degradation, or assumes plain bicubic.
        solutions: starts for each image and variant.
        seed: of the starts and of the data's noise.
        batch: starts searched together on a device; None is as many as fit, 1 on CPUs.
        mesh: devices to spread starts over, see `solve.device_mesh`; None takes the first one.
        share: whether other processes do the same evaluation into the same folder.
        stale: seconds after which another process's claim counts as a dead one's.
        place: this process's number and how many there are; it begins at its part of the images.
        sizes: at which pictures are compared.
        reference: a folder or a sheet of tiles for the Fréchet distances, or None.
        reference_tile: pixels of a tile of the sheet.
        noise_mask: (h, w) in [0, 1], where the setting "noise_std" adds noise; None: everywhere.
        inception: file or address of Inception weights, without which no FID is given.
        figure_images: how many images the figure of examples shows.
    """

    images: tuple[Path, ...]
    variants: tuple[Variant, ...]
    out: Path
    generator: "Generator"
    prior: Any = None
    perceptual: Any = None
    identity: Mapping[str, str] = field(default_factory=dict)
    lr_size: int = 16
    degradation: "Degradation | None" = None
    truth: bool = False
    solutions: int = 1
    seed: int = 0
    batch: int | None = None
    mesh: "Mesh | None" = None
    share: bool = False
    stale: float = 60.0
    place: tuple[int, int] = (0, 1)
    sizes: Sizes = field(default_factory=Sizes)
    reference: Path | None = None
    reference_tile: int = 128
    noise_mask: "np.ndarray | None" = None
    inception: str | None = None
    figure_images: int = 6

    @cached_property
    def degradation_identity(self) -> str:
        """What the data suffer, with a hash of the masks in it."""
        from stylesr_jax.degradations import degradation_identity

        return degradation_identity(self.degradation)

    @cached_property
    def inception_identity(self) -> str | None:
        """The address of the Inception weights, or a hash of their file."""
        from stylesr_jax.runtime import files

        if self.inception is None or not Path(self.inception).is_file():
            return self.inception
        return files.sha256(self.inception)

    @cached_property
    def observed_size(self) -> int:
        """Pixels of the longer side of what methods see of a square original."""
        import jax

        from stylesr_jax.degradations import output_shape

        if self.degradation is None:
            return self.lr_size
        resolution = self.generator.resolution
        realised = self.degradation.realise(jax.random.key(0))
        return max(output_shape(realised, (resolution, resolution, 3))[:2])


def variant(
    text: str,
    *,
    preset: str = "balanced",
    changes: Mapping[str, "Value"] | None = None,
    evaluations: int | None = EVALUATIONS,
) -> Variant:
    """A variant from [LABEL=]NAME[@PRESET][:SETTING=VALUE]...; `changes` come after its own.

    Raises:
        UserError: there is no such method, preset or setting.
    """
    from stylesr_jax.methods import method_named
    from stylesr_jax.methods.base import with_budget

    head, *pairs = text.strip().split(":")
    label, equals, name = head.rpartition("=")
    name, at, own_preset = name.partition("@")
    own: dict[str, Any] = {}
    for pair in pairs:
        setting, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--methods {text}: write NAME:SETTING=VALUE, e.g. rls:lambda_w=0.1")
        own[setting.strip()] = value.strip()
    method = method_named(name.strip())
    chosen = own_preset if at else preset
    if not at and chosen != "balanced" and chosen not in method.presets:
        chosen = "balanced"  # a preset for all methods reaches those that have it
    settings: dict[str, Any] = method.resolve(chosen, {**own, **(changes or {})})
    if evaluations is not None:
        settings = with_budget(method, settings, evaluations)
    return Variant(label if equals else text.strip(), method, chosen, settings)


# --- Data -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One image as the methods and the scores see it.

    Attributes:
        name: the file's name.
        original: (H, W, 3) float32 in [-1, 1], as in the file.
        observation: the degraded image.
        degradation: the A that the search inverts.
        sha256: of the file.
    """

    name: str
    original: "np.ndarray"
    observation: "Observation"
    degradation: "Degradation"
    sha256: str


def prepare(plan: Plan, path: Path) -> Subject:
    """Read and degrade one image.

    Raises:
        UserError: the file is no image, is smaller than its low-resolution version, or the
            degradation does not fit it.
    """
    from stylesr_jax.images.files import read_image
    from stylesr_jax.runtime import files
    from stylesr_jax.solver.solve import degrade_original, key_of

    original = read_image(path)
    height, width = original.shape[:2]
    if max(height, width) <= plan.lr_size:
        raise UserError(
            f"{path.name}: {width}x{height} px is no larger than --lr-size {plan.lr_size}; "
            "give the high-resolution originals"
        )
    try:
        observation, assumed = degrade_original(
            original,
            key_of(plan.seed, path.name),
            resolution=plan.generator.resolution,
            lr_size=plan.lr_size,
            degradation=plan.degradation,
            truth=plan.truth,
        )
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error
    return Subject(path.name, original, observation, assumed, files.sha256(path))


# --- Loading --------------------------------------------------------------------------------


def load_parts(
    variants: Sequence[Variant], *, generator: str | None = None, prior: str | None = None
) -> dict[str, Any]:
    """The generator, prior, feature network and their hashes, as `Plan` takes them.

    Raises:
        UserError: a file is missing, or there is no prior for the generator.
    """
    from stylesr_jax.loading import generator_from_file, generator_path
    from stylesr_jax.runtime import files
    from stylesr_jax.runtime.weights import DEFAULT

    path = generator_path(generator or DEFAULT)
    parts: dict[str, Any] = {"generator": generator_from_file(path)}
    identity = {"weights_sha256": files.sha256(path)}
    if any(one.method.needs_prior for one in variants):
        from stylesr_jax.priors.flow import flow_sha256, load_prior

        parts["prior"] = load_prior(parts["generator"], path=prior)
        identity["prior_sha256"] = flow_sha256(parts["prior"])
    if any(one.method.needs_perceptual for one in variants):
        from stylesr_jax.metrics.lpips import load_features

        parts["perceptual"] = load_features("vgg16")
    return {**parts, "identity": identity}


# --- Rows -----------------------------------------------------------------------------------


Row = dict[str, Any]


def append_row(path: Path, row: Row) -> Row:
    """Append one JSON line with a single write, so that a kill leaves it whole or not at all.

    Returns:
        The row as it will be read again: values that are not finite are None.
    """
    from stylesr_jax.runs.folder import finite

    row = finite(row)
    line = (json.dumps(row, sort_keys=True) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if os.fstat(handle).st_size and not _ends_with_newline(path):
            line = b"\n" + line  # after a line that the file system tore
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)
    return row


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read(1) == b"\n"


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a file; lines that are not whole are passed over."""
    with suppress(FileNotFoundError):
        return list(_parse_rows(path.read_bytes()))
    return []


def _parse_rows(text: bytes) -> Iterator[Row]:
    for line in text.decode(errors="replace").splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "fingerprint" in row:
                yield row


class _Rows:
    """The finished rows of a file that other processes append to, by fingerprint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Row] = {}
        self._read = 0  # bytes
        self._lock = threading.Lock()  # the reading and the writing thread look here too
        self.refresh()

    def refresh(self) -> None:
        """Read what was appended; a line still being written is read again the next time."""
        with self._lock, suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
            for row in _parse_rows(whole):
                if row["status"] == "ok":
                    self._known[row["fingerprint"]] = row
            self._read += len(whole)

    def get(self, fingerprint: str) -> Row | None:
        return self._known.get(fingerprint)

    def append(self, row: Row) -> Row:
        """Append to the file; returns the row as it will be read again."""
        row = append_row(self.path, row)
        self._known[row["fingerprint"]] = row
        return row


def _fingerprint(plan: Plan, image: "Subject | _Found", one: Variant) -> str:
    """A hash of everything that decides a row, so that only equal work is taken over."""
    facts = {
        "image": [image.name, image.sha256],
        "method": one.method.name,
        "settings": dict(one.settings),
        "identity": {
            name: value
            for name, value in plan.identity.items()
            if one.method.needs_prior or not name.startswith("prior")
        },
        "lr_size": plan.lr_size,
        "degradation": plan.degradation_identity,
        "truth": plan.truth,
        "solutions": plan.solutions,
        "seed": plan.seed,
        "sizes": dataclasses.asdict(plan.sizes),
        "inception": plan.inception_identity,
        "noise_mask": None if plan.noise_mask is None else plan.noise_mask.tolist(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _slug(label: str) -> str:
    return re.sub(r"[^\w.@=+-]+", "_", label)


def picture_path(plan: Plan, one: Variant, image: str, solution: int) -> Path:
    """Where a solution's picture is kept."""
    return plan.out / "images" / _slug(one.label) / f"{image}_{solution}.png"


def features_path(plan: Plan, label: str, image: str) -> Path:
    """Where the features of an image's pictures under a label are kept."""
    return plan.out / "features" / _slug(label) / f"{image}.npz"


def save_features(path: Path, features: Sequence[Mapping[str, "np.ndarray"]]) -> None:
    """Write the features of several pictures, whole or not at all: (pictures, width) each."""
    import numpy as np

    from stylesr_jax.runtime import files

    stacked = {name: np.stack([f[name] for f in features]) for name in features[0]}
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **stacked)  # type: ignore[arg-type]


# --- The run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        rows: image name -> label -> row, of this plan alone; "original" is a label too.
        failed: (image, label, message) of what could not be done.
        interrupted: by Ctrl-C.
    """

    rows: dict[str, dict[str, Row]]
    failed: tuple[tuple[str, str, str], ...]
    interrupted: bool


Say = Callable[[str], None]


def run(plan: Plan, *, say: Say = print) -> Outcome:
    """Do what is left of an evaluation; rows are appended to OUT/rows.jsonl as they come.

    Raises:
        UserError: OUT cannot be written, or two images or variants share a name.
    """
    from stylesr_jax.runtime import files

    names = [path.name for path in plan.images]
    labels = [ORIGINAL, *(_slug(one.label) for one in plan.variants)]
    for kind, found in (("images", names), ("methods", labels)):
        twice = sorted(name for name, count in Counter(found).items() if count > 1)
        if twice:
            raise UserError(f"two {kind} are called {', '.join(twice)}; give them other names")
    probe = plan.out / ".write-test"
    with files.atomic_path(probe):
        pass
    probe.unlink(missing_ok=True)  # of another process, perhaps
    work = _Work(plan, say)
    interrupted = False
    try:
        work.do()
    except KeyboardInterrupt:
        interrupted = True
    rows = {name: work.rows[name] for name in names if name in work.rows}
    return Outcome(rows, tuple(work.failed), interrupted)


@dataclass(frozen=True)
class _Found:
    """What the reading thread found out about an image.

    Attributes:
        original: the row of the original itself.
        subject: the degraded image, or None where nothing is left to do.
        error: why it cannot be used.
        held: whether all that is left is held by other processes.
    """

    name: str
    sha256: str = ""
    original: Row | None = None
    subject: Subject | None = None
    error: Exception | None = None
    held: bool = False


@dataclass(frozen=True)
class _Task:
    """A subject to be searched for, with its claim on a shared folder."""

    subject: Subject
    claim: "Claim | None"


class _Work:
    """The loop over images and variants: what is done, what failed, and how long it takes."""

    def __init__(self, plan: Plan, say: Say) -> None:
        from stylesr_jax.runs.claims import Claims

        self.plan, self.say = plan, say
        self.scorer = Scorer(plan.sizes, plan.inception)
        self.known = _Rows(plan.out / "rows.jsonl")
        self.rows: dict[str, dict[str, Row]] = {}
        self.failed: list[tuple[str, str, str]] = []
        self.total = len(plan.images) * len(plan.variants)
        self.done = self.worked = 0
        self.spent = 0.0
        self.claims = Claims(plan.out / ".claims", plan.stale) if plan.share else None
        self._claimed: list[Claim] = []
        self._held: set[str] = set()  # images of which other processes hold a variant
        self._batches: dict[str, int] = {}  # label -> starts on a device
        self._lock = threading.RLock()  # around what both the search and the writing thread say

    def do(self) -> None:
        """All that is left of the plan, in turns with other processes if the folder is shared."""
        from stylesr_jax.runs.claims import work_off

        images, (process, processes) = list(self.plan.images), self.plan.place
        first = len(images) * process // processes
        try:
            work_off(images[first:] + images[:first], self._attempt, self.claims)
        finally:
            for claim in self._claimed:
                claim.release()

    def _attempt(self, images: Sequence[Path]) -> list[Path]:
        """One pass; returns the images of which other processes hold a variant."""
        from stylesr_jax.runs.pipeline import Pipeline, grouped

        self._held = set()
        with Pipeline() as pipeline:
            subjects = self._left(pipeline.read(self._read, images))
            for group in grouped(subjects, self._alike, self._images_together):
                for one in self.plan.variants:
                    self._search(self._tasks(group, one), one, pipeline)
        return [path for path in images if path.name in self._held]

    def _read(self, path: Path) -> _Found:
        """On the reading thread: read, degrade, and score the original."""
        from stylesr_jax.runtime import files

        try:
            found = _Found(path.name, files.sha256(path))
            if self.claims is not None:
                self.known.refresh()
            left = [one for one in self.plan.variants if self._row(found, one) is None]
            if self.claims is not None and left:
                keys = [_fingerprint(self.plan, found, one) for one in left]
                if not any(map(self.claims.is_free, keys)):
                    return dataclasses.replace(found, held=True)
            original = self._known_original(found)
            if original is not None and not left:
                return dataclasses.replace(found, original=original)
            subject = prepare(self.plan, path)
            original = original or self._original(subject)
            return dataclasses.replace(found, original=original, subject=subject)
        except Exception as error:
            return _Found(path.name, error=error)

    def _left(self, images: Iterable[_Found]) -> Iterator[Subject]:
        """Those that something is left to do for; the others are taken over, or listed."""
        for found in images:
            if found.held:
                self._held.add(found.name)
            elif found.error is not None:
                for one in self.plan.variants:
                    self._fail(found.name, one, found.error)
            else:
                assert found.original is not None
                self.rows.setdefault(found.name, {})[ORIGINAL] = found.original
                if found.subject is not None:
                    yield found.subject
                    continue
                for one in self.plan.variants:
                    self._take_over(found, one)

    def _alike(self, subject: Subject) -> Any:
        """What subjects that are searched together have in common."""
        own = self.plan.truth and self.plan.degradation is not None
        return subject.name if own else subject.observation.target.shape

    def _images_together(self, subject: Subject) -> int:
        from stylesr_jax.runs.pipeline import images_together

        if self.plan.truth:
            return 1
        devices = 1 if self.plan.mesh is None else self.plan.mesh.size
        starts = [self._batch(one) * devices for one in self.plan.variants]
        return max(images_together(n, self.plan.solutions) for n in starts)

    def _batch(self, one: Variant) -> int:
        """Starts that a device searches together for a variant."""
        from stylesr_jax.solver.batching import choose_batch

        plan = self.plan
        if one.label not in self._batches:
            self._batches[one.label] = choose_batch(
                plan.batch,
                starts=plan.solutions * (1 if plan.truth else len(plan.images)),
                solutions=plan.solutions,
                mesh=plan.mesh,
                method=one.method,
                settings=one.settings,
                side=plan.observed_size,
                generator=plan.generator,
                prior=plan.prior,
                perceptual=plan.perceptual,
            )
        return self._batches[one.label]

    def _known_original(self, image: "Subject | _Found") -> Row | None:
        row = self.known.get(self._original_fingerprint(image))
        return row if features_path(self.plan, ORIGINAL, image.name).is_file() else None

    def _original_fingerprint(self, image: "Subject | _Found") -> str:
        facts = f"{image.name} {image.sha256} {self.plan.sizes} {self.plan.inception_identity}"
        return hashlib.sha256(facts.encode()).hexdigest()[:24]

    def _original(self, subject: Subject) -> Row:
        """What can be said of the original itself: NIQE, and its features."""
        saved = features_path(self.plan, ORIGINAL, subject.name)
        save_features(saved, [self.scorer.features(subject.original)])
        row = {
            "image": subject.name,
            "label": ORIGINAL,
            "fingerprint": self._original_fingerprint(subject),
            "status": "ok",
            "solutions": [{"niqe": self.scorer.niqe(subject.original)}],
        }
        return self.known.append(row)

    def _row(self, image: "Subject | _Found", one: Variant) -> Row | None:
        """The row of this very work, if it was done and its files are there."""
        row = self.known.get(_fingerprint(self.plan, image, one))
        pictures = [picture_path(self.plan, one, image.name, i) for i in range(self.plan.solutions)]
        files = [features_path(self.plan, one.label, image.name), *pictures]
        return row if all(file.is_file() for file in files) else None

    def _take_over(self, image: "Subject | _Found", one: Variant) -> bool:
        """Whether this very work was done before, or elsewhere; its row is taken over then."""
        row = self._row(image, one)
        if row is None:
            return False
        if one.label not in self.rows[image.name]:
            self.rows[image.name][one.label] = row
            self._report(image.name, one, "already done")
        return True

    def _tasks(self, subjects: Sequence[Subject], one: Variant) -> list[_Task]:
        """What of a group is this process's to do for a variant."""
        failed = {(image, label) for image, label, _ in self.failed}
        tasks = []
        for subject in subjects:
            if (subject.name, one.label) in failed or self._take_over(subject, one):
                continue
            claim = None
            if self.claims is not None:
                claim = self.claims.take(_fingerprint(self.plan, subject, one))
                if claim is None:
                    self._held.add(subject.name)
                    continue
                self.known.refresh()
                if self._take_over(subject, one):  # somebody was faster
                    claim.release()
                    continue
                self._claimed.append(claim)
            tasks.append(_Task(subject, claim))
        return tasks

    def _search(self, tasks: Sequence[_Task], one: Variant, pipeline: "Pipeline") -> None:
        """Search for some subjects together and hand the results to the writing thread."""
        from stylesr_jax.solver.batching import within_memory
        from stylesr_jax.solver.solve import key_of, solve

        if not tasks:
            return
        plan, subjects = self.plan, [task.subject for task in tasks]

        def search(batch: int) -> list["Result"]:
            return solve(
                [subject.observation for subject in subjects],
                [key_of(plan.seed, subject.name) for subject in subjects],
                generator=plan.generator,
                prior=plan.prior,
                perceptual=plan.perceptual,
                method=one.method,
                settings=one.settings,
                solutions=plan.solutions,
                degradation=subjects[0].degradation,
                noise_mask=plan.noise_mask,
                batch=batch,
                mesh=plan.mesh,
            )

        try:
            results, self._batches[one.label] = within_memory(self._batch(one), search)
        except Exception as error:
            if len(tasks) > 1:  # the others of the batch may be sound
                for task in tasks:
                    self._search([task], one, pipeline)
            else:
                self._fail(subjects[0].name, one, error)
                self._release(tasks[0])
            return
        whole = [result for result in results if not result.interrupted]
        found = zip(tasks, whole, strict=False)  # Ctrl-C cuts the last ones
        pipeline.write_group(self._write, [(task, one, result) for task, result in found])
        if len(whole) < len(tasks):
            raise KeyboardInterrupt

    def _write(self, task: _Task, one: Variant, result: "Result") -> None:
        """On the writing thread: score a result and append its row."""
        subject = task.subject
        try:
            if task.claim is not None and not task.claim.is_mine():
                self._held.add(subject.name)
                return
            row = self.known.append(self._scored(subject, one, result))
        except Exception as error:
            self._fail(subject.name, one, error)
            return
        finally:
            self._release(task)
        self.rows[subject.name][one.label] = row
        with self._lock:
            self.worked += 1
            self.spent += result.seconds
        self._report(subject.name, one, f"{result.seconds:.0f} s; {_in_short(row)}")

    def _release(self, task: _Task) -> None:
        if task.claim is not None:
            task.claim.release()
            self._claimed.remove(task.claim)

    def _scored(self, subject: Subject, one: Variant, result: "Result") -> Row:
        """Write the pictures and features of a result, and return its row."""
        from stylesr_jax.images.files import write_png

        plan, scorer = self.plan, self.scorer
        images = [solution.image for solution in result.solutions]
        scores = []
        for i, (solution, image) in enumerate(zip(result.solutions, images, strict=True)):
            write_png(picture_path(plan, one, subject.name, i), image)
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
        save_features(features_path(plan, one.label, subject.name), features)
        return {
            "image": subject.name,
            "label": one.label,
            "method": one.method.name,
            "fingerprint": _fingerprint(plan, subject, one),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "status": "ok",
            "solutions": scores,
            **(scorer.diversity(images) if len(images) > 1 else {}),
        }

    def _fail(self, image: str, one: Variant, error: Exception) -> None:
        message = in_a_line(error)
        self.failed.append((image, one.label, message))
        self._report(image, one, f"FAILED: {message}")

    def _report(self, image: str, one: Variant, text: str) -> None:
        with self._lock:
            self.done += 1
            left = self.total - self.done
            if self.worked and left:
                text += f"; about {self.spent / self.worked * left / 60:.1f} min left"
            self.say(f"[{self.done}/{self.total}] {image} {one.label}: {text}")


def _in_short(row: Row) -> str:
    mean = mean_scores(row)
    return ", ".join(
        f"{MEASURES[name].heading} {mean[name]:.{MEASURES[name].digits}f}"
        for name in ("lpips_vgg", "niqe", "low_l1")
        if mean[name] is not None
    )
