"""Super-resolved faces put back into their photo, consistently with the photo.

The enlarged picture x is made so that its bicubic down-sampling A x is the photo y again, as the
solutions themselves are: x + U (A U)^-1 (y - A x), with U bicubic enlargement. For a whole factor U
is a multiple of A's adjoint, so that this is the smallest change that does it. All of it is local:
the picture is made in tiles, and memory stays bounded.

Source: Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", ICLR
2023, for the formula.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from stylesr_jax.degradations.resize import resize_matrix
from stylesr_jax.errors import UserError
from stylesr_jax.faces.align import Transform, sample
from stylesr_jax.images.files import to_uint8

LARGEST_SCALE = 8
MAX_PIXELS = 50_000_000  # of the enlarged picture
FEATHER = 0.12  # of a crop's side: how wide the edge is in which a solution gives way to the photo
TILE = 384  # pixels of the enlarged picture, about
MARGIN = 8  # photo pixels around a tile: (A U)^-1 falls to a third with each pixel of distance
ROUNDS = 8  # of corrections at most, as clipping to [-1, 1] undoes a little of each
TOLERANCE = 2.0 / 127.5  # most that any value of y - A x may be left: two of 8 bits' steps


class _Axis(NamedTuple):
    """Along one side of n photo pixels: enlarge (s n, n), shrink (n, s n), inverse (n, n)."""

    enlarge: np.ndarray
    shrink: np.ndarray
    inverse: np.ndarray


@lru_cache(maxsize=32)
def _axis(n: int, scale: int) -> _Axis:
    enlarge, shrink = resize_matrix(n, n * scale), resize_matrix(n * scale, n)
    inverse = np.linalg.inv(shrink @ enlarge)
    return _Axis(*(m.astype(np.float32) for m in (enlarge, shrink, inverse)))


def _apply(rows: np.ndarray, columns: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(h, H) and (w, W) matrices on an image (H, W, 3): (h, w, 3)."""
    along_rows = np.tensordot(rows, image, 1)
    return np.ascontiguousarray(np.tensordot(along_rows, columns, ((1,), (1,))).swapaxes(1, 2))


def default_scale(shape: Sequence[int], transforms: Sequence[Transform], side: int = 1024) -> int:
    """As much as the largest face needs to be as large as its solution, within the bounds.

    Args:
        shape: of the photo, height and width first.
        transforms: of the faces; at least one.
        side: of the solutions, pixels.
    """
    needed = int(np.ceil(side / max(transform.size for transform in transforms)))
    room = int((MAX_PIXELS / (shape[0] * shape[1])) ** 0.5)
    return int(np.clip(min(needed, room), 1, LARGEST_SCALE))


def _feathered(fractions: np.ndarray) -> np.ndarray:
    """Weights (...) of a solution at points (..., 2) given as fractions of its sides."""
    inwards = np.minimum(fractions, 1.0 - fractions) / FEATHER
    t = np.clip(inwards, 0.0, 1.0)
    return np.prod(t * t * (3.0 - 2.0 * t), axis=-1).astype(np.float32)


def _shrunk(solution: np.ndarray, side: float) -> np.ndarray:
    """A solution (n, n, 3) at the resolution at which it is shown, if that is the lower one."""
    n = max(round(side), 1)
    if n >= solution.shape[0]:
        return np.asarray(solution, np.float32)
    shrink = resize_matrix(solution.shape[0], n).astype(np.float32)
    return _apply(shrink, shrink, np.asarray(solution, np.float32))


def _blend(
    picture: np.ndarray, origin: np.ndarray, scale: int, transform: Transform, solution: np.ndarray
) -> None:
    """Lay a solution on a part of the enlarged picture, in place.

    Args:
        picture: (H, W, 3).
        origin: (2,), where the part begins, in the photo's pixels.
    """
    height, width = picture.shape[:2]
    x, y = (np.arange(n) + 0.5 for n in (width, height))
    points = origin + np.stack(np.meshgrid(x, y), axis=-1) / scale
    fractions = transform.to_crop(points)
    weights = _feathered(fractions)
    covered = weights > 0.0
    if covered.any():
        pixels = sample(solution, fractions[covered] * solution.shape[0])
        picture[covered] += weights[covered][:, None] * (pixels - picture[covered])


def _consistent(picture: np.ndarray, photo: np.ndarray, rows: _Axis, columns: _Axis) -> np.ndarray:
    """A picture (s h, s w, 3), clipped and changed so that it shrinks to the photo (h, w, 3)."""
    for _ in range(ROUNDS):
        picture = np.clip(picture, -1.0, 1.0)
        residual = photo - _apply(rows.shrink, columns.shrink, picture)
        if np.abs(residual).max() < TOLERANCE:
            break
        change = _apply(rows.inverse, columns.inverse, residual)
        picture = picture + _apply(rows.enlarge, columns.enlarge, change)
    return np.clip(picture, -1.0, 1.0)


def _spans(length: int, step: int) -> Iterator[tuple[slice, slice]]:
    """The tiles along a side, each with the part that surrounds it, in the photo's pixels."""
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), slice(max(start - MARGIN, 0), min(stop + MARGIN, length))


def _reaches(transform: Transform, rows: slice, columns: slice) -> bool:
    low, high = transform.corners.min(0), transform.corners.max(0)
    return bool(
        low[0] < columns.stop
        and high[0] > columns.start
        and low[1] < rows.stop
        and high[1] > rows.start
    )


def paste_back(
    photo: np.ndarray,
    transforms: Sequence[Transform],
    solutions: Sequence[np.ndarray],
    scale: int | None = None,
) -> np.ndarray:
    """The photo enlarged, with each solution in its face's place.

    Shrunk to the photo's size (bicubic, as Pillow does it) the result is the photo again.

    Args:
        photo: (H, W, 3) float32 in [-1, 1].
        transforms: of the faces; where crops overlap, the later one is on top.
        solutions: (n, n, 3) in [-1, 1], one for each face.
        scale: a whole number; None takes `default_scale`.

    Returns:
        (scale H, scale W, 3) uint8.

    Raises:
        UserError: the scale is out of bounds, or the result had over 50 million pixels.
    """
    height, width = photo.shape[:2]
    if scale is None:
        scale = default_scale(photo.shape, transforms, max(len(s) for s in solutions))
    if not 1 <= scale <= LARGEST_SCALE:
        raise UserError(f"photos are enlarged 1 to {LARGEST_SCALE} times, not {scale}")
    if height * width * scale**2 > MAX_PIXELS and scale > 1:
        raise UserError(
            f"{scale} times {width}x{height} px is over {MAX_PIXELS // 10**6} million pixels; "
            "choose a smaller scale"
        )
    shown = [_shrunk(s, t.size * scale) for t, s in zip(transforms, solutions, strict=True)]
    out = np.empty((height * scale, width * scale, 3), np.uint8)
    step = max(TILE // scale, 1)
    for tile_rows, rows in _spans(height, step):
        for tile_columns, columns in _spans(width, step):
            part = np.asarray(photo[rows, columns], np.float32)
            axes = [_axis(n, scale) for n in part.shape[:2]]
            cells = _apply(axes[0].inverse, axes[1].inverse, part)
            picture = _apply(axes[0].enlarge, axes[1].enlarge, cells)
            origin = np.array([columns.start, rows.start])
            here = [i for i, t in enumerate(transforms) if _reaches(t, rows, columns)]
            for i in here:
                _blend(picture, origin, scale, transforms[i], shown[i])
            if here or np.abs(picture).max() > 1.0:  # else it is consistent as it is
                picture = _consistent(picture, part, *axes)
            inner = _within(tile_rows, rows, scale), _within(tile_columns, columns, scale)
            out[_times(tile_rows, scale), _times(tile_columns, scale)] = to_uint8(picture[inner])
    return out


def _times(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


def _within(inner: slice, outer: slice, scale: int) -> slice:
    """Where a span of the photo lies in the enlarged part that belongs to a wider span."""
    return slice((inner.start - outer.start) * scale, (inner.stop - outer.start) * scale)
