"""Arguments of degradations as text: how each is read, and what to write for it."""

from collections.abc import Callable
from typing import NamedTuple

from stylesr_jax.degradations.resize import Size

LARGEST = 4096  # px, of sizes, blurs and motions: four times the side of the largest generators


class Argument(NamedTuple):
    """An argument of a degradation.

    Attributes:
        name: of the class's field.
        read: text to value; ValueError or KeyError where the text is none.
        kind: what to write, for messages.
        required: whether it must be given.
        verbatim: whether "=" may be part of it, as in a path.
    """

    name: str
    read: Callable[[str], object]
    kind: str
    required: bool = True
    verbatim: bool = False


def flag(text: str) -> bool:
    """True or false."""
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
        text.lower()
    ]


def _size(text: str) -> Size:
    """A shorter side, or heightxwidth."""
    height, cross, width = text.lower().partition("x")
    return (int(height), int(width)) if cross else int(text)


# Of a down-sampler: either of them.
SIZES = (
    Argument("size", _size, "a size (32, or 24x32 for height x width)", required=False),
    Argument("factor", int, "a whole factor (x4 or factor=4)", required=False),
)
