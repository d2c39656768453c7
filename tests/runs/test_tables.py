"""Tables of evaluations, from rows made by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from stylesr_jax.metrics.scorer import Sizes
from stylesr_jax.runs.evaluation import Outcome
from stylesr_jax.runs.plan import variant
from stylesr_jax.runs.tables import markdown, summarise

SCORES = {  # LPIPS-VGG of each image's solutions
    "bicubic": {"a.png": [0.5], "b.png": [0.4], "c.png": [0.3]},
    "near=pulse": {"a.png": [0.3, 0.5], "b.png": [0.1, 0.3], "c.png": [0.5, 0.6]},
    "rls": {"a.png": [0.2], "b.png": [0.2], "c.png": [0.2]},
}


def _summary(*texts: str, images: int = 3) -> Any:
    variants = tuple(variant(text) for text in texts)
    plan: Any = SimpleNamespace(
        variants=variants,
        reference=None,
        generator=SimpleNamespace(name="tiny", resolution=32),
        identity={},
        observed_size=8,
        degradation=None,
        lr_size=8,
        truth=False,
        solutions=1,
        seed=0,
        sizes=Sizes(),
    )
    rows: dict[str, Any] = {}
    for name in list(SCORES["rls"])[:images]:
        rows[name] = {"original": {"solutions": [{"niqe": 4.0}]}}
        for text, one in zip(texts, variants, strict=True):
            solutions = [{"lpips_vgg": value} for value in SCORES[text][name]]
            rows[name][one.label] = {"solutions": solutions}
    return summarise(plan, Outcome(rows, (), False))


def _cells(summary: Any) -> dict[str, dict[str, str]]:
    """label -> heading -> cell of the table."""
    heading, _, *lines = [line for line in markdown(summary).splitlines() if line[:1] == "|"]
    names = [cell.strip() for cell in heading.strip("|").split("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def test_images_on_which_a_method_beats_bicubic_are_counted():
    summary = _summary("bicubic", "near=pulse", "rls")
    assert summary["by_image"]["near"]["beats_bicubic"] == {"images": 2, "n": 3}
    assert summary["by_image"]["rls"]["beats_bicubic"] == {"images": 3, "n": 3}
    cells = {label: row["beats bicubic ↑"] for label, row in _cells(summary).items()}
    assert cells == {"bicubic": "", "near": "2 of 3", "rls": "3 of 3", "original": ""}


def test_the_worst_image_is_named():
    summary = _summary("bicubic", "near=pulse")
    assert summary["by_image"]["bicubic"]["worst"] == {"image": "a.png", "lpips_vgg": 0.5}
    worst = summary["by_image"]["near"]["worst"]
    assert worst["image"] == "c.png" and worst["lpips_vgg"] == pytest.approx(0.55)
    cells = {label: row["worst LPIPS ↓"] for label, row in _cells(summary).items()}
    assert cells == {"bicubic": "0.500", "near": "0.550", "original": ""}


def test_nothing_is_compared_with_a_bicubic_that_is_not_there():
    cells = _cells(_summary("rls"))
    assert "beats bicubic ↑" not in cells["rls"] and cells["rls"]["worst LPIPS ↓"] == "0.200"


def test_a_single_image_is_not_the_worst_of_several():
    cells = _cells(_summary("bicubic", "rls", images=1))
    assert cells["rls"]["LPIPS-VGG ↓"] == "0.200" and "worst LPIPS ↓" not in cells["rls"]
    assert cells["original"]["NIQE ↓"] == "4.00"
