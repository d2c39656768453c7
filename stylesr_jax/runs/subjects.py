"""What is searched for in a decoded picture: the whole of it or a face, as it is or degraded."""

from collections.abc import Iterable
from dataclasses import replace

import jax
import numpy as np

from stylesr_jax.degradations import Degradation
from stylesr_jax.errors import UserError
from stylesr_jax.faces.align import Face, align
from stylesr_jax.images.decoding import Picture
from stylesr_jax.metrics.image import at_shape
from stylesr_jax.runs.alignment import notes_of_face
from stylesr_jax.runs.plan import Plan
from stylesr_jax.runs.worker import Source, Subject
from stylesr_jax.solver.covariance import Covariance, of_picture
from stylesr_jax.solver.observation import (
    DATA_KEY,
    MAX_LOW,
    Observation,
    default_degradation,
    degrade_original,
    key_of,
    place_on_canvas,
    realised_for_search,
    reduced,
)

SAID = 1.0  # levels of 255: what inputs are not known to is said from here on
COMPARED = 256  # px: longer side at which solutions are compared with an original


def whole(plan: Plan, source: Source, picture: Picture, notes: Iterable[str] = ()) -> Subject:
    """A picture as it is; unless it is an original, it is reduced to 256 px.

    Raises:
        UserError: it cannot be searched for.
    """
    image, notes = picture.pixels, [*picture.notes, *notes]
    if _is_original(plan, image, image):
        return _degraded(plan, source, image, notes)
    if max(image.shape[:2]) > MAX_LOW:
        image = reduced(image)
        notes.append(f"reduced from {_size(picture.pixels)} to {_size(image)} px")
    return _observed(plan, source, image, of_picture(picture, image), notes)


def face_of(plan: Plan, source: Source, picture: Picture, number: int, face: Face) -> Subject:
    """A face of a picture, aligned, at the size that it has there.

    Raises:
        UserError: it cannot be searched for.
    """
    source = source.of_face(number)
    crop, seen = align(picture.pixels, face.points)
    notes = [*picture.notes, *notes_of_face(face, picture.pixels)]
    if _is_original(plan, crop, picture.pixels):
        return _degraded(plan, source, crop, notes)
    noise = of_picture(picture, crop)
    # Grey where nothing is known: what is mirrored there would look like an observation.
    return _observed(plan, source, crop * seen[..., None], noise, notes, seen)


def _is_original(plan: Plan, image: np.ndarray, picture: np.ndarray) -> bool:
    """Whether a small version is made of an image (H, W, 3), all or part of a picture."""
    if plan.degradation is not None:
        return max(picture.shape[:2]) > MAX_LOW
    return plan.lr_size is not None and max(image.shape[:2]) > plan.lr_size


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _degraded(plan: Plan, source: Source, image: np.ndarray, notes: Iterable[str]) -> Subject:
    """An original, of which solutions are compared with a small version."""
    observation, assumed = degrade_original(
        image,
        key_of(plan.seed, source.content),
        resolution=plan.generator.resolution,
        lr_size=plan.lr_size or MAX_LOW,
        degradation=plan.degradation,
        truth=plan.truth,
        noise=plan.told_noise,
    )
    original = np.asarray(at_shape(image, compared_size(*image.shape[:2])))
    said = f"degraded to {_size(observation.image)} px; solutions are compared with the original"
    return _subject(source, observation, assumed, original, (*notes, said))


def _observed(
    plan: Plan,
    source: Source,
    image: np.ndarray,
    noise: Covariance,
    notes: Iterable[str],
    seen: np.ndarray | None = None,
) -> Subject:
    """A picture or face at the size that it has.

    Args:
        noise: Sigma, read from the file; --fidelity may tell another.
        seen: (H, W), how much of each pixel is known; None: all of it.
    """
    noise = plan.told_noise or noise
    observation = replace(place_on_canvas(image, seen), noise=noise)
    if (levels := 127.5 * noise.std) >= SAID:
        notes = (*notes, f"its values are taken as known to {levels:.1f} of 255 levels")
    if plan.degradation is None:
        assumed = default_degradation(observation)
    elif plan.truth:
        key = jax.random.fold_in(key_of(plan.seed, source.content), DATA_KEY)
        resolution = plan.generator.resolution
        assumed = realised_for_search(observation, plan.degradation, key, resolution=resolution)
    else:
        raise UserError(
            f"it is small already, and --degradation damages inputs of over {MAX_LOW} px; "
            "if that is how it came about, add --search-degradation truth"
        )
    return _subject(source, observation, assumed, None, notes)


def _subject(
    source: Source,
    observation: Observation,
    assumed: Degradation,
    original: np.ndarray | None,
    notes: Iterable[str],
) -> Subject:
    fields = (source.path, source.sha256, observation, assumed, original, tuple(notes))
    return Subject(*fields, face=source.face)


def compared_size(height: int, width: int) -> tuple[int, int]:
    """The size, longer side COMPARED px, at which solutions are compared with an original."""
    scale = COMPARED / max(height, width)
    return max(round(height * scale), 16), max(round(width * scale), 16)
