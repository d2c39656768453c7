"""Which numbers are black and white where samples have more than 8 bits."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.images import png

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
MAX_SAMPLE_VALUE, S_MIN_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 281, 340, 341
OVERSHOOT = 1.1  # times white: what resampling makes of sharp edges in floats
INTEGER_WHITES = {1: "0 and 1", 255: "8-bit", 1023: "10-bit", 4095: "12-bit", 65535: "16-bit"}
DARKEST = 1 / 16  # of white: below, a guessed white would give a picture that looks black
EXPECTED = "save it with values from 0 to 1 (floats) or as an 8- or 16-bit PNG"


class Range(NamedTuple):
    """Sample values of black and white, and what is to be said of them ("" if nothing is)."""

    black: float
    white: float
    note: str = ""


def stated_range(image: Image.Image, data: bytes) -> tuple[float, float] | None:
    """The values of black and white as a file's tags say, None if they do not.

    Args:
        image: as opened from `data`, the file's bytes.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return _of_tiff(tags)
    if image.format == "PNG":
        return (0.0, 2.0**bits - 1.0) if (bits := png.significant_bits(data)) else None
    # Pillow scales these two to 16 bits by what the file says.
    return (0.0, 65535.0) if image.format in ("PPM", "JPEG2000") and image.mode != "F" else None


def _of_tiff(tags: Any) -> tuple[float, float] | None:
    bits = _first(tags.get(BITS_PER_SAMPLE)) or 0
    white = _first(tags.get(S_MAX_SAMPLE_VALUE)) or _first(tags.get(MAX_SAMPLE_VALUE))
    if not white and 8 < bits < 16:
        white = 2.0**bits - 1.0
    black = min(_first(tags.get(S_MIN_SAMPLE_VALUE)) or 0.0, 0.0)
    return (black, white) if white and np.isfinite(white) and np.isfinite(black) else None


def white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF file of grey counts from white, which Pillow minds for 8 bits only."""
    return getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0


def _first(tag: Any) -> float | None:
    """A tag's number, or the largest of one for each channel."""
    if tag is None:
        return None
    return float(max(tag)) if isinstance(tag, tuple) else float(tag)


def find_range(samples: np.ndarray, stated: tuple[float, float] | None, name: str) -> Range:
    """Black and white of samples: as stated if that can be, else by the largest value.

    Args:
        samples: uint16, int32 or float32, any shape.
        stated: see `stated_range`.

    Raises:
        UserError: NaN, infinite or negative samples, or none of the usual ranges.
    """
    smallest, largest = float(samples.min()), float(samples.max())
    if not np.isfinite([smallest, largest]).all():
        raise UserError(f"{name}: holds NaN or infinite values; {EXPECTED}")
    if stated and stated[0] <= smallest and largest <= OVERSHOOT * stated[1]:
        cut = largest > stated[1]
        return Range(*stated, f"values over the stated {stated[1]:g} are cut" if cut else "")
    if smallest < 0:
        raise UserError(f"{name}: holds negative values (down to {smallest:g}); {EXPECTED}")
    if samples.dtype.kind == "f":
        return _of_floats(largest, name)
    return _of_integers(largest, 65535 if samples.dtype == np.uint16 else None, name)


def _of_floats(largest: float, name: str) -> Range:
    if largest <= 1.0:
        return Range(0.0, 1.0)
    if largest <= OVERSHOOT:
        return Range(0.0, 1.0, f"values up to {largest:g} are read as 0 to 1, cut at 1")
    if 255.0 / 4 <= largest <= 255.0 * OVERSHOOT:
        return Range(0.0, 255.0, f"float values up to {largest:g} are read as 0 to 255")
    raise UserError(f"{name}: float values up to {largest:g} of no stated range; {EXPECTED}")


def _of_integers(largest: float, usual: int | None, name: str) -> Range:
    white = next((w for w in INTEGER_WHITES if largest <= w), None)
    if white is None or 0 < largest < DARKEST * white:
        raise UserError(f"{name}: integers up to {largest:g} of no stated range; {EXPECTED}")
    if white == usual or largest == 0:
        return Range(0.0, white)
    return Range(
        0.0,
        white,
        f"integers up to {largest:g} of no stated range are read as {INTEGER_WHITES[white]} values",
    )
