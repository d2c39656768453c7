"""How good after how long? Residual, LPIPS and prior against wall time, for methods and presets.

    python -m benchmarks.quality_over_time --images DIR --limit 4 --out OUT

Every curve is a method with a preset; every point of it a whole search whose steps, and with them
its schedule, are scaled to a budget, so a point says what that method finds in that time (not
how a longer search stood there). Budgets are spaced evenly in the logarithm up to the preset's
own steps, or --evaluations. Seconds are those of the search; compiling, drawing the image and
scoring are left out.

Each search is a line of OUT/rows.jsonl as soon as it is done, and is not made again: a run that
was stopped goes on, and methods can be measured one after another into the same OUT. The plot and
the JSON always show what OUT holds.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import load_pyplot, machine_line, write_report
from benchmarks.studies.common import PORTRAIT
from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.images.files import find_images
from stylesr_jax.methods import METHODS, method_named
from stylesr_jax.metrics.scorer import Scorer
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.runs.evaluation import EvaluationPlan, prepare
from stylesr_jax.runs.plan import Variant, load_parts, variant
from stylesr_jax.runs.records import Row, append_row, read_rows
from stylesr_jax.runs.worker import Subject
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure
from stylesr_jax.solver.observation import key_of
from stylesr_jax.solver.solve import solve

PRESETS = tuple(
    dict.fromkeys(name for method in METHODS.values() for name in ("balanced", *method.presets))
)
SCORES = {
    "low_l1": "residual: low-resolution L1 ↓",
    "lpips_vgg": "LPIPS-VGG to the original ↓",
    "log_p": "prior: mean log p of the styles ↑",
}
STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))  # one for each preset
LEAST = 5  # steps of the smallest budget


def budgets(steps: int, points: int, cap: int | None) -> list[int]:
    """Up to `points` numbers of steps, spaced evenly in the logarithm, the last one `steps`."""
    last = steps if cap is None else min(steps, cap)
    if last <= 0:
        return [0]
    spaced = np.geomspace(min(LEAST, last), last, points if last > LEAST else 1)
    return sorted({round(float(value)) for value in spaced})


def curves(methods: Sequence[str], presets: Sequence[str]) -> list[Variant]:
    """Every method with every preset that it has; one curve for a method without a search."""
    found = []
    for name in methods:
        has = ("balanced", *method_named(name).presets)
        own = [variant(name, preset=p, evaluations=None) for p in presets if p in has]
        searching = [one for one in own if one.stages]
        found += searching or own[:1]
    return found


def fingerprint(
    subject: Subject, one: Variant, identity: Mapping[str, str], plan: EvaluationPlan
) -> str:
    """A hash of all that decides a search."""
    facts = [subject.name, subject.sha256, one.method.name, dict(one.settings), dict(identity)]
    facts += [plan.lr_size, plan.seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def search(plan: EvaluationPlan, subject: Subject, one: Variant) -> tuple[Any, float]:
    """One solution, and the seconds until its last step."""
    began = time.perf_counter()
    last = [began]

    def tick(*_: Any) -> None:
        last[0] = time.perf_counter()

    (result,) = solve(
        [subject.observation],
        [key_of(plan.seed, subject.sha256)],
        generator=plan.generator,
        prior=plan.prior,
        perceptual=plan.perceptual,
        method=one.method,
        solutions=1,
        degradation=subject.degradation,
        on_progress=tick,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return result.solutions[0], (last[0] if one.evaluations else time.perf_counter()) - began


def measure_curve(
    plan: EvaluationPlan, curve: Variant, prior: Any, scorer: Scorer, options: argparse.Namespace
) -> None:
    """The searches of one curve that OUT does not hold yet."""
    file = plan.out / "rows.jsonl"
    known = {row["fingerprint"] for row in read_rows(file)}
    log_prob = jax.jit(lambda prior, ws: prior.log_prob_whitened(prior.whiten(ws)).mean())
    warm = False
    for path in plan.images:
        subject = prepare(plan, path)
        for budget in budgets(curve.evaluations, options.points, options.evaluations):
            one = replace(curve, method=curve.method.with_budget(budget))
            mark = fingerprint(subject, one, plan.identity, plan)
            if mark in known:
                continue
            if not warm:
                short = curve.method.with_budget(len(curve.stages))
                search(plan, subject, replace(curve, method=short))  # compiles
                warm = True
            solution, seconds = search(plan, subject, one)
            row: Row = {
                "fingerprint": mark,
                "image": subject.name,
                "method": curve.method.name,
                "preset": curve.preset,
                "evaluations": one.evaluations,
                "seconds": seconds,
                "low_l1": solution.residual_l1,
                "log_p": None,
                "generator": plan.generator.name,
                "lr_size": plan.lr_size,
                "machine": describe_machine(),
                **scorer.against(solution.image, subject.original),
            }
            if prior is not None and solution.latents is not None:
                row["log_p"] = float(log_prob(prior, jnp.asarray(solution.latents.ws)))
            append_row(file, row)
            print(_line(row), flush=True)


def _line(row: Row) -> str:
    scores = "  ".join(f"{n} {row[n]:.4g}" for n in SCORES if row[n] is not None)
    head = f"{row['image']}  {row['method']}@{row['preset']} {row['evaluations']} steps"
    return f"{head}  {row['seconds']:.1f} s  {scores}"


# --- summary --------------------------------------------------------------------------------


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for each curve and budget: median seconds and mean scores over its images."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["preset"], row["evaluations"]), []).append(row)
    entries = []
    for (method, preset, evaluations), own in groups.items():
        entry: dict[str, Any] = {
            "method": method,
            "preset": preset,
            "evaluations": evaluations,
            "images": len(own),
            "seconds": median(row["seconds"] for row in own),
        }
        for name in SCORES:
            values = [row[name] for row in own if row[name] is not None]
            entry[name] = mean(values) if values else None
        entries.append(entry)
    return sorted(entries, key=lambda e: (e["method"], e["preset"], e["evaluations"]))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The summary as Markdown; "x" is seconds a step over the first searching method's."""
    columns = ["evaluations", "images", "seconds", *SCORES]
    lines = ["| method | preset | " + " | ".join(columns) + " | seconds a step, x |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    base = next((e["seconds"] / e["evaluations"] for e in entries if e["evaluations"]), None)
    for entry in entries:
        cells = [_number(entry[column]) for column in columns]
        ratio = None
        if entry["evaluations"] and base:
            ratio = entry["seconds"] / entry["evaluations"] / base
        cells += [_number(ratio)]
        lines.append(f"| {entry['method']} | {entry['preset']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, entries: Sequence[dict[str, Any]], title: str) -> None:
    """Each score against seconds: a colour for each method, a line style for each preset.

    Raises:
        UserError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    from matplotlib.ticker import LogFormatter

    figure, axes = pyplot.subplots(1, len(SCORES), figsize=(16, 6.4), layout="constrained")
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    presets = list(dict.fromkeys(entry["preset"] for entry in entries))
    for axis, (score, heading) in zip(axes, SCORES.items(), strict=True):
        for method in methods:
            color = f"C{methods.index(method) % 10}"
            for preset in presets:
                own = [e for e in entries if (e["method"], e["preset"]) == (method, preset)]
                own = [e for e in own if e[score] is not None]
                if not own:
                    continue
                if not own[0]["evaluations"]:
                    axis.axhline(own[0][score], color=color, linewidth=1, label=method)
                    continue
                style = STYLES[presets.index(preset) % len(STYLES)]
                seconds = [e["seconds"] for e in own]
                values = [e[score] for e in own]
                axis.plot(seconds, values, ls=style, color=color, marker="o", markersize=4)
                axis.lines[-1].set_label(f"{method}, {preset}")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(LogFormatter())
        axis.xaxis.set_minor_formatter(LogFormatter())
        axis.set_xlabel("seconds of search")
        axis.set_title(heading)
    axes[-1].set_yscale("symlog", linthresh=1000.0)  # far from the prior it falls without bound
    highest = max((e["log_p"] for e in entries if e["log_p"] is not None), default=0.0)
    if highest < 0.0:
        axes[-1].set_ylim(top=highest / 2)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def keep(plan: EvaluationPlan, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Write OUT's table, plot and JSON from its rows of this setting; returns the summary."""
    rows = [
        row
        for row in read_rows(plan.out / "rows.jsonl")
        if (row["generator"], row["lr_size"]) == (plan.generator.name, plan.lr_size)
    ]
    entries = summarise(rows)
    title = f"{plan.lr_size} px -> {plan.generator.resolution} px, {plan.generator.name}"
    report = {
        "benchmark": "quality_over_time",
        "machine": machine,
        "setting": title,
        "entries": entries,
        "rows": rows,
    }
    write_report(plan.out / "quality_over_time.json", report)
    text = f"# Quality over time\n\n{title}; {machine_line(machine)}.\n\n{table(entries)}\n\n"
    text += "![residual, LPIPS and log p against seconds](quality_over_time.png)\n"
    (plan.out / "table.md").write_text(text)
    draw(plan.out / "quality_over_time.png", entries, title)
    return entries


def run(options: argparse.Namespace) -> None:
    """Measure curve after curve, and show all that OUT holds after each."""
    chosen = curves(options.methods.split(","), options.presets.split(","))
    parts = load_parts(chosen, generator=options.generator, prior=options.prior)
    prior = parts.get("prior")
    if prior is None:
        try:
            prior = load_prior(parts["generator"], path=options.prior)
        except UserError:
            print("no prior fits this generator: log p is left out", file=sys.stderr)
    plan = EvaluationPlan(
        images=tuple(find_images([options.images])[: options.limit]),
        variants=tuple(chosen),
        out=options.out,
        lr_size=options.lr_size,
        seed=options.seed,
        **parts,
    )
    plan.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    print(machine_line(machine))
    scorer = Scorer(plan.sizes)
    entries: list[dict[str, Any]] = []
    try:
        for curve in chosen:
            measure_curve(plan, curve, prior, scorer, options)
            entries = keep(plan, machine)
    except KeyboardInterrupt:
        keep(plan, machine)
        raise
    print(table(entries))


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--methods", default=",".join(METHODS), help="separated by commas (default: all)")
    add("--presets", default=",".join(PRESETS), help=f"default {','.join(PRESETS)}")
    add("--images", default=str(PORTRAIT), metavar="DIR", help="default: the demo's portrait")
    add("--limit", type=int, default=4, metavar="N", help="images at most (default 4)")
    add("--lr-size", type=int, default=16, metavar="N", help="default 16 px")
    add("--points", type=int, default=5, metavar="N", help="budgets of a curve (default 5)")
    add("--evaluations", type=int, metavar="N", help="cap on a search's steps")
    add("--generator", metavar="NAME|PATH")
    add("--prior", metavar="FILE")
    add("--seed", type=int, default=0, metavar="S")
    add("--out", type=Path, required=True, metavar="OUT")
    options = parser.parse_args(argv)
    configure()
    again = "interrupted; the same command goes on from here"
    return exit_code(lambda: run(options), interrupted=again)


if __name__ == "__main__":
    sys.exit(main())
