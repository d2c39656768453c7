"""Which faces of a photo are super-resolved: those found, those marked by hand, or none."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stylesr_jax.errors import UserError, printable
from stylesr_jax.faces.align import (
    LARGEST,
    SHOWN,
    SMALLEST,
    SQUARE,
    Face,
    ffhq_transform,
    is_framed,
    observation_size,
    seen_fraction,
    taken_as_it_is,
)
from stylesr_jax.faces.detect import MAX_PIXELS, find_faces
from stylesr_jax.runs.records import content_key
from stylesr_jax.runtime.files import open_file
from stylesr_jax.solver.observation import reduced

Mode = Literal["auto", "on", "off"]
Points = tuple[tuple[float, float], ...]  # (5, 2): eyes, nose, corners of the mouth

MAX_BYTES = 1 << 26  # of a file of points
LOOKED_AT = 32  # px: no face within a smaller picture is large enough to be found
REDUCED = 1.1  # how much larger than its observation a face is when this is said
# Distance of the eyes over that from eyes to mouth: about 1 from the front, and the cosine of the
# angle by which a head is turned.
PROFILE = 0.6
UNFRAMED = "is not framed as the generator's faces are: leave out --align off"


@dataclass(frozen=True)
class Alignment:
    """How the faces of photos are chosen.

    Attributes:
        mode: "auto" finds faces unless a picture needs no alignment, see `taken_as_it_is`; "on"
            always does, "off" never.
        marked: the name or path of a file -> its faces by hand, (n, 5, 2) in pixels. Photos that
            are not named are treated as the mode says.
        most: faces of a photo, the largest ones; None: all.
    """

    mode: Mode = "auto"
    marked: Mapping[str, tuple[Points, ...]] = field(default_factory=dict)
    most: int | None = None

    def marked_in(self, path: Path) -> tuple[Points, ...] | None:
        """The faces by hand of a photo; a path counts more than a name."""
        return self.marked.get(str(path), self.marked.get(path.name))

    def identity(self, path: Path) -> str:
        """What of this decides where a photo's faces are."""
        marked = self.marked_in(path)
        return self.mode if marked is None else f"points {content_key(marked)[:16]}"

    def unused(self, paths: Sequence[Path]) -> list[str]:
        """The names that are no photo's."""
        used = {name for path in paths for name in (str(path), path.name)}
        return [name for name in self.marked if name not in used]

    def faces(self, image: np.ndarray, path: Path) -> list[Face] | None:
        """All faces of a photo (H, W, 3) in [-1, 1], largest first; None: it is taken as it is.

        Raises:
            UserError: there is no face, or the points by hand are no face's in this photo.
        """
        marked = self.marked_in(path)
        if marked is not None:
            faces = [_by_hand(points, i, image.shape) for i, points in enumerate(marked)]
            return sorted(faces, key=lambda face: -face.size)
        small = self.mode == "auto" and max(image.shape[:2]) <= LOOKED_AT
        if self.mode == "off" or small:
            return None
        faces = [face for face in find_faces(image) if face.size >= SMALLEST]
        if self.mode == "auto" and taken_as_it_is(image, faces):
            return None
        if not faces:
            raise UserError(
                "no face was found in it; turn it upright, mark the faces with --align FILE.json, "
                "or take it as it is with --align off"
            )
        return faces


def _by_hand(points: Points, number: int, shape: tuple[int, ...]) -> Face:
    """A face that was marked in a photo of this shape."""
    height, width = shape[:2]
    array = np.array(points)
    if not ((array >= 0.0) & (array <= (width, height))).all():
        raise UserError(
            f"face {number} of --align has a point outside of the photo's {width}x{height} px"
        )
    size = ffhq_transform(array).size
    if size < SMALLEST:
        raise UserError(
            f"face {number} of --align is framed by {size:.0f} px; faces need {SMALLEST} at least"
        )
    return Face(array, np.concatenate([array.min(0), array.max(0)]), 1.0)


# --- what is said ---------------------------------------------------------------------------


def notes_of_face(face: Face, image: np.ndarray) -> list[str]:
    """What is to be said of a face that will not come out well, or not at its own size."""
    notes, size = [], observation_size(face.transform)
    if face.size > REDUCED * size:
        notes.append(f"reduced from {face.size:.0f} to {size} px")
    seen = seen_fraction(image, face.transform)
    if seen < SHOWN:
        notes.append(f"only {100 * seen:.0f}% of its frame lies in the photo")
    eyes, mouth = face.points[:2], face.points[3:]
    down = np.linalg.norm(mouth.mean(0) - eyes.mean(0))
    if np.linalg.norm(eyes[1] - eyes[0]) < PROFILE * down:
        notes.append("seen from the side, which the generator hardly knows")
    return notes


def note_of_frame(image: np.ndarray) -> list[str]:
    """A warning of a picture (H, W, 3) in [-1, 1] that is not framed as FFHQ's are.

    One of at most 256 px counts as framed unless it shows the whole crop of a face, as for "auto".
    """
    height, width = image.shape[:2]
    if abs(np.log(width / height)) > SQUARE:
        return [f"{width}x{height} px {UNFRAMED}"]
    if max(height, width) <= LOOKED_AT:
        return []
    faces: list[Face] = []
    if max(height, width) > LARGEST:  # a framed picture is quickly seen to be one
        small = reduced(image)
        faces = find_faces(small)
        if is_framed(small, faces):
            return []
    if height * width <= MAX_PIXELS:  # small faces are looked for
        faces = find_faces(image)
        if taken_as_it_is(image, faces):
            return []
    if not faces:
        return ["no face that fills it, as the generator's do, was found in it"]
    return [f"the largest face in it {UNFRAMED}"]


# --- points by hand -------------------------------------------------------------------------


def read_points(path: str) -> dict[str, tuple[Points, ...]]:
    """Faces by hand from a JSON file: {"photo.jpg": [[[x, y], ... five points], ...], ...}.

    Points are in pixels of the upright photo, (0, 0) being its upper left corner: the eyes, the
    nose, the corners of the mouth, each pair from the left of the photo.

    Raises:
        UserError: the file is missing, no such JSON, or its points are no faces'.
    """
    shown = printable(path)
    try:
        with open_file(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"{shown}: over {MAX_BYTES >> 20} MB; give fewer photos at once")
        values = json.loads(text)
    except OSError as error:
        raise UserError(f"{shown} cannot be read ({error.strerror}); check the path") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{shown}: no JSON ({printable(str(error))[:80]}); see docs/faces.md"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f'{shown}: write {{"photo.jpg": [five points, ...]}}; see docs/faces.md')
    return {
        name: tuple(_faces_of(f"{shown}: {printable(name)}", faces))
        for name, faces in values.items()
    }


def _faces_of(where: str, faces: Any) -> Iterator[Points]:
    if not isinstance(faces, list) or not faces:
        raise UserError(f"{where}: give a list of faces, each of five points")
    for number, face in enumerate(faces):
        try:
            points = np.array(face, np.float64)
            ffhq_transform(points)
        except UserError as error:
            raise UserError(f"{where}, face {number}: {error}") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{where}, face {number}: five points [x, y] make a face") from error
        yield tuple((float(x), float(y)) for x, y in points)
