"""What a run leaves in a folder: pictures, a report, and latents that redraw the pictures."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stylesr_jax.errors import UserError, printable
from stylesr_jax.generators.base import Generator
from stylesr_jax.images.files import write_image, write_png
from stylesr_jax.images.grid import result_grid
from stylesr_jax.methods.view import Latents
from stylesr_jax.runs.arrays import read_arrays
from stylesr_jax.runs.records import write_json
from stylesr_jax.runtime import files
from stylesr_jax.solver.observation import Observation
from stylesr_jax.solver.result import Result

ADVICE = "give a solutions.npz that upsample wrote"
CONFIG = {  # types of what redrawing asks for
    "generator": str,
    "generator_file": str,
    "weights_sha256": str,
    "method": str,
    "block": int,
}
LARGEST = 1e4  # of saved numbers: styles, noise, activations and weights stay far below
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
    latents = [solution.latents for solution in result.solutions if solution.latents is not None]
    none = np.zeros((len(result.solutions), 0, 0), np.float32)
    of_result = {"box": result.observation.box, "block": result.solutions[0].block}
    arrays: dict[str, np.ndarray] = {
        "ws": np.stack([latent.ws for latent in latents]) if latents else none,
        "target": result.observation.target,
        "mask": result.observation.mask,
        "config": np.asarray(json.dumps({**config, **of_result})),
    }
    corrections = [
        solution.correction for solution in result.solutions if solution.correction is not None
    ]
    if corrections:
        arrays["corrections"] = np.stack(corrections)
    parts = {
        "noise": [latent.noise for latent in latents],
        "activation": [latent.activation for latent in latents],
        "synthesis": [latent.synthesis for latent in latents],
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

    `generator` gives the structure of activations and changed weights, where there are any, and
    the shapes that the latents must have.

    Raises:
        UserError: the file is missing, damaged, not such a file, or of another generator.
    """
    arrays = read_arrays(Path(path), ADVICE)
    try:
        config = _config_of(arrays["config"])
        observation = _observation_of(arrays, config.pop("box"))
        n_solutions = _check_latents(arrays)
        latents = _latents_of(arrays, config, generator)
        corrections = tuple(arrays.get("corrections", [None] * n_solutions))
        if len(corrections) != n_solutions:
            raise ValueError("the corrections are not the solutions'")
    except (ValueError, LookupError, TypeError) as error:
        why = printable(str(error))
        raise UserError(
            f"{printable(path)}: damaged, or not a file that upsample wrote ({why}); {ADVICE}"
        ) from error
    return Saved(latents, corrections, observation, config)


def _config_of(array: np.ndarray) -> dict[str, Any]:
    try:
        config = json.loads(str(array))
    except RecursionError:
        config = None
    if not isinstance(config, dict):
        raise ValueError("its config is no object")
    for name, kind in CONFIG.items():
        if name in config and not isinstance(config[name], kind):
            raise ValueError(f"{name} in its config is no {kind.__name__}")
    return config


def _observation_of(arrays: Mapping[str, np.ndarray], box: Sequence[int]) -> Observation:
    target, mask = arrays["target"], arrays["mask"]
    side, (top, left, height, width) = len(target), map(int, box)
    if target.shape != (side, side, 3) or mask.shape != (side, side, 1):
        raise ValueError("its target or mask has another shape than an observation's")
    if min(top, left) < 0 or min(height, width) < 1 or max(top + height, left + width) > side:
        raise ValueError("its box lies outside its target")
    _check_numbers(arrays, ("target", "mask"))
    return Observation(target, mask, (top, left, height, width))


def _check_numbers(arrays: Mapping[str, np.ndarray], kinds: tuple[str, ...]) -> None:
    """Raise ValueError unless the arrays whose names begin so hold numbers below LARGEST."""
    for name, array in arrays.items():
        if name.startswith(kinds):
            if array.dtype.kind != "f":
                raise ValueError(f"{name} holds {array.dtype}")
            if array.size and not np.abs(array).max() < LARGEST:  # NaN neither
                raise ValueError(f"{name} holds numbers that are not below {LARGEST:g}")


def _check_latents(arrays: Mapping[str, np.ndarray]) -> int:
    """How many solutions there are."""
    _check_numbers(arrays, ("ws", "noise_", "activation_", "synthesis_", "corrections"))
    ws = arrays["ws"]
    if ws.ndim != 3 or len(ws) == 0:
        raise ValueError(f"its styles have the shape {ws.shape}")
    for name, stack in arrays.items():
        if name.startswith(("noise_", "activation_", "synthesis_")) and (
            stack.ndim < 1 or len(stack) not in (1, len(ws))
        ):
            raise ValueError(f"{name} is not the solutions'")
    return len(ws)


def _latents_of(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], generator: Generator | None
) -> tuple[Latents | None, ...]:
    ws = arrays["ws"]
    if ws.shape[1] == 0:
        return (None,) * len(ws)
    noise, activation, synthesis = (
        [arrays[key] for key in sorted(arrays) if key.startswith(f"{part}_")]
        for part in ("noise", "activation", "synthesis")
    )
    entering: Any = None
    if generator is not None:
        entering = _entering(generator, int(config["block"])) if activation else None
        _check_shapes("styles", [ws], jnp.zeros((generator.num_ws, generator.w_dim)))
        _check_shapes("noise maps", noise, [jnp.zeros(s) for s in generator.config.noise_shapes])
        if activation:
            _check_shapes("activations", activation, entering)
        if synthesis:
            _check_shapes("changed weights", synthesis, generator.params["synthesis"])

    def restored(stacks: list[np.ndarray], index: int, like: Any) -> Any:
        if not stacks or generator is None:
            return None
        return jax.tree.unflatten(jax.tree.structure(like), _each(stacks, index))

    return tuple(
        Latents(
            jnp.asarray(styles),
            tuple(map(jnp.asarray, _each(noise, i))),
            restored(activation, i, entering),
            restored(synthesis, i, None if generator is None else generator.params["synthesis"]),
        )
        for i, styles in enumerate(ws)
    )


def _each(stacks: Sequence[np.ndarray], index: int) -> list[np.ndarray]:
    """A solution's arrays; all solutions share those that are saved once."""
    return [stack[min(index, len(stack) - 1)] for stack in stacks]


def _entering(generator: Generator, block: int) -> Any:
    """Shapes of the activations of one start that enter a block."""
    if not 0 < block <= len(generator.config.block_resolutions):
        raise ValueError(f"{generator.name} has no block {block}")
    ws = jnp.zeros((1, generator.num_ws, generator.w_dim))
    batched = jax.eval_shape(lambda ws: generator.features(ws, block=block), ws)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batched)


def _check_shapes(what: str, stacks: Sequence[np.ndarray], like: Any) -> None:
    """Raise ValueError unless stacks hold arrays of the shapes of a tree's leaves."""
    wanted = [leaf.shape for leaf in jax.tree.leaves(like)]
    if [stack.shape[1:] for stack in stacks] != wanted:
        raise ValueError(f"its {what} are of another generator's shapes")


# --- Files of one result --------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where one result lies.

    Attributes:
        folder: of its files.
        report: the file that says, written last, that the result is whole.
        prefix: of its files' names.
        suffix: of their stems.
    """

    folder: Path
    report: Path
    prefix: str = ""
    suffix: str = ""

    def file(self, name: str) -> Path:
        """Where a file of the result lies."""
        stem, dot, ending = name.partition(".")
        return self.folder / f"{self.prefix}{stem}{self.suffix}{dot}{ending}"

    def pictures(self) -> list[Path]:
        """The solutions, deviations and photos with faces put back that are there."""
        stems = r"(solution_\d+|photo_\d+|uncertainty)"
        name = re.compile(re.escape(self.prefix) + stems + re.escape(self.suffix) + r"\.\w+")
        return [path for path in self.folder.glob("*.*") if name.fullmatch(path.name)]


def place_in(folder: str | os.PathLike[str]) -> Place:
    """A folder for one result alone."""
    root = folder if isinstance(folder, Path) else Path(folder)  # an address stays one
    return Place(root, root / "report.json")


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
