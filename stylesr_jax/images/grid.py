"""Pictures beside one another, with titles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stylesr_jax.images.files import to_uint8

CELL = 256  # px: longer side of a picture in the grid
GAIN = 4.0  # of the differences in the grid
MARGIN, TITLE = 8, 24


def _cell(image: np.ndarray, *, smooth: bool) -> Image.Image:
    """A picture of at most CELL px; small ones are enlarged pixel by pixel, large ones shrunk."""
    picture = Image.fromarray(to_uint8(image))
    scale = CELL / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    filters = Image.Resampling
    return picture.resize(size, filters.LANCZOS if smooth else filters.NEAREST)


def draw_grid(rows: list[list[tuple[str, np.ndarray, bool] | None]]) -> np.ndarray:
    """Titled pictures in rows and columns.

    Args:
        rows: of (title, (h, w, 3) in [-1, 1], whether to resample smoothly), or None for a gap.

    Returns:
        (H, W, 3) uint8 on white.
    """
    cells = [[None if c is None else _cell(c[1], smooth=c[2]) for c in row] for row in rows]
    width = max((c.width for row in cells for c in row if c), default=CELL)
    height = max((c.height for row in cells for c in row if c), default=CELL)
    n_columns = max(len(row) for row in rows)
    step_x, step_y = width + MARGIN, height + TITLE + MARGIN
    page = Image.new("RGB", (n_columns * step_x + MARGIN, len(rows) * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=15)
    for r, row in enumerate(rows):
        for c, content in enumerate(row):
            picture = cells[r][c]
            if content is None or picture is None:
                continue
            x, y = MARGIN + c * step_x, MARGIN + r * step_y
            draw.text((x, y), content[0], fill="black", font=font)
            page.paste(picture, (x, y + TITLE))
    return np.asarray(page)


def result_grid(result: Any, original: np.ndarray | None = None) -> np.ndarray:
    """Input, solutions, their re-downscaled images and the differences: (H, W, 3) uint8."""
    seen, observed = result.observation.image, result.observation.crop(result.observation.mask)
    height, width = seen.shape[:2]
    enlarged = np.asarray(jax.image.resize(jnp.asarray(seen), (height * 8, width * 8, 3), "cubic"))
    top: list[Any] = [(f"input {width}x{height}", seen, False)]
    middle: list[Any] = [("bicubic", enlarged, True)]
    bottom: list[Any] = [None if original is None else ("original", original, True)]
    for i, solution in enumerate(result.solutions):
        difference = np.clip(GAIN * observed * (solution.low - seen), -1.0, 1.0)
        top.append((f"solution {i}", solution.image, True))
        middle.append((f"downscaled, {solution.residual_psnr:.1f} dB", solution.low, False))
        bottom.append((f"{GAIN:.0f} x difference, grey = none", difference, False))
    return draw_grid([top, middle, bottom])
