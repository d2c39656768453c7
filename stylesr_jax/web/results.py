"""What the page shows of a result, and the files that it offers."""

from collections.abc import Sequence
from html import escape
from math import isfinite, log10
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from stylesr_jax.degradations import resize
from stylesr_jax.errors import UserError
from stylesr_jax.faces.paste import paste_back
from stylesr_jax.images.files import to_uint8, write_png
from stylesr_jax.images.grid import GAIN
from stylesr_jax.runs.folder import WHITE, save_solutions
from stylesr_jax.runtime.machine import versions
from stylesr_jax.solver.observation import default_degradation
from stylesr_jax.solver.result import Result
from stylesr_jax.web.photos import Photo, enlarged
from stylesr_jax.web.request import Request
from stylesr_jax.web.searches import Models

SMALL = 256  # px: longer side of the small images as they are shown
WIDTH, HEIGHT = 480, 160  # of the loss curve's drawing


# --- pictures -------------------------------------------------------------------------------


def gallery(result: Result) -> list[tuple[np.ndarray, str]]:
    """Each solution, uint8, and its caption."""
    return [
        (to_uint8(solution.image), f"solution {i}: {solution.residual_psnr:.1f} dB")
        for i, solution in enumerate(result.solutions)
    ]


def before_and_after(result: Result, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The observation enlarged, bicubically, and a solution: uint8 of one size."""
    image = result.solutions[number].image
    smooth = resize(jnp.asarray(result.observation.image), (image.shape[0], image.shape[1]))
    return to_uint8(np.asarray(smooth)), to_uint8(image)


def downscaled(result: Result, number: int) -> np.ndarray:
    """What a solution downscales to, enlarged pixel by pixel: uint8."""
    return enlarged(result.solutions[number].low, SMALL)


def residual(result: Result, number: int) -> np.ndarray:
    """GAIN times what that misses of the observation, grey for nothing: uint8."""
    difference = GAIN * (result.solutions[number].low - result.observation.image)
    return enlarged(np.clip(difference, -1.0, 1.0), SMALL)


def uncertainty(result: Result) -> np.ndarray | None:
    """Each pixel's deviation over the solutions, white from WHITE on; None for one solution."""
    if len(result.solutions) < 2:
        return None
    shade = np.clip(result.uncertainty.mean(axis=-1) / WHITE, 0.0, 1.0)
    return np.rint(shade * 255.0).astype(np.uint8)


def description(result: Result, number: int) -> str:
    """A solution in a line."""
    solution = result.solutions[number]
    parts = [
        f"Solution {number}",
        f"downscaled it matches the observation to {solution.residual_psnr:.1f} dB "
        f"(mean difference {solution.residual_l1 * 127.5:.2f} of 255)",
        f"before the correction {solution.generated_psnr:.1f} dB",
    ]
    return "; ".join(parts if solution.status == "ok" else [*parts, solution.status])


def loss_curve(losses: Sequence[float], step: int, steps: int) -> str:
    """A curve of the loss, on a logarithmic scale where it can be, as an SVG with its text."""
    values = [value for value in losses if isfinite(value)]
    if not values:
        return ""
    logarithmic = min(values) > 0.0
    heights = [log10(value) for value in values] if logarithmic else values
    low, span = min(heights), (max(heights) - min(heights)) or 1.0
    across = WIDTH * step / max(steps, 1) / len(values)
    points = " ".join(
        f"{(i + 1) * across:.1f},{HEIGHT - 6 - (HEIGHT - 12) * (y - low) / span:.1f}"
        for i, y in enumerate(heights)
    )
    text = f"loss {values[-1]:.4g} at step {step} of {steps}, from {values[0]:.4g}" + (
        " (logarithmic scale)" if logarithmic else ""
    )
    return (
        f'<figure class="loss"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(text)}" preserveAspectRatio="none">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="2"/></svg>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


# --- files ----------------------------------------------------------------------------------


def pasted_back(photo: Photo, choice: str, solution: np.ndarray) -> np.ndarray:
    """The photo enlarged, with a solution in its face's place: (H, W, 3) uint8.

    Raises:
        UserError: the whole picture was taken, or the photo is too large.
    """
    transform = photo.transform(choice)
    if transform is None:
        raise UserError("the whole picture was super-resolved: the solution is the photo enlarged")
    return paste_back(photo.image, [transform], [solution])


def write_picture(folder: Path, name: str, image: np.ndarray) -> Path:
    """A picture's PNG file in a folder, without metadata of the photo's."""
    path = folder / f"{name}.png"
    write_png(path, image)
    return path


def write_latents(
    folder: Path, result: Result, request: Request, models: Models, photo: Photo
) -> Path:
    """The solutions.npz of a result, as `upsample --from` and `--start` read it."""
    path = folder / "solutions.npz"
    config = {
        "generator": models.name,
        "generator_file": str(models.weights_file),
        "weights_sha256": models.identity["weights_sha256"],
        "class": models.identity.get("class"),
        "degradation": str(default_degradation(result.observation)),
        "method": result.method,
        "settings": result.settings,
        "seed": request.seed,
        "input": photo.name,
        "versions": versions(),
    }
    save_solutions(path, result, config)
    return path
