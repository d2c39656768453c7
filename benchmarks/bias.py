"""Which skin does the generator draw, and does the search lighten or darken?

    python -m benchmarks.bias [--images DIR] [--draws N] [--out OUT]

Skin is measured where it is likely to be seen: in a disc on each cheek, as CIE L* and as the
individual typology angle (ITA, in degrees: the lighter, the larger). Light changes both as much as
skin does, so the figures say how pictures look and nothing about people; no attribute of a person
is guessed. Three questions:

- How are ITA's six classes spread over faces that the generator draws (--draws)?
- And over photographs framed as FFHQ's are (--images)?
- Searched from 32 px, by how much do cheeks of these photographs change, with the correction and
  without? A slope below 1 means that what differs from the mean is drawn towards it.

Sources: Chardon, Cretois, Hourseau, "Skin colour typology and suntanning pathways", 1991 (ITA; the
classes' bounds); Merler et al., "Diversity in Faces", 2019 (ITA of photographs of faces).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.common import machine_line, write_report
from stylesr_jax.errors import exit_code
from stylesr_jax.faces.detect import find_faces
from stylesr_jax.generators.base import Generator
from stylesr_jax.images.files import find_images, read_image
from stylesr_jax.loading import load_generator
from stylesr_jax.methods import method_named
from stylesr_jax.metrics.image import at_size
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure
from stylesr_jax.solver.observation import degrade_original, key_of
from stylesr_jax.solver.solve import solve

SIZE = 256  # px at which cheeks are measured
LOW = 32  # px of the inputs that are searched for
OUTWARDS, RADIUS = 0.1, 0.15  # of a cheek's disc, over the distance of the eyes
CLASSES = {  # ITA from which on a picture belongs to it, degrees
    "very light": 55.0,
    "light": 41.0,
    "intermediate": 28.0,
    "tan": 10.0,
    "brown": -30.0,
    "dark": -90.0,
}
# Linear sRGB to X, Y, Z under D65, over the white's. Source: IEC 61966-2-1.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = _TO_XYZ.sum(axis=1)


class Cheeks(NamedTuple):
    """Colour of a face's cheeks: CIE L*, 0 to 100, and ITA in degrees."""

    lightness: float
    ita: float


def to_lab(image: np.ndarray) -> np.ndarray:
    """CIE L*, a*, b* under D65 of sRGB (..., 3) in [-1, 1]."""
    value = (np.clip(image, -1.0, 1.0) + 1.0) / 2.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    t = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(t > (6 / 29) ** 3, np.cbrt(t), t * 841 / 108 + 4 / 29), -1, 0)
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def cheeks(image: np.ndarray, points: np.ndarray) -> Cheeks:
    """The median colour of each cheek's disc, and their mean.

    Args:
        image: (H, W, 3) in [-1, 1].
        points: (5, 2) in its pixels, see `faces.align.Face`.
    """
    across = points[1] - points[0]
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    medians = []
    for eye, mouth, sign in ((points[0], points[3], -1.0), (points[1], points[4], 1.0)):
        x, y = (eye + mouth) / 2.0 + sign * OUTWARDS * across
        inside = np.hypot(columns - x, rows - y) <= RADIUS * np.hypot(*across)
        medians.append(np.median(to_lab(image[inside]), axis=0))
    lightness, _, yellow = np.mean(medians, axis=0)
    return Cheeks(float(lightness), float(np.degrees(np.arctan2(lightness - 50.0, yellow))))


def spread(measured: Sequence[Cheeks]) -> dict[str, float]:
    """The share of each class of ITA, in percent."""
    names = list(CLASSES)
    bounds = -np.array(list(CLASSES.values()))
    index = np.searchsorted(bounds, [-one.ita for one in measured])
    counts = np.bincount(np.minimum(index, len(names) - 1), minlength=len(names))
    return {name: 100.0 * int(n) / len(measured) for name, n in zip(names, counts, strict=True)}


def change(before: Sequence[Cheeks], after: Sequence[Cheeks]) -> dict[str, float]:
    """L* of cheeks after a search against before: slope, mean change, and of either half."""
    x, y = (np.array([one.lightness for one in each]) for each in (before, after))
    darker = x < np.median(x)
    return {
        "slope": float(np.polyfit(x, y, 1)[0]),
        "mean": float(np.mean(y - x)),
        "darker_half": float(np.mean((y - x)[darker])),
        "lighter_half": float(np.mean((y - x)[~darker])),
    }


# --- pictures -------------------------------------------------------------------------------


def draw_faces(generator: Generator, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures (SIZE, SIZE, 3) of latents drawn from the generator, without truncation."""
    render = jax.jit(lambda generator, ws: generator.synthesise(ws)[0])
    z = jax.random.normal(jax.random.key(seed), (draws, generator.z_dim))
    styles = generator.map_latents(z)[:, None].repeat(generator.num_ws, axis=1)
    for ws in styles:
        yield np.asarray(at_size(render(generator, ws[None]), SIZE))


def largest_face(image: np.ndarray) -> np.ndarray | None:
    """The points (5, 2) of the largest face, or None."""
    faces = find_faces(image)
    return faces[0].points if faces else None


def measure_draws(generator: Generator, draws: int, seed: int) -> dict[str, Any]:
    """Cheeks of drawn faces."""
    pictures = draw_faces(generator, draws, seed)
    pairs = [(picture, largest_face(picture)) for picture in pictures]
    found = [cheeks(picture, points) for picture, points in pairs if points is not None]
    return _described(found, pictures=draws)


def _described(found: Sequence[Cheeks], *, pictures: int) -> dict[str, Any]:
    if not found:
        return {"pictures": pictures, "faces": 0}
    return {
        "pictures": pictures,
        "faces": len(found),
        "lightness": float(np.mean([one.lightness for one in found])),
        "ita": float(np.mean([one.ita for one in found])),
        "classes": spread(found),
    }


def measure_photographs(
    generator: Generator, photographs: Sequence[np.ndarray], *, preset: str, seed: int
) -> dict[str, Any]:
    """Cheeks of photographs, and of what RLS finds for them from LOW px."""
    method = method_named("rls").resolve(preset)
    prior = load_prior(generator)
    rows: list[tuple[Cheeks, Cheeks, Cheeks]] = []
    for number, photograph in enumerate(photographs):
        original = np.asarray(at_size(photograph, SIZE))
        points = largest_face(original)
        if points is None:
            continue
        key = key_of(seed, str(number))
        observation, _ = degrade_original(
            photograph, key, resolution=generator.resolution, lr_size=LOW
        )
        options = {"generator": generator, "prior": prior, "method": method, "solutions": 1}
        (result,) = solve([observation], [key], **options)
        (one,) = result.solutions
        pictures = (original, *(np.asarray(at_size(v, SIZE)) for v in (one.generated, one.image)))
        rows.append(tuple(cheeks(picture, points) for picture in pictures))  # type: ignore[arg-type]
    before, drawn, corrected = zip(*rows, strict=True) if rows else ((), (), ())
    described = _described(before, pictures=len(photographs))
    if len(rows) > 1:
        described["searched"] = {
            "preset": preset,
            "uncorrected": change(before, drawn),
            "corrected": change(before, corrected),
        }
    return described


# --- command --------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The figures in Markdown."""
    sets = {name: report[name] for name in ("drawn", "photographs") if report.get(name)}
    lines = [f"| pictures | faces | mean L* | mean ITA | {' | '.join(CLASSES)} |"]
    lines.append("|---|---:|---:|---:|" + "---:|" * len(CLASSES))
    for name, one in sets.items():
        if one["faces"]:
            shares = " | ".join(f"{share:.0f}%" for share in one["classes"].values())
            figures = f"{one['faces']} | {one['lightness']:.1f} | {one['ita']:.0f}"
            lines.append(f"| {name} | {figures} | {shares} |")
    searched = report.get("photographs", {}).get("searched")
    if searched:
        lines += ["", "| L* of cheeks, searched from 32 px | slope | mean | darker half | "]
        lines[-1] += "lighter half |"
        lines.append("|---|---:|---:|---:|---:|")
        for name in ("uncorrected", "corrected"):
            values = searched[name]
            rest = " | ".join(f"{values[key]:+.1f}" for key in list(values)[1:])
            lines.append(f"| {name} | {values['slope']:.2f} | {rest} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Measure which skin the generator draws, and what the search changes.",
        allow_abbrev=False,
    )
    add = partial(parser.add_argument)
    add("--images", type=Path, help="photographs framed as FFHQ's")
    add("--draws", type=int, default=200, help="faces that the generator draws (default: 200)")
    add("--preset", default="balanced", help="of RLS (default: balanced)")
    add("--generator", help="default: the embedded one")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(argv)

    def work() -> None:
        configure()
        named = [options.generator] if options.generator else []
        generator = load_generator(*named)
        report: dict[str, Any] = {"machine": describe_machine()}
        report["drawn"] = measure_draws(generator, options.draws, options.seed)
        if options.images:
            paths = find_images([str(options.images)])
            report["photographs"] = measure_photographs(
                generator,
                [read_image(path) for path in paths],
                preset=options.preset,
                seed=options.seed,
            )
        print(machine_line(report["machine"]), table(report), sep="\n\n")
        write_report(options.out, report)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
