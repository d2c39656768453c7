"""A photo that a person brings: its faces, and the observation of the one that is picked."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stylesr_jax.degradations import resize, scaled_size
from stylesr_jax.errors import UserError, printable
from stylesr_jax.faces.align import (
    SMALLEST,
    Face,
    Transform,
    align,
    observation_size,
    taken_as_it_is,
)
from stylesr_jax.faces.detect import MAX_PIXELS, find_faces
from stylesr_jax.images.decoding import Picture, decode
from stylesr_jax.images.files import to_uint8
from stylesr_jax.runs.alignment import notes_of_face
from stylesr_jax.runs.subjects import SAID
from stylesr_jax.solver.covariance import of_picture
from stylesr_jax.solver.observation import (
    MAX_LOW,
    MIN_LOW,
    Observation,
    place_on_canvas,
    reduced,
)

MAX_BYTES = 64 << 20  # of an uploaded file
SHOWN = 640  # px: longer side of the picture that shows where the faces are
WHOLE = "whole"  # the choice of the picture as it is, beside the faces' numbers
COLOUR, PICKED = (255, 255, 255), (255, 190, 60)
NO_FACE = (
    "no face was found: the picture is taken whole. If there is one, crop the photo so that the "
    "head fills a square"
)
UNFRAMED = "the picture is not framed as the generator's faces are: pick a face"


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo and the faces in it.

    Attributes:
        name: of its file, printable.
        sha256: of the file's bytes.
        pixels: (H, W, 3) uint8, sRGB, upright.
        picture: what is known of the file; its own `pixels` are kept of small pictures alone.
        faces: largest first.
        notes: what is to be said of the file.
        whole: whether the picture needs no alignment: it is small, or framed already.
    """

    name: str
    sha256: str
    pixels: np.ndarray
    picture: Picture
    faces: tuple[Face, ...]
    notes: tuple[str, ...]
    whole: bool

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) float32 in [-1, 1]."""
        image = np.divide(self.pixels, 127.5, dtype=np.float32)
        image -= 1.0
        return image

    @property
    def choices(self) -> list[tuple[str, str]]:
        """What can be picked, best first: a line for each, and what names it."""
        whole = (f"the picture as it is ({self.size[1]}x{self.size[0]} px)", WHOLE)
        sides = [observation_size(face.transform) for face in self.faces]
        faces = [(f"face {i} ({side} px)", str(i)) for i, side in enumerate(sides)]
        return [whole, *faces] if self.whole or not faces else [*faces, whole]

    def transform(self, choice: str) -> Transform | None:
        """The crop of a face; None for the whole picture.

        Raises:
            UserError: there is no such face.
        """
        if choice == WHOLE:
            return None
        if choice not in [name for _, name in self.choices]:
            raise UserError("pick one of the faces first")
        return self.faces[int(choice)].transform

    def content(self, choice: str) -> str:
        """What seeds are drawn from: as `upsample` does."""
        return self.sha256 if choice == WHOLE else f"{self.sha256} face {choice}"

    def largest(self, choice: str) -> int:
        """Pixels of the longer side that the photo holds of a choice, 256 at most."""
        transform = self.transform(choice)
        return min(max(self.size), MAX_LOW) if transform is None else observation_size(transform)

    def description(self, choice: str, side: int | None = None) -> str:
        """The photo, and what is super-resolved of it, in a line."""
        count = f"{len(self.faces)} face{'' if len(self.faces) == 1 else 's'} found"
        parts = [f"{self.name}: {self.size[1]}x{self.size[0]} px, {count}", *self.notes]
        if self.transform(choice) is not None:
            parts += notes_of_face(self.faces[int(choice)], self.pixels)
        else:
            if not self.whole:
                parts.append(UNFRAMED)
            if max(self.size) > MAX_LOW and side is None:
                parts.append(f"the picture is reduced to {MAX_LOW} px")
        if side is not None:
            parts.append(f"shrunk to {side} px")
        return "; ".join(parts)


def open_photo(data: bytes, name: str) -> Photo:
    """A photo from a file's bytes, with its faces found.

    Raises:
        UserError: no image, too large, too small, or damaged.
    """
    shown = printable(name)
    if len(data) > MAX_BYTES:
        raise UserError(f"{shown}: over {MAX_BYTES >> 20} MB; save a smaller image")
    _refuse_large(data, shown)
    picture = decode(data, name)
    if min(picture.pixels.shape[:2]) < MIN_LOW:
        raise UserError(f"{shown}: sides of {MIN_LOW} px are the least; give a larger picture")
    faces = [face for face in find_faces(picture.pixels) if face.size >= SMALLEST]
    whole = not faces or taken_as_it_is(picture.pixels, faces)
    notes = picture.notes if faces else (*picture.notes, NO_FACE)
    pixels, small = to_uint8(picture.pixels), max(picture.pixels.shape) <= MAX_LOW
    kept = picture if small else replace(picture, pixels=np.zeros((0, 0, 3), np.float32))
    return Photo(shown, picture.sha256, pixels, kept, tuple(faces), notes, whole)


def _refuse_large(data: bytes, name: str) -> None:
    """Refuse a picture of too many pixels before it is decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception:  # what is wrong with the file is for `decode` to say
        return
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} px is over {MAX_PIXELS // 10**6} million pixels; shrink it"
        )


def portrait() -> tuple[bytes, str]:
    """The bytes and the name of the portrait that comes with the project.

    Raises:
        UserError: it is missing.
    """
    here = Path(__file__).resolve()
    places = (
        here.with_name("astronaut.png"),
        here.parents[2] / "docs" / "images" / "astronaut.png",
    )
    for place in places:
        if place.is_file():
            return place.read_bytes(), place.name
    raise UserError("the shipped portrait is missing; drop a photo of your own")


def observe(photo: Photo, choice: str, side: int | None = None) -> Observation:
    """What is super-resolved: a face as FFHQ frames it, or the whole picture.

    Args:
        choice: one of `photo.choices`.
        side: px of the longer side, None for as many as the photo holds; never enlarged.

    Raises:
        UserError: there is no such choice.
    """
    image, seen = _observed(photo, choice, side)
    noise = of_picture(photo.picture, image)
    return replace(place_on_canvas(image, seen), noise=noise)


def _observed(photo: Photo, choice: str, side: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The image (h, w, 3) that is super-resolved, and what of it the photo shows."""
    transform, most = photo.transform(choice), photo.largest(choice)
    side = int(np.clip(most if side is None else side, min(SMALLEST, most), most))
    if transform is not None:
        return align(photo.image, photo.faces[int(choice)].points, side)
    if side == max(photo.size):
        return photo.picture.pixels, None
    if side == MAX_LOW:
        return reduced(photo.image), None
    size = scaled_size((*photo.size, 3), side)
    return np.clip(np.asarray(resize(jnp.asarray(photo.image), size)), -1.0, 1.0), None


def notes_of_noise(observation: Observation) -> list[str]:
    """What is to be said of an observation that is not exact."""
    levels = 127.5 * (observation.noise.std if observation.noise is not None else 0.0)
    return [f"its values are taken as known to {levels:.1f} of 255 levels"] * (levels >= SAID)


# --- pictures of it -------------------------------------------------------------------------


def shown_scale(photo: Photo) -> float:
    """Of the picture that `with_faces` draws."""
    return SHOWN / max(photo.size)


def with_faces(photo: Photo, choice: str = "") -> np.ndarray:
    """The photo with the faces' crops drawn and numbered, the picked one in its own colour.

    Returns:
        (h, w, 3) uint8, the longer side SHOWN px.
    """
    scale = shown_scale(photo)
    size = (max(round(photo.size[1] * scale), 1), max(round(photo.size[0] * scale), 1))
    filters = Image.Resampling
    how = filters.NEAREST if scale > 1 else filters.LANCZOS
    picture = Image.fromarray(photo.pixels).resize(size, how)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for i, face in enumerate(photo.faces):
        colour = PICKED if choice == str(i) else COLOUR
        _outline(draw, face.transform.corners * scale, str(i), colour, font)
    return np.asarray(picture)


def _outline(
    draw: ImageDraw.ImageDraw,
    corners: np.ndarray,
    label: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A crop's outline, light on dark so that it is seen on any ground, and its number."""
    points: Sequence[tuple[float, float]] = [tuple(p) for p in (*corners, corners[0])]
    draw.line(points, fill=(0, 0, 0), width=5)
    draw.line(points, fill=colour, width=3)
    x, y = corners[3]  # lower left
    place = (max(x, 0.0) + 8, min(y, draw.im.size[1]) - 28)
    draw.text(place, label, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))


def face_at(photo: Photo, x: float, y: float) -> str:
    """The choice at a point of `with_faces`'s picture: the smallest face there, or the whole."""
    point = np.array([x, y]) / shown_scale(photo)
    inside = [i for i, face in enumerate(photo.faces) if _within(face.transform.to_crop(point))]
    return str(inside[-1]) if inside else WHOLE  # faces are sorted, largest first


def _within(fractions: np.ndarray) -> bool:
    return bool(((fractions >= 0.0) & (fractions <= 1.0)).all())


def enlarged(image: np.ndarray, longer: int) -> np.ndarray:
    """A small image (h, w, 3) in [-1, 1], pixel by pixel, about `longer` px: uint8."""
    factor = max(longer // max(image.shape[:2]), 1)
    return to_uint8(image).repeat(factor, axis=0).repeat(factor, axis=1)


def at_most(image: np.ndarray, longer: int) -> np.ndarray:
    """A picture (H, W, 3) uint8, shrunk to `longer` px if it has more."""
    picture = Image.fromarray(image)
    picture.thumbnail((longer, longer), Image.Resampling.LANCZOS)
    return np.asarray(picture)
