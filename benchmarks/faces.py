"""How well are faces found and aligned, and how fast?

    python -m benchmarks.faces --images DIR [--faceless DIR] [--sheet FILE.png] [--out FILE.json]

DIR holds photographs that are framed as FFHQ's are. Each picture is a composite: one to three of
them, shrunk or enlarged until the face has 24 to 400 px from eye to chin, turned by up to 45
degrees and pasted with a soft edge on noise, on a gradient or on a photograph without faces. So
the frame that alignment should find is known. "crop" is the median distance of the crop's corners
from it over its side, "points" that of the five points from those found on the framed photograph,
over the distance of the eyes. False faces are those that lie on no pasted one, on composites and on
pictures without faces: scikit-image's, synthetic ones, and those in the folder --faceless.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from skimage import data

from benchmarks.common import machine_line, write_report
from stylesr_jax.errors import exit_code
from stylesr_jax.faces.align import Face
from stylesr_jax.faces.detect import find_faces
from stylesr_jax.images.files import find_images
from stylesr_jax.runtime.machine import describe_machine

EYE_TO_CHIN = 0.43  # of the frame's side, as FFHQ's alignment makes it
SMALLEST, LARGEST = 24, 400  # px from eye to chin
STEEPEST = 45.0  # degrees
SAME_PLACE = 0.3  # of a frame's side: how near to its middle a face is that was found
CANVASES = ((640, 480), (800, 600), (1024, 768), (1600, 1200), (600, 900))
FACELESS = (
    "brick", "cell", "checkerboard", "chelsea", "clock", "coffee", "coins", "colorwheel", "grass",
    "gravel", "horse", "hubble_deep_field", "immunohistochemistry", "microaneurysms", "moon",
    "page", "retina", "rocket", "shepp_logan_phantom", "text",
)  # fmt: skip
PHOTOGRAPHS = ("brick", "chelsea", "coffee", "coins", "grass", "gravel", "retina", "rocket")


@dataclass(frozen=True)
class Pasted:
    """A face in a composite: its frame's corners (4, 2) in px, and of which photograph."""

    corners: np.ndarray
    photo: int
    eye_to_chin: float  # px


def faceless_picture(name: str) -> Image.Image:
    """One of scikit-image's pictures in RGB."""
    pixels = np.asarray(getattr(data, name)())
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype != np.uint8:
        pixels = np.clip(pixels / pixels.max() * 255.0, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def noise(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Coloured noise of several scales."""
    total = np.zeros((size[1], size[0], 3), np.float32)
    for scale in (1, 4, 16, 64):
        shape = (size[1] // scale + 2, size[0] // scale + 2, 3)
        layer = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        total += np.asarray(layer.resize(size, Image.Resampling.BICUBIC), np.float32) / 4.0
    return Image.fromarray(total.astype(np.uint8))


def gradient(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Four colours, blended from the corners."""
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
    return corners.resize(size, Image.Resampling.BILINEAR)


def shapes(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Ellipses and boxes of every size on a gradient, blurred a little."""
    picture = gradient(rng, size)
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        w, h = rng.uniform(10, 200, 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        kind = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        kind((x, y, x + w, y + h), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3))))


def photograph(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A part of one of scikit-image's photographs, enlarged to the size if need be."""
    picture = faceless_picture(str(rng.choice(PHOTOGRAPHS)))
    scale = max(size[0] / picture.width, size[1] / picture.height) * float(rng.uniform(1.0, 1.5))
    picture = picture.resize((round(picture.width * scale) + 1, round(picture.height * scale) + 1))
    x = int(rng.integers(0, picture.width - size[0] + 1))
    y = int(rng.integers(0, picture.height - size[1] + 1))
    return picture.crop((x, y, x + size[0], y + size[1]))


BACKGROUNDS = (noise, gradient, photograph)


def _paste(
    rng: np.random.Generator, canvas: Image.Image, photos: list[Image.Image], taken: list[Pasted]
) -> Pasted | None:
    """Paste one face, or nothing where there is no room beside those there are."""
    chin = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    side = chin / EYE_TO_CHIN
    roll = float(rng.uniform(-STEEPEST, STEEPEST))
    turned = np.deg2rad(roll)
    reach = side / 2 * (abs(np.cos(turned)) + abs(np.sin(turned)))
    if 2 * reach > min(canvas.size):
        return None
    centre = np.array([rng.uniform(reach, limit - reach) for limit in canvas.size])
    for other in taken:
        gap = np.linalg.norm(centre - other.corners.mean(0))
        if gap < reach + np.ptp(other.corners[:, 0]) / 2 + 4:
            return None
    index = int(rng.integers(len(photos)))
    photo = photos[index].resize((round(side), round(side)), Image.Resampling.BICUBIC)
    axis = np.array([np.cos(turned), np.sin(turned)]) * side / photo.width  # of the photo's rows
    across, down = axis, np.array([-axis[1], axis[0]])
    inverse = np.linalg.inv(np.stack([across, down], axis=1))
    offset = photo.width / 2 - inverse @ centre
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    edge = max(photo.width // 16, 1)
    mask = Image.new("L", photo.size)
    mask.paste(255, (edge, edge, photo.width - edge, photo.width - edge))
    mask = mask.filter(ImageFilter.GaussianBlur(edge / 2))
    bicubic, affine = Image.Resampling.BICUBIC, Image.Transform.AFFINE
    canvas.paste(
        photo.transform(canvas.size, affine, matrix, bicubic),
        mask=mask.transform(canvas.size, affine, matrix, bicubic),
    )
    half = photo.width / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    corners = np.stack([centre + half * (sx * across + sy * down) for sx, sy in signs])
    return Pasted(corners, index, chin)


def composite(
    rng: np.random.Generator, photos: list[Image.Image]
) -> tuple[Image.Image, list[Pasted]]:
    """A picture with one to three pasted faces."""
    size = CANVASES[int(rng.integers(len(CANVASES)))]
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    canvas = background(rng, size)
    pasted: list[Pasted] = []
    wanted = int(rng.integers(1, 4))
    for _ in range(20):
        if len(pasted) < wanted and (face := _paste(rng, canvas, photos, pasted)):
            pasted.append(face)
    return canvas, pasted


# --- what is found --------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A pasted face and what was found of it: errors as fractions, NaN if it was missed."""

    pasted: Pasted
    crop: float = np.nan
    points: float = np.nan


def to_floats(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 in [-1, 1]."""
    return np.asarray(picture.convert("RGB"), np.float32) / np.float32(127.5) - np.float32(1.0)


def side_of(pasted: Pasted) -> float:
    """The side of a pasted frame, pixels."""
    return float(np.linalg.norm(pasted.corners[1] - pasted.corners[0]))


def _claims(face: Face, pasted: Pasted) -> bool:
    """Whether a found face lies on a pasted one."""
    apart = np.linalg.norm(face.transform.center - pasted.corners.mean(0))
    return bool(apart < SAME_PLACE * side_of(pasted))


def _errors(face: Face, pasted: Pasted, reference: np.ndarray) -> Match:
    """The errors of a found face; `reference` (5, 2): its points as fractions of its frame."""
    side = side_of(pasted)
    crop = np.linalg.norm(face.transform.corners - pasted.corners, axis=1).mean() / side
    origin, across, down = pasted.corners[0], *(pasted.corners[[1, 3]] - pasted.corners[0])
    true = origin + reference @ np.stack([across, down])
    points = np.linalg.norm(face.points - true, axis=1).mean() / np.linalg.norm(true[1] - true[0])
    return Match(pasted, float(crop), float(points))


def compare(
    faces: list[Face], pasted: list[Pasted], references: list[np.ndarray]
) -> tuple[list[Match], int, int]:
    """A match for each pasted face, how many were found twice, how many found faces are false."""
    matches, doubled, used = [], 0, set()
    for truth in pasted:
        claims = [i for i, face in enumerate(faces) if _claims(face, truth)]
        used.update(claims)
        doubled += max(len(claims) - 1, 0)
        if claims:
            matches.append(_errors(faces[claims[0]], truth, references[truth.photo]))
        else:
            matches.append(Match(truth))
    return matches, doubled, len(faces) - len(used)


def faceless_pictures(seed: int, folder: Path | None) -> list[Image.Image]:
    """scikit-image's pictures, ten synthetic ones, and those in a folder."""
    rng = np.random.default_rng(seed)
    made = [(noise, gradient, shapes, shapes, shapes)[i % 5](rng, (1024, 768)) for i in range(10)]
    found = [] if folder is None else [Image.open(path) for path in find_images([str(folder)])]
    return [*(faceless_picture(name) for name in FACELESS), *made, *found]


def seconds_for(size: tuple[int, int], seed: int) -> float:
    """The least of five times for a photograph of this size, compiled before."""
    picture = to_floats(photograph(np.random.default_rng(seed), size))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        find_faces(picture)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def drawn_on(picture: Image.Image, faces: list[Face], side: int) -> Image.Image:
    """A picture with the crops and points of faces, shrunk to a square."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for face in faces:
        corners = [tuple(corner) for corner in face.transform.corners]
        draw.polygon(corners, outline=(0, 255, 0), width=max(picture.width // 250, 1))
        radius = max(face.size / 80, 1.0)
        for x, y in face.points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 0, 0))
    picture.thumbnail((side, side))
    return picture


def write_sheet(path: Path, pictures: list[Image.Image], side: int = 320) -> None:
    """The first 24 pictures side by side."""
    sheet = Image.new("RGB", (6 * side, 4 * side))
    for i, picture in enumerate(pictures[:24]):
        sheet.paste(picture, (i % 6 * side, i // 6 * side))
    sheet.save(path)


def summary(matches: list[Match]) -> dict[str, Any]:
    """Figures of all pasted faces."""
    found = [match for match in matches if np.isfinite(match.crop)]
    small = [match for match in matches if match.pasted.eye_to_chin < 40.0]
    crops = np.array([match.crop for match in found])
    return {
        "pasted": len(matches),
        "found_percent": 100.0 * len(found) / len(matches),
        "pasted_24_to_40_px": len(small),
        "found_24_to_40_px": int(sum(np.isfinite(match.crop) for match in small)),
        "crop_median_percent": 100.0 * float(np.median(crops)),
        "crop_90_percent": 100.0 * float(np.quantile(crops, 0.9)),
        "points_median_percent": 100.0 * float(np.median([match.points for match in found])),
    }


def measure(
    images: Path, *, faceless: Path | None, pictures: int, seed: int, sheet: Path | None
) -> dict[str, Any]:
    """All figures, in percent, pixels and milliseconds."""
    photos = [Image.open(path).convert("RGB") for path in find_images([str(images)])]
    found = [find_faces(to_floats(photo)) for photo in photos]
    usable = [(p, faces[0]) for p, faces in zip(photos, found, strict=True) if faces]
    references = [face.points / np.array(photo.size) for photo, face in usable]
    rng = np.random.default_rng(seed)
    matches: list[Match] = []
    doubled = false = 0
    shown = []
    for _ in range(pictures):
        picture, pasted = composite(rng, [photo for photo, _ in usable])
        faces = find_faces(to_floats(picture))
        of_picture, twice, wrong = compare(faces, pasted, references)
        matches += of_picture
        doubled, false = doubled + twice, false + wrong
        shown.append(drawn_on(picture, faces, 320))
    if sheet:
        write_sheet(sheet, shown)
    without = faceless_pictures(seed, faceless)
    return {
        "machine": describe_machine(),
        "photographs": len(photos),
        "photographs_without_a_found_face": len(photos) - len(usable),
        "composites": pictures,
        **summary(matches),
        "doubled": doubled,
        "false_on_composites": false,
        "faceless": len(without),
        "false_on_faceless": sum(len(find_faces(to_floats(picture))) for picture in without),
        "milliseconds_1600x1200": 1e3 * seconds_for((1600, 1200), seed),
    }


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Measure how faces are found and aligned.", allow_abbrev=False
    )
    parser.add_argument("--images", type=Path, required=True, help="photographs framed as FFHQ's")
    parser.add_argument("--faceless", type=Path, help="more pictures without faces")
    parser.add_argument("--pictures", type=int, default=100, help="composites (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write 24 composites with what was found")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()

    def work() -> None:
        report = measure(
            options.images,
            faceless=options.faceless,
            pictures=options.pictures,
            seed=options.seed,
            sheet=options.sheet,
        )
        print(machine_line(report["machine"]))
        for name, value in report.items():
            if name != "machine":
                print(f"{name.replace('_', ' ')}: {value:.4g}")
        write_report(options.out, report)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
