"""The loop of every command that searches for many images: read, group, search, write.

The calling thread searches; one thread reads ahead and one writes behind it (see `pipeline`). What
is read, and what becomes of a result, is for a `Job` to say. A result carries the subject that it
was searched for, and a subject all that is needed of its file, which is opened and decoded once.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from stylesr_jax.degradations import Degradation
from stylesr_jax.images.files import read_bytes
from stylesr_jax.images.kinds import printable
from stylesr_jax.runs.pipeline import Pipeline, grouped, images_together
from stylesr_jax.runs.plan import Plan, Variant
from stylesr_jax.solver.batching import choose_batch, within_memory
from stylesr_jax.solver.observation import Observation, key_of
from stylesr_jax.solver.result import Result
from stylesr_jax.solver.solve import solve

P = TypeVar("P", bound=Plan)


@dataclass(frozen=True)
class Source:
    """An input file.

    Attributes:
        path: where it is.
        sha256: of its bytes.
        face: the number of a face in it; None: the whole picture.
    """

    path: Path
    sha256: str
    face: int | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def shown(self) -> str:
        """The name of the file, as it can be printed, and which face it is."""
        name = printable(self.path.name)
        return name if self.face is None else f"{name} face {self.face}"

    @property
    def content(self) -> str:
        """What seeds are drawn from."""
        return self.sha256 if self.face is None else f"{self.sha256} face {self.face}"

    def of_face(self, face: int | None) -> "Source":
        """A face of the same file, or the file."""
        return Source(self.path, self.sha256, face=face)


@dataclass(frozen=True)
class Subject(Source):
    """An image as the methods and the scores see it.

    Attributes:
        observation: the degraded image.
        degradation: the A that the search inverts.
        original: (H, W, 3) float32 in [-1, 1], to compare solutions with; None if there is none.
        notes: what is to be said of the file, see `images.decoding.Picture`.
    """

    observation: Observation
    degradation: Degradation
    original: Any
    notes: tuple[str, ...] = ()

    @property
    def canvas(self) -> int:
        """Pixels of a side: subjects of equal canvas are searched together."""
        return self.observation.target.shape[0]


def open_source(path: Path) -> tuple[Source, bytes]:
    """An input file and its bytes.

    Raises:
        UserError: it is missing, too large, or cannot be read.
    """
    data = read_bytes(path)
    return Source(path, hashlib.sha256(data).hexdigest()), data


class Job(ABC, Generic[P]):
    """What a command does with its images. Asked by several threads, for an image one at a time.

    Attributes:
        plan: what decides its numbers.
        progress: called with (subject, solution, step, steps, terms) between chunks, or None.
        voices: names of the callables, attributes of the job, that tell the user something.
    """

    progress: Callable[..., None] | None = None
    voices: ClassVar[tuple[str, ...]]

    def __init__(self, plan: P) -> None:
        self.plan = plan

    @abstractmethod
    def is_done(self, source: Source, variant: Variant) -> bool:
        """Whether this very work was done before."""

    def is_complete(self, source: Source) -> bool:
        """Whether nothing is left to do for an image."""
        return all(self.is_done(source, variant) for variant in self.plan.variants)

    @abstractmethod
    def prepare(self, source: Source, data: bytes) -> Sequence[Subject]:
        """Decode an image, on the reading thread, to what is searched for in it.

        Raises:
            UserError: it is no image, or not one that can be searched for.
        """

    @abstractmethod
    def skip(self, source: Source, variant: Variant) -> None:
        """This work was done before."""

    @abstractmethod
    def write(self, subject: Subject, variant: Variant, result: Result) -> None:
        """Keep a result, perhaps an interrupted one, on the writing thread."""

    @abstractmethod
    def fail(self, path: Path, variant: Variant, error: Exception) -> None:
        """This work cannot be done."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Tell the user something of the run."""

    @abstractmethod
    def collect(self, path: Path) -> Any:
        """What is known of an image, for the same job in another process; pickled."""

    @abstractmethod
    def receive(self, path: Path, collected: Any) -> None:
        """Take over what the same job in another process has collected."""


def work(paths: Sequence[Path], job: Job[Any]) -> None:
    """Do all that is left. An image that fails does not stop the others.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was found is written.
    """
    Worker(job, len(paths)).work(paths)


class _Read(NamedTuple):
    """What the reading thread found out about an image."""

    path: Path
    source: Source | None = None
    subjects: Sequence[Subject] = ()  # none: nothing is left to do
    error: Exception | None = None


class Worker:
    """The state of `work`, which serves several lists of images.

    Attributes:
        job: what is done.
        images: how many there are in all, for the size of batches.
    """

    def __init__(self, job: Job[Any], images: int) -> None:
        self.job, self.plan, self.images = job, job.plan, images
        self._failed: set[tuple[Path, int | None, str]] = set()
        self._batches: dict[tuple[str, int], int] = {}  # (label, canvas) -> starts on a device

    def work(self, paths: Sequence[Path]) -> None:
        """Do all that is left for some images, see `work`."""
        with Pipeline() as pipeline:
            subjects = self._to_do(pipeline.read(self._read, paths))
            for group in grouped(subjects, self._alike, self._images_together):
                for variant in self.plan.variants:
                    self._search(self._left(group, variant), variant, pipeline)

    # --- reading

    def _read(self, path: Path) -> _Read:
        """On the reading thread: open an image, and decode it if something is left to do."""
        try:
            source, data = open_source(path)
            if self.job.is_complete(source):
                return _Read(path, source)
            return _Read(path, source, self.job.prepare(source, data))
        except Exception as error:  # one odd file must not end the folder
            return _Read(path, error=error)

    def _to_do(self, images: Iterable[_Read]) -> Iterator[Subject]:
        """Those that something is left to do for; the others are skipped, or listed."""
        for image in images:
            if image.subjects:
                yield from image.subjects
                continue
            for variant in self.plan.variants:
                if image.error is not None:
                    self._fail(image.path, variant, image.error)
                elif image.source is not None:
                    self.job.skip(image.source, variant)

    # --- grouping

    def _alike(self, subject: Subject) -> Any:
        """What subjects that are searched together have in common."""
        return (subject.path, subject.face) if self.plan.own_truths else subject.canvas

    def _images_together(self, subject: Subject) -> int:
        if self.plan.own_truths:
            return 1
        starts = (
            self._batch(subject, variant) * self.plan.devices for variant in self.plan.variants
        )
        return max(images_together(n, self.plan.solutions) for n in starts)

    def _batch(self, subject: Subject, variant: Variant) -> int:
        """Starts that a device searches together for subjects of this canvas."""
        plan, key = self.plan, (variant.label, subject.canvas)
        if key not in self._batches:
            self._batches[key] = choose_batch(
                plan.batch,
                starts=plan.solutions * (1 if plan.own_truths else self.images),
                solutions=plan.solutions,
                mesh=plan.mesh,
                method=variant.method,
                side=subject.canvas,
                generator=plan.generator,
                prior=plan.prior,
                perceptual=plan.perceptual,
            )
        return self._batches[key]

    def _left(self, subjects: Sequence[Subject], variant: Variant) -> list[Subject]:
        """Those of a group that are to be searched for by a variant; the others are skipped."""
        sound = (s for s in subjects if (s.path, s.face, variant.label) not in self._failed)
        unfinished = []
        for subject in sound:
            if self.job.is_done(subject, variant):
                self.job.skip(subject, variant)
            else:
                unfinished.append(subject)
        return unfinished

    # --- searching

    def _search(self, subjects: Sequence[Subject], variant: Variant, pipeline: Pipeline) -> None:
        """Search for some subjects together and hand the results to the writing thread."""
        if not subjects:
            return
        batch = self._batch(subjects[0], variant)
        try:
            results, batch = within_memory(batch, partial(self._solve, subjects, variant))
        except Exception as error:
            if len(subjects) > 1:  # the others may be sound
                for subject in subjects:
                    self._search([subject], variant, pipeline)
            else:
                self._fail(subjects[0].path, variant, error, subjects[0].face)
            return
        self._batches[variant.label, subjects[0].canvas] = batch
        pairs = zip(subjects, results, strict=False)  # Ctrl-C leaves out the last ones
        pipeline.write(self._write, [(subject, variant, result) for subject, result in pairs])
        if len(results) < len(subjects) or any(result.interrupted for result in results):
            raise KeyboardInterrupt

    def _solve(self, subjects: Sequence[Subject], variant: Variant, batch: int) -> list[Result]:
        """The results of a group, in its order; after Ctrl-C the last ones may be missing."""
        plan, report = self.plan, self.job.progress

        def on_progress(image: int, *values: Any) -> None:
            assert report is not None
            report(subjects[image], *values)

        return solve(
            [subject.observation for subject in subjects],
            [key_of(plan.seed, subject.content) for subject in subjects],
            generator=plan.generator,
            prior=plan.prior,
            perceptual=plan.perceptual,
            method=variant.method,
            solutions=plan.solutions,
            degradation=subjects[0].degradation,
            noise_mask=plan.noise_mask,
            start=plan.start,
            batch=batch,
            mesh=plan.mesh,
            on_progress=None if report is None else on_progress,
        )

    # --- writing

    def _write(self, subject: Subject, variant: Variant, result: Result) -> None:
        """On the writing thread: keep a result."""
        try:
            self.job.write(subject, variant, result)
        except Exception as error:  # of one image; the others are written
            self._fail(subject.path, variant, error, subject.face)

    def _fail(
        self, path: Path, variant: Variant, error: Exception, face: int | None = None
    ) -> None:
        self._failed.add((path, face, variant.label))
        self.job.fail(path, variant, error)
