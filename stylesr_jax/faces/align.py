"""The crop that FFHQ's alignment defines, and a photo resampled to it.

Coordinates are (x, y) in pixels; the centre of pixel (row i, column j) is at (j + 0.5, i + 0.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stylesr_jax.degradations.resize import reflect, resize_matrix
from stylesr_jax.errors import UserError

SMALLEST, LARGEST = 8, 256  # sides of an observation, pixels
_FINE = 4  # grid points for each pixel of an observation, at most
# Mean distance of a crop's corners from a framed image's, over its side. Of 96 faces that the
# generator drew none is above 0.05, of 16 photographs at 512 px one, in half profile (0.11), and at
# 32 px none is above 0.12.
FRAMED = 0.12
SQUARE = 0.1  # most that the logarithm of its sides' ratio may be off
SHOWN = 0.8  # least part of a face's crop that lies in an image


class Transform(NamedTuple):
    """A square crop: center (2,), side in pixels, angle of its upper edge in radians, clockwise."""

    center: np.ndarray
    size: float
    rotation: float

    @property
    def axes(self) -> np.ndarray:
        """(2, 2): the unit vectors along the upper edge and down the left one."""
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        return np.array([[cos, sin], [-sin, cos]])

    def to_photo(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) as fractions of the crop's sides, in the photo's pixels."""
        return self.center + (np.asarray(points) - 0.5) * self.size @ self.axes

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) in the photo's pixels, as fractions of the crop's sides."""
        return (np.asarray(points) - self.center) @ self.axes.T / self.size + 0.5

    @property
    def corners(self) -> np.ndarray:
        """(4, 2): upper left, upper right, lower right, lower left."""
        return self.to_photo(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))


def ffhq_transform(points: np.ndarray) -> Transform:
    """The crop that FFHQ's alignment makes of a face.

    Args:
        points: (5, 2): the eyes, the nose, the corners of the mouth, each pair from the left.

    Raises:
        UserError: the points are no face's: eyes or mouth coincide.

    Source: Karras et al., "A Style-Based Generator Architecture for Generative Adversarial
    Networks", CVPR 2019, appendix C and the data set's published script.
    """
    points = np.asarray(points, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise UserError("a face has five points (x, y): eyes, nose, corners of the mouth")
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    across, down = points[1] - points[0], mouth - eyes
    upper_edge = across + np.array([down[1], -down[0]])  # both vectors vote on the angle
    size = 2.0 * max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down))
    if np.hypot(*upper_edge) < 1e-3 * size or size == 0.0:
        raise UserError("these five points are no face's; give eyes, nose, corners of the mouth")
    rotation = float(np.arctan2(upper_edge[1], upper_edge[0]))
    return Transform(eyes + 0.1 * down, float(size), rotation)


def observation_size(transform: Transform) -> int:
    """The side in pixels of what the photo holds of a face: never enlarged, 8 to 256."""
    return int(np.clip(round(transform.size), SMALLEST, LARGEST))


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a photo.

    points (5, 2): the eyes, the nose, the corners of the mouth, each pair from the left; box (4,):
    x0, y0, x1, y1 around eyebrows, cheeks and chin; score in [0, 1].
    """

    points: np.ndarray
    box: np.ndarray
    score: float

    @property
    def transform(self) -> Transform:
        """FFHQ's crop of this face."""
        return ffhq_transform(self.points)

    @property
    def size(self) -> float:
        """Side of FFHQ's crop, pixels."""
        return self.transform.size

    @property
    def roll(self) -> float:
        """Angle of the crop's upper edge, degrees clockwise."""
        return float(np.degrees(self.transform.rotation))


# --- resampling -----------------------------------------------------------------------------


def grid(transform: Transform, n: int) -> np.ndarray:
    """(n, n, 2): where the pixels of a crop of n by n lie in the photo."""
    centres = (np.arange(n) + 0.5) / n
    return transform.to_photo(np.stack(np.meshgrid(centres, centres), axis=-1))


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Cubic interpolation (Keys, a = -0.5) of an image at points, mirrored beyond its border.

    Args:
        image: (H, W, C) float32.
        points: (..., 2).

    Returns:
        (..., C) float32.
    """
    height, width = image.shape[:2]
    corner = np.floor(points - 0.5)
    columns, column_weights = _taps(points[..., 0], corner[..., 0], width)
    rows, row_weights = _taps(points[..., 1], corner[..., 1], height)
    total = np.zeros((*points.shape[:-1], image.shape[2]), np.float32)
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            total += (row_weight * column_weight)[..., None] * image[row, column]
    return total


def _taps(x: np.ndarray, corner: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (4, ...) of the samples around each x, whose left one is `corner`."""
    t = (x - 0.5 - corner).astype(np.float32)
    weights = (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    index = corner.astype(np.int64) + np.arange(-1, 3).reshape(4, *[1] * corner.ndim)
    return reflect(index, n, repeat_edge=True), np.stack(weights)


def _neighbourhood(
    image: np.ndarray, transform: Transform, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """What of a photo a crop can reach, averaged over `factor` by `factor`, and its origin (2,)."""
    corners, margin = transform.corners, 4 * factor
    low = np.floor(corners.min(0)).astype(int) - margin
    high = np.ceil(corners.max(0)).astype(int) + margin
    high += (low - high) % factor
    columns, rows = (np.arange(a, b) for a, b in zip(low, high, strict=True))
    height, width = image.shape[:2]
    rows = reflect(rows, height, repeat_edge=True)
    columns = reflect(columns, width, repeat_edge=True)
    part = image[rows[:, None], columns]
    cells = part.reshape(len(rows) // factor, factor, len(columns) // factor, factor, -1)
    return cells.mean(axis=(1, 3)), low


def align(
    image: np.ndarray, points: np.ndarray, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A face as FFHQ's alignment frames it, at the size that it has in the photo.

    Beyond the photo's border the photo is mirrored.

    Args:
        image: (H, W, 3) float32 in [-1, 1].
        points: (5, 2), see `ffhq_transform`.
        size: side in pixels, 8 to 256; None means the size in the photo, within these bounds.

    Returns:
        (size, size, 3) float32 in [-1, 1], and (size, size) float32: the fraction of each pixel
        that lies in the photo.

    Raises:
        UserError: the points are no face's, or the size is out of bounds.
    """
    transform = ffhq_transform(points)
    size = observation_size(transform) if size is None else size
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"an observation has {SMALLEST} to {LARGEST} px a side, not {size}")
    # Interpolated at the photo's own resolution or above, so that nothing aliases, then shrunk.
    fine = int(np.clip(np.ceil(transform.size / size), 1, _FINE))
    factor = max(int(transform.size / (size * fine)), 1)
    points_wanted = grid(transform, size * fine)
    part, low = _neighbourhood(image, transform, factor)
    pixels = sample(part, (points_wanted - low) / factor)
    inside = ((points_wanted >= 0.0) & (points_wanted <= image.shape[1::-1])).all(-1)
    seen = inside.reshape(size, fine, size, fine).mean(axis=(1, 3), dtype=np.float32)
    shrink = resize_matrix(size * fine, size).astype(np.float32)
    pixels = np.einsum("hH,wW,HWc->hwc", shrink, shrink, pixels, optimize=True)
    return np.clip(pixels, -1.0, 1.0), seen


# --- inputs that need no alignment ----------------------------------------------------------


def is_framed(image: np.ndarray, faces: Sequence[Face]) -> bool:
    """Whether an image (H, W, 3) is framed as FFHQ's are, around one of its faces."""
    height, width = image.shape[:2]
    if abs(np.log(width / height)) > SQUARE:
        return False
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    apart = (np.linalg.norm(face.transform.corners - frame, axis=1).mean() for face in faces)
    return bool(min(apart, default=np.inf) < FRAMED * max(height, width))


def seen_fraction(image: np.ndarray, transform: Transform) -> float:
    """How much of a crop lies in an image (H, W, 3), from 0 to 1."""
    points = grid(transform, 32)
    return float(((points >= 0.0) & (points <= image.shape[1::-1])).all(-1).mean())


def taken_as_it_is(image: np.ndarray, faces: Sequence[Face]) -> bool:
    """Whether an input (H, W, 3) needs no alignment.

    It is framed already, or has at most 256 px a side and shows the whole crop of no face.
    """
    if is_framed(image, faces):
        return True
    shown = any(seen_fraction(image, face.transform) >= SHOWN for face in faces)
    return max(image.shape[:2]) <= LARGEST and not shown
