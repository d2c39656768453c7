"""Table 1 of RLS: bicubic enlargement, PULSE, BRGM and RLS on the same faces, equal budgets.

python -m benchmarks.studies.table1 --images DIR --limit 12 --steps 100 --reference DIR|SHEET
"""

import argparse
import sys
from pathlib import Path

from benchmarks.studies import common

METHODS = "bicubic,PULSE=pulse@paper,BRGM=brgm@paper,RLS=rls"
NOTE = """\
The picture (`examples.jpg`) shows the public-domain portrait and faces drawn from the generator
itself, each degraded first. The methods start from the same low-resolution images and make the
same number of generator evaluations, schedules stretched over the budget; PULSE and BRGM have
their published settings unless the command says otherwise, RLS the default preset."""


def study(args: argparse.Namespace) -> None:
    """Numbers on --images, a picture of the faces that may be shown."""
    variants = common.variants_of(common.named(args.methods), args)
    setting = common.setting(args, variants)
    summary = common.measure(setting, variants, "numbers")
    title = f"Table 1: {args.lr_size} px -> {setting.parts['generator'].resolution} px"
    source = common.source_of(args, setting)
    common.keep_table(args, title, NOTE, {"Scores": summary}, source)
    plan = common.show(setting, variants, "numbers")
    common.save_grid(Path(args.out) / "examples.jpg", common.examples(plan))


if __name__ == "__main__":
    parser = common.options("table1", __doc__)
    parser.add_argument("--methods", default=METHODS, help=f"default {METHODS}")
    sys.exit(common.run(study, parser))
