"""A photo with faces: what its folder says of it, and the photo with its solutions put back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylesr_jax.errors import UserError
from stylesr_jax.faces.align import Face, observation_size, seen_fraction
from stylesr_jax.faces.paste import MAX_PIXELS, default_scale, paste_back
from stylesr_jax.images.files import read_image, to_uint8, write_image
from stylesr_jax.runs.folder import Format, Place


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo of whose faces solutions are searched for.

    Attributes:
        size: width and height.
        faces: those that are searched for, the largest first.
        found: how many there are in all.
        entries: of each face, what reports say of its place.
        scale: how many times the photo is enlarged for `paste`.
        pixels: (H, W, 3) uint8; None where nothing is put back.
    """

    size: tuple[int, int]
    faces: tuple[Face, ...]
    found: int
    entries: tuple[dict[str, Any], ...]
    scale: int
    pixels: np.ndarray | None


def photo_of(
    image: np.ndarray,
    faces: Sequence[Face],
    *,
    most: int | None,
    resolution: int,
    scale: int | None,
    pasted: bool,
) -> Photo:
    """A photo (H, W, 3) in [-1, 1] and its faces, the largest first.

    Args:
        most: faces at most.
        resolution: of the generator.
        scale: None: as much as the largest face needs.
        pasted: whether the solutions are put back.

    Raises:
        UserError: the enlarged photo would be too large.
    """
    height, width = image.shape[:2]
    chosen = tuple(faces[:most])
    if scale is None:
        scale = default_scale(image.shape, [face.transform for face in chosen], resolution)
    elif pasted and scale > 1 and height * width * scale**2 > MAX_PIXELS:
        raise UserError(
            f"--scale {scale} makes over {MAX_PIXELS // 10**6} million pixels of {width}x{height}; "
            "choose a smaller one"
        )
    return Photo(
        size=(width, height),
        faces=chosen,
        found=len(faces),
        entries=tuple(_entry(face, image) for face in chosen),
        scale=scale,
        pixels=to_uint8(image) if pasted else None,
    )


def _entry(face: Face, image: np.ndarray) -> dict[str, Any]:
    transform = face.transform
    return {
        "points": face.points.tolist(),
        "score": face.score,
        "transform": {
            "center": transform.center.tolist(),
            "size": transform.size,
            "rotation_degrees": face.roll,
        },
        "observation_size": observation_size(transform),
        "seen": seen_fraction(image, transform),
    }


def paste(
    photo: Photo, pictures: Sequence[Sequence[Path]], place: Place, format: Format
) -> dict[str, Any]:
    """Write photo_i.png (or jpg, webp) for each solution; what the report says of them.

    Args:
        pictures: the files of the solutions, for each face.
        place: of the photo's results.

    Raises:
        UserError: a picture is missing, or the folder cannot be written.
    """
    assert photo.pixels is not None
    pixels = photo.pixels / np.float32(127.5) - np.float32(1.0)
    transforms = [face.transform for face in photo.faces]
    names, agreement = [], []
    for i, ith in enumerate(zip(*pictures, strict=True)):
        solutions = [read_image(path) for path in ith]
        # Where faces overlap the last one is on top: the largest.
        picture = paste_back(pixels, transforms[::-1], solutions[::-1], photo.scale)
        path = place.file(f"photo_{i}.{format}")
        write_image(path, picture, format=format)
        names.append(path.name)
        agreement.append(_psnr(picture, photo.pixels))
    return {"scale": photo.scale, "files": names, "downscaled_psnr": agreement}


def _psnr(picture: np.ndarray, photo: np.ndarray) -> float:
    """dB, of an enlarged picture shrunk as Pillow does it against the photo, both in 8 bits."""
    size = (photo.shape[1], photo.shape[0])
    shrunk = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    error = np.asarray(shrunk, np.float32) - photo
    return float(10.0 * np.log10(255.0**2 / max(float(np.mean(error**2)), 1e-6)))
