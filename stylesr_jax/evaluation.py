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
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylesr_jax.errors import UserError
from stylesr_jax.scoring import MEASURES, Scorer, Sizes, mean_scores

if TYPE_CHECKING:
    import numpy as np

    from stylesr_jax.degradations import Degradation
    from stylesr_jax.generators import Generator
    from stylesr_jax.solve import Observation, Result
    from stylesr_jax.stages import Method, Value

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
        batch: starts searched together.
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
    batch: int = 1
    sizes: Sizes = field(default_factory=Sizes)
    reference: Path | None = None
    reference_tile: int = 128
    noise_mask: "np.ndarray | None" = None
    inception: str | None = None
    figure_images: int = 6


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
    from stylesr_jax.stages import with_budget

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
    import jax
    import jax.numpy as jnp
    import numpy as np

    from stylesr_jax import store
    from stylesr_jax.degradations import Bicubic, output_shape, resize
    from stylesr_jax.images import read_image
    from stylesr_jax.solve import default_degradation, key_of, observe

    original = read_image(path)
    height, width = original.shape[:2]
    if max(height, width) <= plan.lr_size:
        raise UserError(
            f"{path.name}: {width}x{height} px is no larger than --lr-size {plan.lr_size}; "
            "give the high-resolution originals"
        )

    def scaled(longer: int) -> tuple[int, int]:
        scale = longer / max(height, width)
        return max(round(height * scale), 1), max(round(width * scale), 1)

    resolution = plan.generator.resolution
    large = jnp.clip(resize(jnp.asarray(original), scaled(resolution)), -1.0, 1.0)
    key = jax.random.fold_in(key_of(plan.seed, path.name), 2**31)
    suffered = plan.degradation or Bicubic(size=scaled(plan.lr_size))
    observation = observe(np.clip(np.asarray(suffered.degrade(key, large)), -1.0, 1.0))
    assumed = default_degradation(observation)
    if plan.truth and plan.degradation is not None:
        assumed = plan.degradation.realise(key)
        shape = output_shape(assumed, (resolution, resolution, 3))
        if shape != observation.target.shape:
            raise UserError(
                f"{path.name}: told the truth, the search makes images of {shape}, not "
                f"{observation.target.shape}: use square images or --search-degradation bicubic"
            )
    return Subject(path.name, original, observation, assumed, store.sha256(path))


# --- Loading --------------------------------------------------------------------------------


def load_parts(
    variants: Sequence[Variant], *, generator: str | None = None, prior: str | None = None
) -> dict[str, Any]:
    """The generator, prior, feature network and their hashes, as `Plan` takes them.

    Raises:
        UserError: a file is missing, or there is no prior for the generator.
    """
    import jax
    import numpy as np

    from stylesr_jax import store
    from stylesr_jax.generators import DEFAULT, generator_from_file, generator_path

    path = generator_path(generator or DEFAULT)
    parts: dict[str, Any] = {"generator": generator_from_file(path)}
    identity = {"weights_sha256": store.sha256(path)}
    if any(one.method.needs_prior for one in variants):
        from stylesr_jax.flow import load_prior

        parts["prior"] = load_prior(parts["generator"], path=prior)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(parts["prior"]):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        identity["prior_sha256"] = digest.hexdigest()
    if any(one.method.needs_perceptual for one in variants):
        from stylesr_jax.features import load_features

        parts["perceptual"] = load_features("vgg16")
    return {**parts, "identity": identity}


# --- Rows -----------------------------------------------------------------------------------


Row = dict[str, Any]


def append_row(path: Path, row: Row) -> Row:
    """Append one JSON line with a single write, so that a kill leaves it whole or not at all.

    Returns:
        The row as it will be read again: values that are not finite are None.
    """
    row = _jsonable(row)
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


def _jsonable(value: Any) -> Any:
    """NaN and infinities become None, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(name): _jsonable(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a file; lines that are not whole are passed over."""
    rows = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and "fingerprint" in row:
                    rows.append(row)
    return rows


def _fingerprint(plan: Plan, subject: Subject, one: Variant) -> str:
    """A hash of everything that decides a row, so that only equal work is taken over."""
    facts = {
        "image": [subject.name, subject.sha256],
        "method": one.method.name,
        "settings": dict(one.settings),
        "identity": {
            name: value
            for name, value in plan.identity.items()
            if one.method.needs_prior or not name.startswith("prior")
        },
        "lr_size": plan.lr_size,
        "degradation": str(plan.degradation),
        "truth": plan.truth,
        "solutions": plan.solutions,
        "seed": plan.seed,
        "sizes": dataclasses.asdict(plan.sizes),
        "inception": plan.inception,
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

    from stylesr_jax import store

    stacked = {name: np.stack([f[name] for f in features]) for name in features[0]}
    with store.atomic_path(path) as temporary, open(temporary, "wb") as file:
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
    from stylesr_jax import store

    names = [path.name for path in plan.images]
    labels = [ORIGINAL, *(_slug(one.label) for one in plan.variants)]
    for kind, found in (("images", names), ("methods", labels)):
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise UserError(f"two {kind} are called {', '.join(twice)}; give them other names")
    probe = plan.out / ".write-test"
    with store.atomic_path(probe):
        pass
    probe.unlink()
    work = _Work(plan, say)
    together = 1 if plan.truth else max(plan.batch // plan.solutions, 1)
    interrupted = False
    try:
        for i in range(0, len(plan.images), together):
            work.do(plan.images[i : i + together])
    except KeyboardInterrupt:
        interrupted = True
    return Outcome(work.rows, tuple(work.failed), interrupted)


class _Work:
    """The loop over images and variants: what is done, what failed, and how long it takes."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan, self.say = plan, say
        self.scorer = Scorer(plan.sizes, plan.inception)
        self.file = plan.out / "rows.jsonl"
        found = read_rows(self.file)
        self.known = {row["fingerprint"]: row for row in found if row["status"] == "ok"}
        self.rows: dict[str, dict[str, Row]] = {}
        self.failed: list[tuple[str, str, str]] = []
        self.total = len(plan.images) * len(plan.variants)
        self.done = self.worked = 0
        self.spent = 0.0

    def do(self, paths: Sequence[Path]) -> None:
        """All variants on some images, which are searched together as far as they fit."""
        subjects: list[Subject] = []
        for path in paths:
            try:
                subject = prepare(self.plan, path)
                self.rows[subject.name] = {ORIGINAL: self._original(subject)}
                subjects.append(subject)
            except Exception as error:
                for one in self.plan.variants:
                    self._fail(path.name, one, error)
        for one in self.plan.variants:
            left = [subject for subject in subjects if not self._take_over(subject, one)]
            for shape in {subject.observation.target.shape: None for subject in left}:
                self._solve([s for s in left if s.observation.target.shape == shape], one)

    def _original(self, subject: Subject) -> Row:
        """What can be said of the original itself: NIQE, and its features."""
        facts = f"{subject.name} {subject.sha256} {self.plan.sizes} {self.plan.inception}"
        fingerprint = hashlib.sha256(facts.encode()).hexdigest()[:24]
        saved = features_path(self.plan, ORIGINAL, subject.name)
        if fingerprint in self.known and saved.is_file():
            return self.known[fingerprint]
        save_features(saved, [self.scorer.features(subject.original)])
        row = {
            "image": subject.name,
            "label": ORIGINAL,
            "fingerprint": fingerprint,
            "status": "ok",
            "solutions": [{"niqe": self.scorer.niqe(subject.original)}],
        }
        return append_row(self.file, row)

    def _take_over(self, subject: Subject, one: Variant) -> bool:
        """Whether an earlier run did this very work; its row is taken over then."""
        row = self.known.get(_fingerprint(self.plan, subject, one))
        pictures = [
            picture_path(self.plan, one, subject.name, i) for i in range(self.plan.solutions)
        ]
        files = [features_path(self.plan, one.label, subject.name), *pictures]
        if row is None or not all(file.is_file() for file in files):
            return False
        self.rows[subject.name][one.label] = row
        self._report(subject.name, one, "already done")
        return True

    def _solve(self, subjects: Sequence[Subject], one: Variant) -> None:
        from stylesr_jax.solve import key_of, solve

        plan, began = self.plan, time.monotonic()
        try:
            results = solve(
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
                batch=plan.batch,
            )
        except Exception as error:
            if len(subjects) > 1:  # the others of the batch may be sound
                for subject in subjects:
                    self._solve([subject], one)
            else:
                self._fail(subjects[0].name, one, error)
            return
        if any(result.interrupted for result in results):
            raise KeyboardInterrupt
        for subject, result in zip(subjects, results, strict=True):
            try:
                row = self._scored(subject, one, result)
            except Exception as error:
                self._fail(subject.name, one, error)
                continue
            self.rows[subject.name][one.label] = append_row(self.file, row)
            seconds = (time.monotonic() - began) / len(subjects)
            self.worked += 1
            self.spent += seconds
            self._report(subject.name, one, f"{seconds:.0f} s; {_in_short(row)}")

    def _scored(self, subject: Subject, one: Variant, result: "Result") -> Row:
        """Write the pictures and features of a result, and return its row."""
        from stylesr_jax.images import write_png

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
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        message = kind + (str(error).splitlines() or [""])[0]
        self.failed.append((image, one.label, message))
        self._report(image, one, f"FAILED: {message}")

    def _report(self, image: str, one: Variant, text: str) -> None:
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
