"""Down-sampling: bicubic, as PULSE does it, and by areas."""

from typing import ClassVar

import numpy as np
from flax import struct

from stylesr_jax.degradations.arguments import LARGEST, SIZES, Argument, flag
from stylesr_jax.degradations.base import Separable
from stylesr_jax.degradations.resize import Size, cubic_taps, resize_matrix, taps_matrix
from stylesr_jax.errors import UserError


class DownSampler(Separable):
    """Down-sampling to a size or by a factor.

    size is the shorter side (the shape is kept) or (height, width); factor is whole and divides
    both sides. Raises UserError for neither, both, or sizes below 1 or over LARGEST.
    """

    arguments: ClassVar[tuple[Argument, ...]] = SIZES

    size: Size | None = struct.field(pytree_node=False, default=None)
    factor: int | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self) -> None:
        name, size, factor = self.name, self.size, self.factor
        if (size is None) == (factor is None):
            raise UserError(f"{name} takes either a size or a factor, for example {name}(32)")
        numbers = [factor] if size is None else [size] if isinstance(size, int) else list(size)
        if len(numbers) > 2 or not all(isinstance(n, int) and 1 <= n <= LARGEST for n in numbers):
            raise UserError(
                f"{name}: a size or factor is made of whole numbers from 1 to {LARGEST}, "
                f"got {', '.join(map(str, numbers))}"
            )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of A(x). Raises UserError where the factor divides them not."""
        size, factor = self.size, self.factor
        if factor is not None:
            if height % factor or width % factor:
                raise UserError(
                    f"{self.name}: {height}x{width} is not divisible by {factor}; "
                    "give a size instead"
                )
            return height // factor, width // factor
        if isinstance(size, int):
            short = min(height, width)
            return round(height * size / short), round(width * size / short)
        assert size is not None
        return size

    def size_text(self) -> str:
        """Size or factor, as texts such as "bicubic(32)" have it."""
        if self.factor is not None:
            return f"x{self.factor}"
        return f"{self.size[0]}x{self.size[1]}" if isinstance(self.size, tuple) else str(self.size)

    def __str__(self) -> str:
        return f"{self.name}({self.size_text()})"


class Bicubic(DownSampler):
    """Bicubic down-sampling with a = -0.5; antialiased, it equals Pillow's."""

    name = "bicubic"
    about = "bicubic down-sampling, as Pillow's"
    example = "bicubic(32)"
    arguments = (*SIZES, Argument("antialias", flag, "true or false", required=False))

    antialias: bool = struct.field(pytree_node=False, default=True)

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        h, w = self.output_size(height, width)
        return (
            resize_matrix(height, h, kernel="bicubic", antialias=self.antialias),
            resize_matrix(width, w, kernel="bicubic", antialias=self.antialias),
        )

    def __str__(self) -> str:
        return f"bicubic({self.size_text()}{'' if self.antialias else ',false'})"


class PulseBicubic(DownSampler):
    """PULSE's down-sampling: 4 * factor cubic taps (a = -0.5), mirrored border, stride factor.

    It differs from `Bicubic` at the borders only, where that renormalises. Both sides must shrink
    by one whole factor and be longer than 1.5 of it (UserError).
    Source: Menon et al., "PULSE", CVPR 2020, and its published code.
    """

    name = "pulse"
    about = "PULSE's bicubic down-sampling"
    example = "pulse(x32)"

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        h, w = self.output_size(height, width)
        factor = height // h
        if (h * factor, w * factor) != (height, width):
            raise UserError(f"pulse: {height}x{width} is not a whole multiple of {h}x{w}")
        before = (4 * factor - factor) // 2
        if min(height, width) <= 3 * factor - before:
            raise UserError(f"pulse: {height}x{width} is too small to shrink {factor} times")
        weights = cubic_taps(factor)
        return (
            taps_matrix(height, weights, stride=factor, before=before, repeat_edge=False),
            taps_matrix(width, weights, stride=factor, before=before, repeat_edge=False),
        )


class Area(DownSampler):
    """Down-sampling by averaging the exact area that each output pixel covers."""

    name = "area"
    about = "down-sampling by averaging areas"
    example = "area(32)"

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        h, w = self.output_size(height, width)
        return resize_matrix(height, h, kernel="area"), resize_matrix(width, w, kernel="area")
