"""Photos for tests: square portraits laid on coloured noise, where they are known to be."""

import numpy as np
from PIL import Image

from stylesr_jax.faces.align import Face, Transform
from where import PORTRAIT


def portrait() -> Image.Image:
    """The shipped portrait."""
    return Image.open(PORTRAIT).convert("RGB")


def background(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Coloured noise of two scales."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 200, (9, 12, 3), np.uint8))
    total = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    total += rng.normal(0.0, 8.0, total.shape)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def paste(canvas: Image.Image, photo: Image.Image, transform: Transform) -> None:
    """Lay a whole square photo on a canvas so that its frame is the transform's."""
    shrunk = photo.resize((max(round(transform.size), 1),) * 2, Image.Resampling.BICUBIC)
    n = shrunk.width
    across, down = transform.axes * n / transform.size
    start = -np.array([transform.center @ across, transform.center @ down]) + n / 2
    matrix = (*across, start[0], *down, start[1])
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    mask = Image.new("L", shrunk.size, 255).transform(canvas.size, affine, matrix, bicubic)
    canvas.paste(shrunk.transform(canvas.size, affine, matrix, bicubic), mask=mask)


def photo_of(
    size: tuple[int, int], *faces: tuple[float, float, float, float], seed: int = 0
) -> Image.Image:
    """A photo with the portrait at each (x, y, side, degrees)."""
    canvas = background(size, seed)
    for x, y, side, degrees in faces:
        paste(canvas, portrait(), Transform(np.array([x, y]), side, np.radians(degrees)))
    return canvas


# Points in the unit frame of which FFHQ's crop is the whole frame.
FRAMED = np.array([[0.375, 0.4756], [0.625, 0.4756], [0.5, 0.62], [0.4, 0.7196], [0.6, 0.7196]])


def face_at(x: float, y: float, side: float, degrees: float = 0.0) -> Face:
    """A face whose crop is that square."""
    points = Transform(np.array([x, y]), side, np.radians(degrees)).to_photo(FRAMED)
    return Face(points, np.concatenate([points.min(0), points.max(0)]), 0.9)
