"""Figure 9 of RLS: the weights of P_w and of P_gauss, each alone over several decades.

python -m benchmarks.studies.sweeps --images DIR --limit 12 --steps 100
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import load_pyplot
from benchmarks.studies import common
from stylesr_jax.metrics.scorer import MEASURES

SWEPT = {"lambda_w": "P_w", "lambda_g": "P_gauss"}
WEIGHTS = "0,0.001,0.01,0.1,1,10"
SHOWN = ("lpips_vgg", "niqe", "low_l1", "psnr")
NOTE = """\
Each weight is swept with the other regularising weights at 0 and everything else as the default
preset has it, the mean as likelihood included: published weights belong to a sum. `sweeps.png`
plots the means with standard errors; weight 0 is at the left end. `examples-lambda_w.jpg` and
`examples-lambda_g.jpg` show the portrait at each weight."""


def swept(setting: str, weights: list[float]) -> dict[str, str]:
    """One variant for each weight of a setting, the others at 0."""
    zero = "".join(f":{name}=0" for name in ("lambda_w", "lambda_g", "lambda_c"))
    return {f"{setting} = {weight:g}": f"rls{zero}:{setting}={weight}" for weight in weights}


def draw(path: Path, weights: list[float], tables: dict[str, dict[str, Any]]) -> None:
    """Scores against weights, one panel for each score, one curve for each setting."""
    pyplot = load_pyplot()

    least = min(w for w in weights if w > 0)
    places = [w or least / 10 for w in weights]
    figure, axes = pyplot.subplots(1, len(SHOWN), figsize=(4 * len(SHOWN), 3.4))
    for axis, name in zip(axes, SHOWN, strict=True):
        for setting, summary in tables.items():
            entries = [summary["table"][label].get(name) for label in swept(setting, weights)]
            if None in entries:
                continue
            means = [entry["mean"] for entry in entries]
            errors = [entry["std"] / entry["n"] ** 0.5 for entry in entries]
            axis.errorbar(
                places, means, errors, marker="o", capsize=3, label=f"λ of {SWEPT[setting]}"
            )
        axis.set_xscale("log")
        axis.set_xticks(places, [f"{w:g}" for w in weights])
        axis.minorticks_off()
        axis.set_title(MEASURES[name].heading + (" ↑" if MEASURES[name].better > 0 else " ↓"))
        axis.set_xlabel("weight")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def study(args: argparse.Namespace) -> None:
    """One evaluation for each swept weight, a chart of both, and a row of pictures each."""
    weights = [float(text) for text in args.weights.split(",")]
    sweeps = {s: common.variants_of(swept(s, weights), args) for s in SWEPT}
    setting = common.setting(args, [one for sweep in sweeps.values() for one in sweep])
    out = Path(args.out)
    tables = {name: common.measure(setting, sweep, name) for name, sweep in sweeps.items()}
    source = common.source_of(args, setting)
    common.keep_table(args, "Figure 9: sweeps", NOTE, tables, source)
    draw(out / "sweeps.png", weights, tables)
    for name, sweep in sweeps.items():
        plan = common.show(setting, sweep, name)
        common.save_grid(out / f"examples-{name}.jpg", common.examples(plan))


if __name__ == "__main__":
    parser = common.options("sweeps", __doc__, limit=12, pictures=1)
    parser.add_argument("--weights", default=WEIGHTS, help=f"default {WEIGHTS}")
    sys.exit(common.run(study, parser))
