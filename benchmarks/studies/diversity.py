"""Figures 4 and 7 of RLS: several solutions for one small image, against PULSE's.

python -m benchmarks.studies.diversity --images DIR --limit 1 --solutions 8 --steps 100
"""

import argparse
import sys
from pathlib import Path

from benchmarks.studies import common

METHODS = "PULSE=pulse@paper,RLS=rls,RLS diverse=rls@diverse"
NOTE = """\
Diversity is the mean over all pairs of an image's solutions, LPIPS-VGG or absolute pixel
difference. Read diversity with the low-resolution L1: solutions that ignore the input are diverse
too. `solutions.jpg` shows each method's solutions for the public-domain
portrait, the original before its input."""


def study(args: argparse.Namespace) -> None:
    """Several solutions of each image, their spread, and a picture of those of the portrait."""
    variants = common.variants_of(common.named(args.methods), args)
    setting = common.setting(args, variants)
    summary = common.measure(setting, variants, "numbers", solutions=args.solutions)
    source = common.source_of(args, setting)
    title = f"Figures 4 and 7: {args.solutions} solutions for one image"
    common.keep_table(args, title, NOTE, {"Scores": summary}, source)
    plan = common.show(setting, variants, "numbers", solutions=args.solutions)
    common.save_grid(Path(args.out) / "solutions.jpg", common.solutions_grid(plan))


if __name__ == "__main__":
    parser = common.options("diversity", __doc__, limit=1, pictures=1)
    parser.add_argument("--methods", default=METHODS, help=f"LABEL=METHOD@PRESET,... ({METHODS})")
    parser.add_argument("--solutions", type=int, default=8, metavar="N")
    sys.exit(common.run(study, parser))
