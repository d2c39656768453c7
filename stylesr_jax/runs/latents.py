"""Latents to start from: of a solutions.npz, or W and W+ arrays that other tools save."""

import os
from pathlib import Path

import numpy as np

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.images.kinds import printable
from stylesr_jax.runs.arrays import WHOLE, read_arrays

NAMES = ("ws", "w", "w_plus", "latent", "latents", "arr_0")  # of styles in an .npz, ours first
DIGITS = 18  # of a solution's number that are read: no file holds so many
LARGEST = 1e3  # of a style's numbers: those of published generators stay far below


def read_styles(text: str, generator: Generator) -> np.ndarray:
    """The styles (num_ws, w_dim) float32 that FILE or FILE#K names, K counting from 0.

    An .npz is a solutions.npz, a projected_w.npz (NVIDIA's projectors) or holds an array called w
    or latent; an .npy is an array. Arrays are W (w_dim) or W+ (num_ws, w_dim), or several.

    Raises:
        UserError: there are no such styles, or not of this generator's shape.
    """
    path, index = _parsed(text)
    stack = _as_stack(_read(path), path, generator)
    if index >= len(stack):
        raise UserError(f"{printable(text)}: the file holds {len(stack)}, counted from 0")
    styles = stack[index].astype(np.float64)
    if not np.abs(styles).max() < LARGEST:  # NaN neither
        raise UserError(
            f"{printable(path)}: styles are numbers below {LARGEST:g}, all of them finite"
        )
    return np.repeat(styles, generator.num_ws // len(styles), axis=0).astype(np.float32)


def _parsed(text: str) -> tuple[Path, int]:
    """The file and the number of FILE#K; a file whose name has such an end is itself."""
    name, mark, number = text.rpartition("#")
    if mark and number.isdecimal() and not os.path.exists(text):
        return Path(name), int(number[:DIGITS])
    return Path(text), 0


def _read(path: Path) -> np.ndarray:
    """The array of a file; nothing in the file is executed."""
    arrays = read_arrays(path, "give a solutions.npz or an .npy")
    name = next((name for name in (WHOLE, *NAMES) if name in arrays), None)
    if name is None:
        held = printable(", ".join(arrays)) or "nothing"
        raise UserError(
            f"{printable(path)}: holds {held}, but no array called {' or '.join(NAMES)}"
        )
    return arrays[name]


def _as_stack(array: np.ndarray, path: Path, generator: Generator) -> np.ndarray:
    """W or W+ styles, one or several: (n, 1, w_dim) or (n, num_ws, w_dim)."""
    layers, width = generator.num_ws, generator.w_dim
    if array.dtype.kind not in "fiu":
        raise UserError(f"{printable(path)}: holds {array.dtype}, not numbers")
    fits = array.shape[-1:] == (width,) and array.size > 0
    if fits and array.ndim >= 2 and array.shape[-2] == layers:
        return array.reshape(-1, layers, width)
    if fits and (array.ndim <= 2 or array.shape[-2] == 1):
        return array.reshape(-1, 1, width)
    raise UserError(
        f"{printable(path)}: an array {array.shape}, but {generator.name} takes W "
        f"({width},) or W+ ({layers}, {width}), or several of them"
    )
