"""What a run leaves in a folder: pictures, a report, and latents that redraw the pictures."""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.images.files import write_image, write_png
from stylesr_jax.images.grid import result_grid
from stylesr_jax.methods.view import Latents
from stylesr_jax.runs.records import write_json
from stylesr_jax.runtime import files
from stylesr_jax.solver.observation import Observation
from stylesr_jax.solver.result import Result

Format = Literal["png", "jpg", "webp"]  # of solutions
WHITE = 0.5  # the deviation that uncertainty.png shows as white; images in [-1, 1]


# --- Latents that redraw the pictures --------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """What `solutions.npz` holds.

    Attributes:
        latents: one `Latents` per solution, noise maps included; None for a method that
            searches nothing.
        corrections: one for each solution, see `consistency.correction`; None for nothing.
        observation: what was super-resolved.
        config: generator name or path, its weights' sha256, degradation, method, settings, seed.
    """

    latents: tuple[Latents | None, ...]
    corrections: tuple[np.ndarray | None, ...]
    observation: Observation
    config: dict[str, Any]


def save_solutions(path: str | os.PathLike[str], result: Result, config: Mapping[str, Any]) -> None:
    """Write the latents of all solutions, every noise map, and `config`, to one .npz file.

    Noise maps that all solutions share are written once.

    Raises:
        UserError: the folder cannot be written.
    """
    latents = [one.latents for one in result.solutions if one.latents is not None]
    none = np.zeros((len(result.solutions), 0, 0), np.float32)
    arrays: dict[str, np.ndarray] = {
        "ws": np.stack([one.ws for one in latents]) if latents else none,
        "target": result.observation.target,
        "mask": result.observation.mask,
        "config": np.asarray(json.dumps({**config, "box": result.observation.box})),
    }
    corrections = [one.correction for one in result.solutions if one.correction is not None]
    if corrections:
        arrays["corrections"] = np.stack(corrections)
    parts = {
        "noise": [one.noise for one in latents],
        "activation": [one.activation for one in latents],
        "synthesis": [one.synthesis for one in latents],
    }
    for name, trees in parts.items():
        if not trees or trees[0] is None:
            continue
        for i, leaves in enumerate(zip(*map(jax.tree.leaves, trees), strict=True)):
            shared = all(np.array_equal(leaves[0], leaf) for leaf in leaves[1:])
            arrays[f"{name}_{i:03d}"] = np.stack(leaves[:1] if shared else leaves)
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_solutions(path: str | os.PathLike[str], generator: Generator | None = None) -> Saved:
    """Read what `save_solutions` wrote; nothing in the file is executed.

    `generator` gives the structure of activations and changed weights, where there are any.

    Raises:
        UserError: the file is missing, damaged, or not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a solutions.npz that upsample wrote")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = dict(file)
        config = json.loads(str(arrays["config"]))
        ws, target, mask = arrays["ws"], arrays["target"], arrays["mask"]
        box = tuple(config.pop("box"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged, or not a file that upsample wrote ({error})") from error

    def leaves(name: str, index: int) -> list[np.ndarray]:
        stacks = [arrays[key] for key in sorted(arrays) if key.startswith(f"{name}_")]
        return [stack[min(index, len(stack) - 1)] for stack in stacks]

    def restore(name: str, index: int, like: Any) -> Any:
        found = leaves(name, index)
        return jax.tree.unflatten(jax.tree.structure(like), found) if found else None

    latents: list[Latents | None] = []
    for i in range(len(ws)):
        if ws.shape[1] == 0:
            latents.append(None)
            continue
        activation = synthesis = None
        if generator is not None:
            synthesis = restore("synthesis", i, generator.params["synthesis"])
            if leaves("activation", i):
                block = int(config["block"])
                entering = jax.eval_shape(
                    lambda w, block=block: generator.features(w, block=block), ws[:1]
                )
                activation = restore("activation", i, entering)
        noise = tuple(map(jnp.asarray, leaves("noise", i)))
        latents.append(Latents(jnp.asarray(ws[i]), noise, activation, synthesis))
    corrections = tuple(arrays.get("corrections", [None] * len(ws)))
    return Saved(tuple(latents), corrections, Observation(target, mask, box), config)


# --- Files of one result --------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where one result lies.

    Attributes:
        folder: of its files.
        report: the file that says, written last, that the result is whole.
        prefix: of its files' names.
    """

    folder: Path
    report: Path
    prefix: str = ""

    def file(self, name: str) -> Path:
        """Where a file of the result lies."""
        return self.folder / f"{self.prefix}{name}"

    def pictures(self) -> list[Path]:
        """The solutions and deviations that are there."""
        name = re.compile(re.escape(self.prefix) + r"(solution_\d+|uncertainty)\.\w+")
        return [path for path in self.folder.glob("*.*") if name.fullmatch(path.name)]


def place_in(folder: str | os.PathLike[str]) -> Place:
    """A folder for one result alone."""
    return Place(Path(folder), Path(folder) / "report.json")


def write_result(
    place: Place,
    result: Result,
    *,
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    original: np.ndarray | None = None,
    uncertainty: bool = False,
    only_images: bool = False,
    format: Format = "png",
) -> None:
    """Write solution_i.png (or jpg, webp: `format`), grid.png, solutions.npz and, last, the report.

    With `uncertainty`, also the standard deviation of each pixel over the solutions:
    uncertainty.npy, (H, W, 3) float32 with images in [-1, 1], and uncertainty.png, its mean over
    the colours, black for 0 and white from 0.5 on. With `only_images` the solutions and the
    report are all.

    A result without its report is unfinished: that is what resuming looks at.

    Raises:
        UserError: the folder cannot be written, or there is no deviation of one solution.
    """
    deviation = result.uncertainty if uncertainty else None
    place.report.unlink(missing_ok=True)
    for stale in place.pictures():
        stale.unlink()
    for i, solution in enumerate(result.solutions):
        write_image(place.file(f"solution_{i}.{format}"), solution.image, format=format)
    if not only_images:
        write_png(place.file("grid.png"), result_grid(result, original))
        if deviation is not None:
            _write_uncertainty(place, deviation)
        save_solutions(place.file("solutions.npz"), result, config)
    write_json(place.report, report)


def _write_uncertainty(place: Place, deviation: np.ndarray) -> None:
    with files.atomic_path(place.file("uncertainty.npy")) as path, open(path, "wb") as file:
        np.save(file, deviation)
    shade = np.rint(np.clip(deviation.mean(axis=-1) / WHITE, 0.0, 1.0) * 255.0)
    write_png(place.file("uncertainty.png"), shade.astype(np.uint8))
