"""Figure 8 of RLS: the default method with each of its parts taken away, or added.

python -m benchmarks.studies.ablation --images DIR --limit 12 --steps 100
"""

import argparse
import sys
from pathlib import Path

from benchmarks.studies import common
from stylesr_jax.methods.catalogue import RLS

TERMS = {"lambda_w": "P_w", "lambda_g": "P_gauss", "lambda_c": "P_cross"}
FINDINGS = """\
"without" is the default preset with that weight at 0; "with" adds a term that the default preset
leaves out, at its published weight. The last rows search W instead of W+, and w itself instead of
whitened coordinates."""


# The same for the published settings: raw w; 500 steps with --own-steps.
PUBLISHED = {
    "RLS, published": "rls@paper",
    "without P_gauss": "rls@paper-no-gauss",
    "without P_w": "rls@paper-no-prior",
    "without P_cross": "rls@paper-no-cross",
    "W instead of W+": "rls@paper-w",
}
STEPS = ":sketch_steps=200:steps=10:rate=cosine"  # the default's, for another rate


def published_texts(rate: float | None) -> dict[str, str]:
    """The published settings and their ablations; at another rate with the default's steps."""
    if rate is None:
        return PUBLISHED
    steps = f"{STEPS}:sketch_rate={rate:g}:learning_rate={rate / 4:g}"
    return {label: text + steps for label, text in PUBLISHED.items()}


def variants_texts() -> dict[str, str]:
    """The default and its changes, whatever the default holds."""
    texts = {"RLS": "rls"}
    for setting, term in TERMS.items():
        if RLS.settings[setting]:
            texts[f"without {term}"] = f"rls:{setting}=0"
        else:
            published = RLS.presets["paper"][setting]
            texts[f"with {term}"] = f"rls:{setting}={published}"
    other = "w" if RLS.settings["space"] == "w+" else "w+"
    texts[f"{other.upper()} instead of {str(RLS.settings['space']).upper()}"] = f"rls:space={other}"
    raw = "raw" if RLS.settings["coordinates"] != "raw" else "whitened"
    texts[f"{raw} coordinates"] = f"rls:coordinates={raw}"
    return texts


def study(args: argparse.Namespace) -> None:
    """Numbers on --images, a picture of the faces that may be shown."""
    variants = common.variants_of(variants_texts(), args)
    known = common.setting(args, variants)
    summary = common.measure(known, variants, "numbers")
    source = common.source_of(args, known)
    tables = {"Scores": summary}
    if args.published:
        published = common.variants_of(published_texts(args.rate), args)
        tables["Published settings"] = common.measure(known, published, "published")
    common.keep_table(args, "Figure 8: ablations", FINDINGS, tables, source)
    common.keep_rows(args, ["numbers", "published"] if args.published else ["numbers"])
    plan = common.show(known, variants, "numbers")
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
        help="of the published settings, with sketches at R and full images at R/4 (default: their "
        "500 full images at 0.5, which does not leave its start on the default generator)",
    )
    sys.exit(common.run(study, parser))
