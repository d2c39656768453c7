"""Photos for tests: square portraits laid on coloured noise, where they are known to be."""

import numpy as np
from PIL import Image, ImageDraw

from stylesr_jax.faces.align import Face, Transform
from where import PORTRAIT


def portrait() -> Image.Image:
    """The shipped portrait."""
    return Image.open(PORTRAIT).convert("RGB")


def half_hidden(by: str) -> Image.Image:
    """The shipped portrait with sunglasses, a mask, a hand before the mouth, or its left half."""
    photo = portrait()
    draw = ImageDraw.Draw(photo)
    if by == "sunglasses":
        draw.rounded_rectangle((120, 150, 190, 210), 18, (15, 15, 20))
        draw.rounded_rectangle((205, 150, 275, 210), 18, (15, 15, 20))
        draw.line((185, 170, 210, 170), (15, 15, 20), 8)
    elif by == "mask":
        edge = ((105, 225), (195, 210), (285, 225), (270, 320), (195, 355), (125, 320))
        draw.polygon(edge, (150, 190, 220))
    elif by == "hand":
        for x in range(110, 246, 45):
            draw.rounded_rectangle((x, 236, x + 40, 330), 18, (200, 155, 135))
        draw.rounded_rectangle((105, 290, 295, 384), 30, (205, 160, 140))
    elif by == "half":
        draw.rectangle((0, 0, 192, 384), (60, 80, 70))
    else:
        raise ValueError(by)
    return photo


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
