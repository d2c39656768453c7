"""What the studies share: options, faces that may be shown, and files that are kept."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from stylesr_jax.cli.evaluate import evaluate
from stylesr_jax.errors import exit_code
from stylesr_jax.generators.base import Generator
from stylesr_jax.images.files import find_images, read_image, write_png
from stylesr_jax.images.grid import draw_grid
from stylesr_jax.loading import generator_from_file, generator_path
from stylesr_jax.metrics.scorer import Sizes
from stylesr_jax.runs.evaluation import EvaluationPlan, picture_path, prepare
from stylesr_jax.runs.evaluation import run as run_plan
from stylesr_jax.runs.plan import Variant, load_parts, variant
from stylesr_jax.runs.records import write_json
from stylesr_jax.runs.tables import markdown
from stylesr_jax.runtime import files
from stylesr_jax.runtime.startup import configure
from stylesr_jax.runtime.weights import DEFAULT

RESULTS = Path(__file__).resolve().parent.parent / "results"
PORTRAIT = Path(__file__).resolve().parent.parent.parent / "docs" / "images" / "astronaut.png"
FACE_SEED = 2024  # of the faces that the generator draws
PSI = 0.7  # their truncation
Grid = list[list[tuple[str, np.ndarray, bool] | None]]


def options(name: str, doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all studies have, described by the first line of their docstring.

    `defaults` replaces some of the options' values.
    """
    about = (doc or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog=f"python -m benchmarks.studies.{name}", description=about
    )
    add = parser.add_argument
    add("--images", metavar="DIR", help="faces for the numbers (default: drawn faces)")
    add("--limit", type=int, default=12, metavar="N", help="images for the numbers (default 12)")
    add("--pictures", type=int, default=3, metavar="N", help="images of the picture (default 3)")
    add("--steps", type=int, default=100, metavar="N", help="evaluations for each solution")
    add("--own-steps", action="store_true", help="as many as each preset says: not equal")
    add("--lr-size", type=int, default=16, metavar="N", help="default 16 px")
    add("--generator", metavar="NAME|PATH", help="default mobile-ffhq-1024")
    add("--prior", metavar="FILE")
    add("--seed", type=int, default=0, metavar="S")
    add("--reference", metavar="DIR|SHEET", help="pictures for the Fréchet distance")
    add("--inception", metavar="FILE|URL", help="Inception weights: only with them there is FID")
    add("--out", metavar="OUT", default=str(RESULTS / name), help="what is kept")
    add("--work", metavar="DIR", default=str(files.cache_dir() / "studies" / name))
    parser.set_defaults(command="", **defaults)
    return parser


def command_of(program: str, arguments: Sequence[str]) -> str:
    """The command as it is kept beside its results: without this machine's folders."""
    words = [program]
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if not word.startswith("--"):
            continue  # with its option
        name, _, value = word.partition("=")
        value = value or ("" if following.startswith("--") else following)
        value = {"--images": "FACES", "--reference": "PICTURES"}.get(name, value)
        if name in ("--generator", "--prior"):
            value = Path(value).name
        if name not in ("--work", "--out", "--source"):
            words += [name, shlex.quote(value)] if value else [name]
    return " ".join(words)


def variants_of(
    texts: Mapping[str, str] | Sequence[str], args: argparse.Namespace
) -> tuple[Variant, ...]:
    """Variants from "name@preset:setting=value", called as the mapping's keys say.

    They take --steps evaluations, or with --own-steps those of their presets.
    """
    named = texts if isinstance(texts, Mapping) else {text: text for text in texts}
    budget = None if args.own_steps else args.steps
    return tuple(
        dataclasses.replace(variant(text, evaluations=budget), label=label)
        for label, text in named.items()
    )


def named(methods: str) -> dict[str, str]:
    """Labels and texts of variants from "bicubic,PULSE=pulse@paper,...", as `variants_of` takes."""

    def pair(text: str) -> tuple[str, str]:
        label, equals, rest = text.partition("=")
        return (label, rest) if equals and ":" not in label else (text, text)

    return dict(pair(text) for text in methods.split(","))


def drawn_faces(generator: Generator, folder: Path, count: int) -> list[Path]:
    """Faces that may be shown: drawn with a fixed seed, truncated; written to `folder` once.

    A search in the same generator finds these more easily than photographs.
    """
    draw = jax.jit(lambda generator, ws, noise: generator.synthesise(ws, noise))
    paths = []
    for i in range(count):
        path = folder / f"drawn-{FACE_SEED}-{i}.png"
        paths.append(path)
        if path.is_file():
            continue
        z_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(FACE_SEED), i))
        w = generator.map_latents(jax.random.normal(z_key, (1, generator.z_dim)))
        mean = generator.statistics["w_mean"]
        ws = jax.numpy.repeat((mean + PSI * (w - mean))[:, None], generator.num_ws, axis=1)
        image = draw(generator, ws, generator.random_noise(noise_key))[0]
        write_png(path, np.asarray(image))
    return paths


@dataclasses.dataclass(frozen=True)
class Setting:
    """A study's options and what is loaded for it.

    Attributes:
        args: see `options`.
        parts: generator, prior, feature network and hashes, as `EvaluationPlan` takes them.
        measured: images of the numbers.
        shown: images of the picture, whose licence allows to keep it.
    """

    args: argparse.Namespace
    parts: dict[str, Any]
    measured: tuple[Path, ...]
    shown: tuple[Path, ...]

    def plan(
        self, images: Sequence[Path], variants: Sequence[Variant], name: str, **more: Any
    ) -> EvaluationPlan:
        """An evaluation of these images in the work folder."""
        args = self.args
        plan = EvaluationPlan(
            images=tuple(images),
            variants=tuple(variants),
            out=Path(args.work) / name,
            lr_size=args.lr_size,
            seed=args.seed,
            sizes=Sizes(),
            reference=Path(args.reference) if args.reference else None,
            inception=args.inception,
            **self.parts,
        )
        return dataclasses.replace(plan, **more)


def setting(args: argparse.Namespace, variants: Sequence[Variant]) -> Setting:
    """Load what the variants need and draw the faces that may be shown.

    Raises:
        UserError: a file is missing, or there is no prior for the generator.
    """
    parts = load_parts(variants, generator=args.generator, prior=args.prior)
    free = free_faces(args, args.pictures)
    if args.images:
        measured = find_images([args.images])[: args.limit]
    else:
        measured = free_faces(args, args.limit)
    return Setting(args, parts, tuple(measured), tuple(free))


def free_faces(args: argparse.Namespace, count: int) -> list[Path]:
    """The portrait, then drawn faces, `count` in all."""
    generator = generator_from_file(generator_path(args.generator or DEFAULT))
    faces = Path(args.work).parent / f"faces-{generator.name}"
    return [PORTRAIT, *drawn_faces(generator, faces, count - 1)][:count]


def measure(
    setting: Setting, variants: Sequence[Variant], name: str, **more: Any
) -> dict[str, Any]:
    """Evaluate the variants on the images of the numbers; returns the summary."""
    return evaluate(setting.plan(setting.measured, variants, name, **more), say=_say)


def show(setting: Setting, variants: Sequence[Variant], name: str, **more: Any) -> EvaluationPlan:
    """Evaluate the variants on the images that may be shown; returns the plan."""
    folder = f"{name}-shown" if setting.args.images else name  # the same images: nothing to do
    plan = setting.plan(setting.shown, variants, folder, **more)
    if run_plan(plan, say=_say).interrupted:
        raise KeyboardInterrupt
    return plan


_say: Callable[[str], None] = partial(print, flush=True)


def solution(plan: EvaluationPlan, one: Variant, image: str, index: int = 0) -> np.ndarray | None:
    """A solution's picture, or None if it failed."""
    path = picture_path(plan, one, image, index)
    return read_image(path) if path.is_file() else None


def save_grid(path: Path, grid: Grid) -> None:
    """A grid of pictures as a JPEG file of quality 90, which is a tenth of a PNG's size."""
    with files.atomic_path(path) as temporary:
        Image.fromarray(draw_grid(grid)).save(temporary, quality=90)


def keep_table(
    args: argparse.Namespace,
    title: str,
    note: str,
    tables: Mapping[str, Mapping[str, Any]],
    source: str,
) -> None:
    """Write OUT/README.md and OUT/table.json.

    Args:
        args: the study's options.
        title: heading.
        note: below the command, on how to read tables and pictures.
        tables: summaries of evaluations by heading.
        source: where the images of the numbers come from.
    """
    out = Path(args.out)
    text = f"# {title}\n\n"
    if args.command:
        text += f"Command: `{args.command}`\n\n"
    text += f"{note}\n\nImages of the numbers: {source}.\n"
    for heading, summary in tables.items():
        failed = [(f["image"], f["method"], f["message"]) for f in summary.get("failed", ())]
        text += f"\n## {heading}\n\n{markdown(summary, failed)}"
    with files.atomic_path(out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(out / "table.json", {"source": source, **tables})


def source_of(args: argparse.Namespace, setting: Setting) -> str:
    """The images of the numbers in words, without naming a folder."""
    if args.images is None:
        drawn = len(setting.measured) - 1
        return "the portrait" + f" and {drawn} faces drawn from the generator itself" * bool(drawn)
    return args.source or f"{len(setting.measured)} images given with --images"


def run(study: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> int:
    """Parse, run, and turn what the user can mend into one line."""
    parser.add_argument("--source", metavar="TEXT", help="what to call the images of the numbers")
    args = parser.parse_args()
    args.command = command_of(parser.prog, sys.argv[1:])
    configure()

    def work() -> None:
        study(args)
        print(f"written: {args.out}")

    return exit_code(work, interrupted="interrupted; the same command goes on")


# --- Pictures -------------------------------------------------------------------------------


def row_of(plan: EvaluationPlan, path: Path, *, lead: str = "") -> list[Any]:
    """Input, the first solution of every variant, and the original."""
    subject = prepare(plan, path)
    low = subject.observation.image
    cells: list[Any] = [(lead or f"input {low.shape[1]}x{low.shape[0]}", low, False)]
    for one in plan.variants:
        picture = solution(plan, one, path.name)
        cells.append(None if picture is None else (one.label, picture, True))
    return [*cells, ("original", subject.original, True)]


def examples(plan: EvaluationPlan) -> Grid:
    """A row for each image."""
    return [row_of(plan, path) for path in plan.images]


def solutions_grid(plan: EvaluationPlan, *, rows: int = 2) -> Grid:
    """Original and input, then `rows` rows of the first image's solutions by every variant."""
    path = plan.images[0]
    subject = prepare(plan, path)
    grid: Grid = []
    half = -(-plan.solutions // rows)
    for one in plan.variants:
        for first in range(0, plan.solutions, half):
            lead = ("original", subject.original, True)
            if first:
                low = subject.observation.image
                lead = (f"input {low.shape[1]}x{low.shape[0]}", low, False)
            cells: list[Any] = [lead]
            for i in range(first, min(first + half, plan.solutions)):
                picture = solution(plan, one, path.name, i)
                title = f"{one.label}, solution {i}"
                cells.append(None if picture is None else (title, picture, True))
            grid.append(cells)
    return grid
