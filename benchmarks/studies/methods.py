"""All methods on one face: the picture of the README.

python -m benchmarks.studies.methods --lr-size 32 --steps 100
"""

import argparse
import sys
from pathlib import Path

from benchmarks.studies import common
from stylesr_jax.methods import METHODS

COLUMNS = 4
NOTE = """\
`methods.jpg` shows every method on the public-domain portrait, with default presets and as many
generator evaluations as the table says."""


def study(args: argparse.Namespace) -> None:
    """Every method on the faces that may be shown, and a picture of the portrait's solutions."""
    names = args.methods.split(",") if args.methods else list(METHODS)
    variants = common.variants_of(names, args)
    setting = common.setting(args, variants)
    summary = common.measure(setting, variants, "numbers")
    source = common.source_of(args, setting)
    common.keep_table(args, "All methods", NOTE, {"Scores": summary}, source)
    plan = common.show(setting, variants, "numbers")
    *cells, original = common.row_of(plan, plan.images[0])
    cells.insert(0, original)
    grid = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    common.save_grid(Path(args.out) / "methods.jpg", grid)


if __name__ == "__main__":
    parser = common.options("methods", __doc__, limit=1, pictures=1, lr_size=32)
    parser.add_argument("--methods", metavar="NAMES", help="default: all there are")
    sys.exit(common.run(study, parser))
