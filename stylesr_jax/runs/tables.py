"""What an evaluation leaves to read: table.md, table.json, rows.csv and figures."""

import csv
import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stylesr_jax.errors import UserError
from stylesr_jax.images.files import find_images, read_image, write_png
from stylesr_jax.images.grid import draw_grid
from stylesr_jax.images.kinds import printable
from stylesr_jax.metrics.image import frechet_distance
from stylesr_jax.metrics.scorer import FRECHET, MEASURES, mean_scores
from stylesr_jax.runs.evaluation import (
    ORIGINAL,
    EvaluationPlan,
    Example,
    Outcome,
    damaged,
    example_of,
    features_path,
    picture_path,
    prepare,
    read_features,
    save_features,
    scorer_of,
)
from stylesr_jax.runs.records import Row, write_json
from stylesr_jax.runtime import files
from stylesr_jax.runtime.machine import describe_machine

Rows = Mapping[str, Mapping[str, Row]]  # by image and label

# --- The table ------------------------------------------------------------------------------


def summarise(plan: EvaluationPlan, outcome: Outcome) -> dict[str, Any]:
    """Means and deviations over the images that every variant finished, and what they mean."""
    labels = [v.label for v in plan.variants]
    complete = [name for name, row in outcome.rows.items() if all(k in row for k in labels)]
    table: dict[str, Any] = {}
    for label in [*labels, ORIGINAL]:
        entry: dict[str, Any] = {}
        means = [mean_scores(outcome.rows[name][label]) for name in complete]
        for measure in MEASURES:
            values = [m[measure] for m in means if m.get(measure) is not None]
            if values:
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0  # type: ignore
                entry[measure] = {
                    "mean": statistics.fmean(values),  # type: ignore[arg-type]
                    "std": deviation,
                    "n": len(values),
                }
        table[label] = entry
    facts = about(plan, len(complete))
    if plan.reference is not None and len(complete) > 1:
        reference = reference_features(plan)
        facts["reference_pictures"] = len(next(iter(reference.values())))
        for label, entry in table.items():
            entry |= _frechet(plan, label, complete, reference)
    by_image = _by_image(plan, outcome.rows, complete)
    return {"about": facts, "table": table, "by_image": by_image, "images": complete}


def _by_image(plan: EvaluationPlan, rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Each variant's worst image, and on how many it beats bicubic, in LPIPS-VGG."""
    scores = {}
    for variant in plan.variants:
        means = {name: mean_scores(rows[name][variant.label])["lpips_vgg"] for name in names}
        scores[variant.label] = {name: value for name, value in means.items() if value is not None}
    floor = next((v.label for v in plan.variants if v.method.name == "bicubic"), None)
    by_label: dict[str, Any] = {}
    for label, of_images in scores.items():
        if not of_images:
            continue
        worst = max(of_images, key=lambda name: of_images[name])
        by_label[label] = {"worst": {"image": worst, "lpips_vgg": of_images[worst]}}
        if floor is not None and label != floor:
            both = [name for name in of_images if name in scores[floor]]
            beaten = sum(of_images[name] < scores[floor][name] for name in both)
            by_label[label]["beats_bicubic"] = {"images": beaten, "n": len(both)}
    return by_label


def reference_features(plan: EvaluationPlan) -> dict[str, np.ndarray]:
    """Features (n, width) of the reference set, kept in OUT once computed.

    Raises:
        UserError: there are no two pictures that can be read.
    """
    assert plan.reference is not None
    is_sheet = plan.reference.is_file()
    pictures = [plan.reference] if is_sheet else find_images([str(plan.reference)])
    facts = [
        plan.sizes.frechet,
        plan.reference_tile,
        plan.inception,
        *(files.sha256(f) for f in pictures),
    ]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()
    saved = plan.out / "features" / f"reference-{digest[:16]}.npz"
    if saved.is_file():
        return read_features(saved)
    scorer = scorer_of(plan)
    features = []
    for path in pictures:
        image = read_image(path)
        tile = plan.reference_tile if is_sheet else max(image.shape)
        tops = range(0, max(image.shape[0] - tile, 0) + 1, tile)
        lefts = range(0, max(image.shape[1] - tile, 0) + 1, tile)
        parts = [image[y : y + tile, x : x + tile] for y in tops for x in lefts]
        try:
            features += [scorer.features(part) for part in parts]
        except UserError as error:
            raise UserError(f"{printable(path)}: {error}") from error
    if len(features) < 2:
        raise UserError(f"--reference {plan.reference} holds a single picture; give more")
    save_features(saved, features)
    return {name: np.stack([f[name] for f in features]) for name in features[0]}


def _frechet(
    plan: EvaluationPlan, label: str, names: Sequence[str], reference: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """A label's Fréchet distances to the reference set."""
    parts: dict[str, list[np.ndarray]] = {kind: [] for kind in reference}
    for name in names:
        path = features_path(plan, label, name)
        features_of = read_features(path)
        for kind, vectors in parts.items():
            if kind not in features_of or features_of[kind].shape[1] != reference[kind].shape[1]:
                raise damaged(path)
            vectors.append(features_of[kind])
    features = {kind: np.concatenate(vectors) for kind, vectors in parts.items()}
    return {
        kind: {
            "mean": float(frechet_distance(vectors, reference[kind])),
            "std": 0.0,
            "n": len(vectors),
        }
        for kind, vectors in features.items()
    }


def about(plan: EvaluationPlan, images: int) -> dict[str, Any]:
    """What a table is of: data, budgets, sizes, machine and versions."""
    return {
        **describe_machine(),
        "generator": plan.generator.name,
        "resolution": plan.generator.resolution,
        **{name: value[:16] for name, value in plan.identity.items()},
        "images": images,
        "lr_size": plan.observed_size,
        "degradation": str(plan.degradation or f"bicubic({plan.lr_size})"),
        "search_degradation": "truth" if plan.truth else "bicubic",
        "solutions": plan.solutions,
        "seed": plan.seed,
        "sizes": dataclasses.asdict(plan.sizes),
        "variants": {
            variant.label: {
                "method": variant.method.name,
                "preset": variant.preset,
                "evaluations": variant.evaluations,
                "settings": variant.settings,
            }
            for variant in plan.variants
        },
    }


def markdown(summary: Mapping[str, Any], failed: Sequence[tuple[str, str, str]] = ()) -> str:
    """The summary as a table with paragraphs on data, sizes and machine."""
    table = summary["table"]
    columns = _columns(summary)
    lines = [
        "| method | evaluations | " + " | ".join(columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for label in table:
        name = printable(label).replace("|", "\\|")
        used = summary["about"]["variants"].get(label, {}).get("evaluations", "")
        cells = " | ".join(cell(label) for cell in columns.values())
        lines.append(f"| {name} | {used} | {cells} |")
    text = "\n".join(lines) + "\n\n" + "\n\n".join(_notes(summary)) + "\n"
    if failed:
        text += "\nFailed:\n\n" + "".join(
            f"- {printable(image)}, {printable(label)}: {message}\n"
            for image, label, message in failed
        )
    return text


def _columns(summary: Mapping[str, Any]) -> dict[str, Callable[[str], str]]:
    """By their headings, what gives the text of a label's cell.

    Scores that some label has, then the comparison of images, then Fréchet distances.
    """
    table, by_image = summary["table"], summary["by_image"]
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    columns = {
        MEASURES[n].heading + arrows[MEASURES[n].better]: partial(_score, table, n)
        for n in _held(table, MEASURES)
    }
    if _compares_images(summary):
        columns["worst LPIPS ↓"] = partial(_worst, by_image)
        if any("beats_bicubic" in entry for entry in by_image.values()):
            columns["beats bicubic ↑"] = partial(_beaten, by_image)
    distances = {f"{FRECHET[n]} ↓": partial(_distance, table, n) for n in _held(table, FRECHET)}
    return columns | distances


def _held(table: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of some scores that some label has."""
    return [name for name in names if any(name in entry for entry in table.values())]


def _compares_images(summary: Mapping[str, Any]) -> bool:
    return summary["about"]["images"] > 1 and bool(summary["by_image"])


def _score(table: Mapping[str, Any], name: str, label: str) -> str:
    entry, digits = table[label].get(name), MEASURES[name].digits
    if entry is None:
        return ""
    text = f"{entry['mean']:.{digits}f}"
    return f"{text} ± {entry['std']:.{digits}f}" if entry["n"] > 1 else text


def _distance(table: Mapping[str, Any], name: str, label: str) -> str:
    return f"{table[label][name]['mean']:.1f}" if name in table[label] else ""


def _worst(by_image: Mapping[str, Any], label: str) -> str:
    return f"{by_image[label]['worst']['lpips_vgg']:.3f}" if label in by_image else ""


def _beaten(by_image: Mapping[str, Any], label: str) -> str:
    beaten = by_image.get(label, {}).get("beats_bicubic")
    return f"{beaten['images']} of {beaten['n']}" if beaten else ""


def _notes(summary: Mapping[str, Any]) -> list[str]:
    """Paragraphs below the table."""
    facts, table = summary["about"], summary["table"]
    sizes = facts["sizes"]
    size = "no size for all" if facts["lr_size"] is None else f"{facts['lr_size']} px"
    notes = [
        f"{facts['images']} images, {size} -> {facts['resolution']} px, "
        f"{facts['generator']}; inputs made by `{facts['degradation']}`, the search assumes "
        f"{'the same' if facts['search_degradation'] == 'truth' else 'plain bicubic'}; "
        f"{facts['solutions']} solution(s) for each image, seed {facts['seed']}.",
        "Mean ± standard deviation over images (solutions of an image averaged first). "
        "Evaluations: passes through the generator, forward and back, for one solution. "
        f"PSNR, SSIM, LPIPS and diversity at {sizes['score']} px, data range [-1, 1]; NIQE at "
        f"{sizes['niqe']} px; low-res L1 and PSNR compare the solution, degraded as the search "
        "assumes, with its input on [-1, 1].",
    ]
    if _compares_images(summary):
        notes[-1] += " Worst images, and those that beat bicubic, are by LPIPS-VGG."
    if distances := _held(table, FRECHET):
        counts = sorted({e[n]["n"] for e in table.values() for n in distances if n in e})
        notes.append(
            f"Fréchet-VGG16: Fréchet distance of mean VGG16 features at {sizes['frechet']} px to "
            f"{facts['reference_pictures']} reference pictures, from "
            f"{' or '.join(map(str, counts))} pictures a row. It is not FID, and with so few "
            "pictures biased upwards, alike for rows with equally many."
        )
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    notes.append(f"{facts['date']}, {facts['machine']}, {facts['device']}; {versions}.")
    return notes


def _write_csv(path: Path, rows: Rows) -> None:
    names = [n for n in MEASURES if not n.startswith("diversity")]
    extra = [n for n in MEASURES if n.startswith("diversity")]
    odd = "backslashreplace"  # names that are not UTF-8
    with (
        files.atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors=odd) as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", "method", "solution", *names, *extra, "steps", "status"])
        for image, by_label in rows.items():
            for label, row in by_label.items():
                for i, solution in enumerate(row["solutions"]):
                    values = [solution.get(n) for n in names] + [row.get(n) for n in extra]
                    values += [solution.get("steps"), solution.get("status", row["status"])]
                    writer.writerow([image, label, i, *("" if v is None else v for v in values)])


# --- Figures --------------------------------------------------------------------------------


def _example(plan: EvaluationPlan, outcome: Outcome, path: Path) -> Example:
    """The pictures of an image; read again if an earlier run did all of its work."""
    example = outcome.examples.get(path.name)
    return example_of(prepare(plan, path)) if example is None else example


def _draw_examples(plan: EvaluationPlan, outcome: Outcome) -> None:
    """OUT/examples.png: for each of the first images input, every variant's first, original."""
    labels = {variant.label for variant in plan.variants}
    shown = [path for path in plan.images if labels & outcome.rows.get(path.name, {}).keys()]
    grid = [_example_row(plan, outcome, path) for path in shown[: plan.figure_images]]
    if grid:
        write_png(plan.out / "examples.png", draw_grid(grid))


def _picture(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except UserError as error:
        raise damaged(path) from error


def _example_row(plan: EvaluationPlan, outcome: Outcome, path: Path) -> list[Any]:
    example, rows = _example(plan, outcome, path), outcome.rows[path.name]
    height, width = example.low.shape[:2]
    cells: list[Any] = [(f"input {width}x{height}", example.low, False)]
    for variant in plan.variants:
        if variant.label not in rows:
            cells.append(None)
            continue
        score = rows[variant.label]["solutions"][0]["lpips_vgg"]
        title = variant.label if score is None else f"{variant.label}  LPIPS {score:.3f}"
        cells.append((title, _picture(picture_path(plan, variant, path.name, 0)), True))
    return [*cells, (ORIGINAL, example.original, True)]


def _draw_solutions(plan: EvaluationPlan, outcome: Outcome) -> None:
    """OUT/solutions.png: for the first image every variant's solutions, a row each."""
    labels = [variant.label for variant in plan.variants]
    whole = (p for p in plan.images if all(k in outcome.rows.get(p.name, {}) for k in labels))
    path = next(whole, None)
    if path is None:
        return
    example = _example(plan, outcome, path)
    grid: list[list[Any]] = []
    for variant in plan.variants:
        cells: list[Any] = [(f"{variant.label}: input", example.low, False)]
        for i, score in enumerate(outcome.rows[path.name][variant.label]["solutions"]):
            picture = _picture(picture_path(plan, variant, path.name, i))
            cells.append((f"{i}: low-res L1 {score['low_l1']:.3f}", picture, True))
        grid.append(cells)
    write_png(plan.out / "solutions.png", draw_grid(grid))


def write_report(plan: EvaluationPlan, outcome: Outcome) -> dict[str, Any]:
    """Write table.md, table.json, rows.csv and the figures; returns what table.json holds."""
    summary = summarise(plan, outcome)
    failed = [dict(zip(("image", "method", "message"), f, strict=True)) for f in outcome.failed]
    summary["failed"] = failed
    write_json(plan.out / "table.json", summary)
    with files.atomic_path(plan.out / "table.md") as temporary:
        text = markdown(summary, outcome.failed)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    _write_csv(plan.out / "rows.csv", outcome.rows)
    _draw_examples(plan, outcome)
    if plan.solutions > 1:
        _draw_solutions(plan, outcome)
    return summary
