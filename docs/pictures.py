"""The pictures of docs/tutorial.md, made anew: python docs/pictures.py

All of them come from the shipped portrait (NASA, public domain). The tutorial's photo is a wall
with two prints of the portrait, so that faces have to be found, turned and put back.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stylesr_jax import Generator, Prior, Result, load_generator, load_prior, upsample
from stylesr_jax.errors import exit_code
from stylesr_jax.faces.align import Face, align
from stylesr_jax.faces.detect import find_faces
from stylesr_jax.faces.paste import paste_back
from stylesr_jax.images.files import read_image, to_uint8
from stylesr_jax.images.grid import draw_grid, result_grid
from stylesr_jax.runtime.startup import configure
from stylesr_jax.solver.observation import key_of

IMAGES = Path(__file__).resolve().parent / "images"
PORTRAIT = IMAGES / "astronaut.png"
SIZE = (192, 128)  # of the photo, px
PRINTS = ((94, (62, 66), 4.0), (60, (153, 76), -17.0))  # side in px, middle, degrees
SHOWN = 960  # px: width of pictures of the whole photo
QUALITY = 88  # of JPEG


def make_photo() -> Image.Image:
    """The portrait twice, large and small, both askew, on a wall lit from the left."""
    fine = 4
    width, height = SIZE[0] * fine, SIZE[1] * fine
    light = np.linspace(225, 165, width) + np.zeros((height, 1))
    wall = np.stack([light, light * 0.97, light * 0.9], axis=-1).astype(np.uint8)
    photo = Image.fromarray(wall)
    for side, middle, degrees in PRINTS:
        _hang(photo, side * fine, (middle[0] * fine, middle[1] * fine), degrees)
    return photo.resize(SIZE, Image.Resampling.BICUBIC)


def _hang(wall: Image.Image, side: int, middle: tuple[int, int], degrees: float) -> None:
    """Paste a print with a white border and a shadow."""
    border = side // 16
    sheet = Image.new("RGB", (side + 2 * border, side + 2 * border), "white")
    portrait = Image.open(PORTRAIT).convert("RGB")
    sheet.paste(portrait.resize((side, side), Image.Resampling.LANCZOS), (border, border))
    turned = sheet.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    shape = Image.new("L", sheet.size, 255).rotate(degrees, expand=True)
    corner = (middle[0] - turned.width // 2, middle[1] - turned.height // 2)
    shadow = Image.new("L", wall.size)
    shadow.paste(90, (corner[0] + border // 2, corner[1] + border // 2), shape)
    wall.paste((60, 55, 50), mask=shadow.filter(ImageFilter.GaussianBlur(border)))
    wall.paste(turned, corner, shape)


def draw_faces(photo: np.ndarray, faces: Sequence[Face]) -> Image.Image:
    """The photo enlarged, with each face's frame, points and number."""
    scale = SHOWN / photo.shape[1]
    picture = _enlarged(photo)
    draw = ImageDraw.Draw(picture)
    for number, face in enumerate(faces):
        corners = [tuple(corner * scale) for corner in face.transform.corners]
        draw.polygon(corners, outline=(0, 230, 80), width=4)
        draw.text(corners[0], f" face {number}", fill=(0, 110, 40), font_size=26)
        for x, y in face.points * scale:
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(255, 60, 60))
    return picture


def _enlarged(photo: np.ndarray) -> Image.Image:
    height = round(SHOWN * photo.shape[0] / photo.shape[1])
    return Image.fromarray(to_uint8(photo)).resize((SHOWN, height), Image.Resampling.BICUBIC)


def write_pictures(
    out: Path, *, generator: Generator, prior: Prior, preset: str, solutions: int
) -> None:
    """Write every picture of the tutorial to a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    make_photo().save(out / "tutorial-photo.png")
    photo = read_image(out / "tutorial-photo.png")
    faces = find_faces(photo)
    results = [
        _searched(photo, face, number, generator, prior, preset, 1 if number else solutions)
        for number, face in enumerate(faces)
    ]
    observed = [(f"face {i}", r.observation.image, False) for i, r in enumerate(results)]
    pasted = paste_back(
        photo, [face.transform for face in faces], [r.solutions[0].image for r in results]
    )
    pictures = {
        "faces": draw_faces(photo, faces),
        "observations": Image.fromarray(draw_grid([list(observed)])),
        "solutions": Image.fromarray(result_grid(results[0])),
        "before": _enlarged(photo),
        "after": Image.fromarray(pasted).resize((SHOWN, 640), Image.Resampling.LANCZOS),
    }
    for name, picture in pictures.items():
        picture.save(out / f"tutorial-{name}.jpg", quality=QUALITY)


def _searched(
    photo: np.ndarray,
    face: Face,
    number: int,
    generator: Generator,
    prior: Prior,
    preset: str,
    solutions: int,
) -> Result:
    """The solutions of one face, searched at the size that the face has in the photo."""
    observation, _ = align(photo, face.points)
    return upsample(
        observation,
        generator=generator,
        prior=prior,
        preset=preset,
        solutions=solutions,
        key=key_of(0, f"face {number}"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; its exit code."""
    parser = argparse.ArgumentParser(
        description="Make the tutorial's pictures anew.", allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=IMAGES, help="default: docs/images")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--solutions", type=int, default=3)
    options = parser.parse_args(argv)

    def work() -> None:
        configure()
        generator = load_generator()
        write_pictures(
            options.out,
            generator=generator,
            prior=load_prior(generator),
            preset=options.preset,
            solutions=options.solutions,
        )

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
