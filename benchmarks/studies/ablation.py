"""Figure 8 of RLS: the default method with each of its parts taken away, or added.

python -m benchmarks.studies.ablation --images DIR --limit 12 --steps 100
"""

import argparse
import sys
from pathlib import Path

from benchmarks.studies import common
from stylesr_jax.methods.rls import RLS

TERMS = {"lambda_w": "P_w", "lambda_g": "P_gauss", "lambda_c": "P_cross"}
NOTE = """\
Each row but the first has one part of the default preset taken away, replaced or added. Terms are
added at their published weights, with the published sum as likelihood."""

PARTS = {
    "RLS": "rls",
    "without the phase in W": "rls:style_steps=0",
    "without the phase in W+": "rls:space=w",
    "without the correction": "rls:fidelity=0",
    "without small images": "rls:coarse=false",
    "without the norm of styles": "rls:lambda_n=0",
    "without their spread": "rls:lambda_s=0",
    "normalised gradients": "rls:optimiser=normalised:coordinates=raw",
    **{
        f"with {term}": f"rls:reduction=sum:{setting}={RLS.presets['paper'][setting]}"
        for setting, term in TERMS.items()
    },
}

# The same for the published settings: raw w; 500 steps with --own-steps.
PUBLISHED = {
    "RLS, published": "rls@paper",
    "without P_gauss": "rls@paper-no-gauss",
    "without P_w": "rls@paper-no-prior",
    "without P_cross": "rls@paper-no-cross",
    "W instead of W+": "rls@paper-w",
}


def published_texts(rate: float | None) -> dict[str, str]:
    """The published settings and their ablations, perhaps at another rate."""
    more = "" if rate is None else f":learning_rate={rate:g}"
    return {label: text + more for label, text in PUBLISHED.items()}


def study(args: argparse.Namespace) -> None:
    """Numbers on --images, a picture of the faces that may be shown."""
    variants = common.variants_of(PARTS, args)
    setting = common.setting(args, variants)
    tables = {"Scores": common.measure(setting, variants, "numbers")}
    if args.published:
        published = common.variants_of(published_texts(args.rate), args)
        tables["Published settings"] = common.measure(setting, published, "published")
    source = common.source_of(args, setting)
    common.keep_table(args, "Figure 8: ablations", NOTE, tables, source)
    plan = common.show(setting, variants, "numbers")
    common.save_grid(Path(args.out) / "examples.jpg", common.examples(plan))


if __name__ == "__main__":
    parser = common.options("ablation", __doc__, limit=12, pictures=2)
    parser.add_argument(
        "--published", action="store_true", help="a second table, of the published settings"
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="of the published settings (default: their 0.5, at which searches in the default "
        "generator stay at their start)",
    )
    sys.exit(common.run(study, parser))
