"""Figures 3 and 6 of RLS: inputs with more than the bicubic shrinking that searches assume.

python -m benchmarks.studies.robustness --images DIR --limit 12 --steps 100
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.studies import common
from stylesr_jax.degradations import parse

METHODS = "bicubic,PULSE=pulse@paper,RLS=rls"
# {n} is the low-resolution size; blurs scale with the generator's resolution. RLS's motion blur is
# 100 px long at 1024 px, in a random direction; the other strengths are not published.
DEGRADATIONS = {
    "none": "bicubic({n})",
    "Gaussian noise": "bicubic({n})|noise(0.05)",
    "salt and pepper": "bicubic({n})|salt_pepper(0.05)",
    "Gaussian blur": "blur({blur:g})|bicubic({n})",
    "motion blur": "motion({motion:g})|bicubic({n})",
    "JPEG": "bicubic({n})|jpeg(30)",
}
NOTE = """\
Every search assumes plain bicubic shrinking, as in the paper; each section names the degradation of
the inputs. Blurs act at the generator's resolution, before shrinking; noise, salt and pepper and
JPEG act on the small image. Scores are against the clean original, low-resolution L1 and PSNR
against the damaged input. `robustness.jpg` shows the public-domain portrait."""


def study(args: argparse.Namespace) -> None:
    """One evaluation for each degradation, numbers and picture."""
    variants = common.variants_of(common.named(args.methods), args)
    setting = common.setting(args, variants)
    resolution = setting.parts["generator"].resolution
    sizes = {"n": args.lr_size, "motion": 100 * resolution / 1024, "blur": 30 * resolution / 1024}
    tables: dict[str, Any] = {}
    grid: common.Grid = []
    for number, (name, pattern) in enumerate(DEGRADATIONS.items()):
        text = pattern.format(**sizes)
        part, degradation = f"{number}-{name.replace(' ', '-')}", parse(text)
        tables[f"{name}: `{text}`"] = common.measure(
            setting, variants, part, degradation=degradation
        )
        plan = common.show(setting, variants, part, degradation=degradation)
        grid.append(common.row_of(plan, plan.images[0], lead=name))
        common.save_grid(Path(args.out) / "robustness.jpg", grid)
        common.keep_table(
            args,
            "Figures 3 and 6: robustness",
            NOTE,
            tables,
            common.source_of(args, setting),
        )


if __name__ == "__main__":
    parser = common.options("robustness", __doc__, limit=12, pictures=1)
    parser.add_argument("--methods", default=METHODS, help=f"default {METHODS}")
    sys.exit(common.run(study, parser))
