"""Places in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
HELPERS = ROOT / "tests" / "helpers"
WEIGHTS = ROOT / "weights"
PORTRAIT = ROOT / "docs" / "images" / "astronaut.png"
