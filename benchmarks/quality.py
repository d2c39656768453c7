"""How good are the methods on photographs? Methods against sizes of input, and damaged inputs.

    python -m benchmarks.quality --images DIR [--cases 32,16,64,128,jpeg75,jpeg50,noise] [--out OUT]

A case is the size of the inputs, 32 px of damaged inputs ("jpeg75", "jpeg50", "noise"), or
"portrait": the shipped portrait at 32 px, which anyone can repeat. The case "32" has every method
and --limit images, the others --methods and --few images. Without --images all is measured on the
portrait.

A method is scored with its corrected solutions and, under "NAME, uncorrected", with what the
generator drew, from the same search, which is how the baselines were published; NAME@paper has the
published steps and rates too. LPIPS and PSNR are at 256 px, NIQE at 512 px. Fewer images than
there are are spread over their order. OUT has tables, numbers and the command; no picture. A run
that was stopped goes on by the same command.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.studies.common import PORTRAIT, RESULTS, command_of, keep_table
from stylesr_jax.degradations import parse
from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.images.files import find_images
from stylesr_jax.methods import METHODS
from stylesr_jax.runs.evaluation import EvaluationJob, EvaluationPlan, run
from stylesr_jax.runs.plan import Variant, load_parts, variant
from stylesr_jax.runs.tables import write_report
from stylesr_jax.runs.worker import Source, Subject
from stylesr_jax.runtime import files
from stylesr_jax.runtime.startup import configure
from stylesr_jax.solver.observation import on_crop
from stylesr_jax.solver.rendering import degrade, residuals
from stylesr_jax.solver.result import Result, Solution

COMPARED = "bicubic,rls,robust,pulse,brgm"
FULL = "32"  # the case of every method and every image
DAMAGE = {"jpeg75": "jpeg(75)", "jpeg50": "jpeg(50)", "noise": "noise(0.05)"}
CASES = ("32", "portrait", "16", "64", "128", *DAMAGE)
UNCORRECTED = ", uncorrected"
NOTE = """\
Each search is scored twice: corrected, and "uncorrected" as the generator drew it, which is how the
baselines were published. Inputs are shrunk bicubically; damaged ones are shrunk to 32 px first, and
every search assumes plain bicubic shrinking."""

say: Callable[[str], None] = partial(print, flush=True)


# --- One search, two rows -------------------------------------------------------------------


def pair(text: str, evaluations: int | None) -> tuple[Variant, ...]:
    """A method with and without the correction; one without a search as it is."""
    one = variant(text, evaluations=evaluations)
    if not one.stages:
        return (one,)
    with_it, without = (one.method.changed({"fidelity": share}) for share in (1.0, 0.0))
    return (
        dataclasses.replace(one, method=with_it),
        Variant(one.label + UNCORRECTED, without, one.preset),
    )


def uncorrected(subject: Subject, result: Result) -> Result:
    """A result with the images that the generator drew."""
    degradation = on_crop(subject.degradation, subject.observation)

    def drawn(solution: Solution) -> Solution:
        low = degrade(degradation, solution.generated)
        l1, psnr = residuals(low, subject.observation.image)
        return dataclasses.replace(
            solution,
            image=solution.generated,
            correction=None,
            low=low,
            residual_l1=l1,
            residual_psnr=psnr,
        )

    return dataclasses.replace(result, solutions=tuple(map(drawn, result.solutions)))


class PairedJob(EvaluationJob):
    """An evaluation whose variants come in pairs: the second is scored with the first's search."""

    def __init__(self, plan: EvaluationPlan, say: Callable[[str], None]) -> None:
        super().__init__(plan, say)
        by_label = {one.label: one for one in plan.variants}
        self.partners = {
            label: by_label[label + UNCORRECTED]
            for label in by_label
            if label + UNCORRECTED in by_label
        }

    def is_done(self, source: Source, variant: Variant) -> bool:
        """Second ones are never searched for; first ones are done with both rows."""
        if variant.label.endswith(UNCORRECTED):
            return True
        partner = self.partners.get(variant.label)
        return super().is_done(source, variant) and (
            partner is None or super().is_done(source, partner)
        )

    def write(self, subject: Subject, variant: Variant, result: Result) -> None:
        """Both rows of a search."""
        super().write(subject, variant, result)
        if variant.label in self.partners:
            super().write(subject, self.partners[variant.label], uncorrected(subject, result))


# --- Cases ----------------------------------------------------------------------------------


class Case(NamedTuple):
    """One table.

    Attributes:
        heading: what it is of.
        size: px of the longer side of the inputs.
        damage: what happens to them after shrinking, as `parse` reads it, or None.
        images: of the originals.
        variants: in the order of the table.
    """

    heading: str
    size: int
    damage: str | None
    images: tuple[Path, ...]
    variants: tuple[Variant, ...]


def case_of(
    name: str, images: Sequence[Path], methods: Sequence[Variant], args: argparse.Namespace
) -> Case:
    """The case of a name.

    Raises:
        UserError: there is no such case.
    """
    some = evenly(images, args.few)
    if name == "portrait":
        return Case("the portrait, 32 px", 32, None, (PORTRAIT,), tuple(methods))
    if name in DAMAGE:
        return Case(f"32 px, {DAMAGE[name]}", 32, DAMAGE[name], some, tuple(methods))
    if not name.isdecimal() or not 4 <= int(name) <= 256:
        raise UserError(f"--cases {name}: a size from 4 to 256 px, portrait, {', '.join(DAMAGE)}")
    if name != FULL:
        return Case(f"{name} px", int(name), None, some, tuple(methods))
    return Case(f"{name} px", int(name), None, evenly(images, args.limit), every(methods, args))


def evenly(images: Sequence[Path], count: int) -> tuple[Path, ...]:
    """So many of the images, spread over their order, as folders often sort by source."""
    kept = min(count, len(images))
    return tuple(images[i * len(images) // kept] for i in range(kept))


def every(methods: Sequence[Variant], args: argparse.Namespace) -> tuple[Variant, ...]:
    """The methods that are compared, and all others with their default presets."""
    there = {one.method.name for one in methods}
    others = [name for name in METHODS if name not in there]
    return (*methods, *pairs(others, args.evaluations))


def pairs(texts: Sequence[str], evaluations: int | None) -> tuple[Variant, ...]:
    """The variants of several methods."""
    return tuple(one for text in texts for one in pair(text, evaluations))


def measure(case: Case, out: Path, parts: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What is left of a case, and its summary."""
    damaged = f"bicubic({case.size})|{case.damage}"
    plan = EvaluationPlan(
        images=case.images,
        variants=case.variants,
        out=out,
        lr_size=case.size,
        degradation=parse(damaged) if case.damage else None,
        seed=seed,
        **parts,
    )
    outcome = run(plan, say=say, job=PairedJob(plan, say))
    summary = write_report(plan, outcome)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return summary


def overview(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """LPIPS-VGG of every method in every case, with the images on which it beats bicubic."""
    labels = dict.fromkeys(label for summary in tables.values() for label in summary["by_image"])
    lines = ["| LPIPS-VGG ↓ (beats bicubic on) | " + " | ".join(tables) + " |"]
    lines.append("|---|" + "---:|" * len(tables))
    for label in labels:
        cells = " | ".join(_cell(summary, label) for summary in tables.values())
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def _cell(summary: Mapping[str, Any], label: str) -> str:
    if label not in summary["by_image"]:
        return ""
    text = f"{summary['table'][label]['lpips_vgg']['mean']:.3f}"
    beaten = summary["by_image"][label].get("beats_bicubic")
    return f"{text} ({beaten['images']} of {beaten['n']})" if beaten else text


# --- The command ----------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    """Case after case; OUT shows those that are done."""
    images = find_images([args.images]) if args.images else [PORTRAIT]
    methods = pairs(args.methods.split(","), args.evaluations)
    names = [name for name in args.cases.split(",") if args.images or name != "portrait"]
    cases = {name: case_of(name, images, methods, args) for name in names}
    variants = [one for case in cases.values() for one in case.variants]
    parts = load_parts(variants, generator=args.generator, prior=args.prior)
    given = "photographs given with --images" if args.images else "the portrait"
    tables: dict[str, Any] = {}
    for name, case in cases.items():
        say(f"\n{case.heading}")
        tables[case.heading] = measure(case, Path(args.work) / name, parts, args.seed)
        say((Path(args.work) / name / "table.md").read_text(encoding="utf-8"))
        note = f"{NOTE}\n\n{overview(tables)}"
        keep_table(args, "Quality", note, tables, args.source or given)
    say(overview(tables))
    say(f"written: {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m benchmarks.quality",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("--images", metavar="DIR", help="photographs (default: the shipped portrait)")
    add("--limit", type=int, default=16, metavar="N", help="images at 32 px (default 16)")
    add("--few", type=int, default=8, metavar="N", help="images of other cases (default 8)")
    add("--cases", default=",".join(CASES), help=f"default {','.join(CASES)}")
    add("--methods", default=COMPARED, help=f"in every case (default {COMPARED})")
    add("--evaluations", type=int, metavar="N", help="of each solution, not the presets'")
    add("--generator", metavar="NAME|PATH", help="default mobile-ffhq-1024")
    add("--prior", metavar="FILE")
    add("--seed", type=int, default=0, metavar="S")
    add("--source", metavar="TEXT", help="what to call the images")
    add("--out", metavar="OUT", default=str(RESULTS / "quality"), help="tables and numbers")
    add("--work", metavar="DIR", default=str(files.cache_dir() / "quality"), help="searches")
    arguments = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(arguments)
    args.command = command_of(parser.prog, arguments)
    configure()
    again = "interrupted; the same command goes on"
    return exit_code(lambda: compare(args), interrupted=again)


if __name__ == "__main__":
    sys.exit(main())
