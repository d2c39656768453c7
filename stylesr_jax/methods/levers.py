"""Levers for several different solutions, usable with every method that searches.

Source: Ünalan & Alkilani, "Multi-modal photo upsampling" (B, C, D there; A, a start of its own
for each solution, is what methods do anyway, and "starts": "same" turns it off).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator, Noise
from stylesr_jax.methods.terms import Example, Shared

LEVERS: Mapping[str, float | str] = {
    "starts": "own",  # A: "own" start for each solution, or the "same" one
    "noise_std": 0.0,  # B: of Gaussian noise on the reference, images in [-1, 1]
    "inject_noise": 0.0,  # C: of Gaussian noise added to the activations of synthesis layers
    "inject_layers": "all",  # C: "all" or such as "0,3-8", numbered from the input
    "diversity": 0.0,  # D: weight of the distance between an image's solutions
    "fidelity": 1.0,  # how much of what solutions miss of the input is put in, see `consistency`
}
REPORT_SIZE = 256  # px: the images whose norm the weight of D was published for


def noisy_target(key: Array, target: Array, where: Array, std: Array) -> Array:
    """B: target (h, w, c) plus std x N(0, 1) where `where` (h, w, 1) in [0, 1] says so."""
    return target + std * where * jax.random.normal(key, target.shape)


def layer_range(text: str, n_layers: int) -> tuple[int, ...]:
    """The numbers of "all", or of numbers and ranges such as "0,3-8" or "0+3-8"; empty without
    layers.

    Raises:
        UserError: the text is neither, or names a layer that there is not.
    """
    if text.strip() == "all" or n_layers == 0:
        return tuple(range(n_layers))
    chosen: set[int] = set()
    for part in re.split("[,+]", text):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        low = int(match[1]) if match else n_layers
        high = int(match[2] or low) if match else n_layers
        if not low <= high < n_layers:
            raise UserError(
                f"noise layers {text!r}: write all, or numbers and ranges from 0 to "
                f"{n_layers - 1} such as 0,3-{n_layers - 1}"
            )
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def noise_strengths(generator: Generator) -> list[Array]:
    """What each noisy layer multiplies its map by, from the input on; scalars."""
    leaves = jax.tree_util.tree_flatten_with_path(generator.params["synthesis"])[0]
    found = []
    for path, value in leaves:
        names = [str(getattr(part, "key", part)) for part in path]
        if names[-1] == "noise_strength":
            # "input" has no number and comes first; "b16" comes after "b8".
            order = [[int(n) for n in re.findall(r"\d+", name)] for name in names]
            found.append((order, value))
    return [value for _, value in sorted(found, key=lambda pair: pair[0])]


def injected_noise(key: Array, generator: Generator, layers: tuple[int, ...], std: Array) -> Noise:
    """C: maps to add to the noise maps so that activations change by std x N(0, 1).

    A layer multiplies its map by its learnt strength, so the maps are divided by it; layers of
    strength 0 ignore their maps and get none.
    """
    maps = generator.random_noise(key)
    strengths = noise_strengths(generator)

    def scaled(index: int, noise: Array, strength: Array) -> Array:
        if index not in layers:
            return jnp.zeros_like(noise)
        gain = jnp.where(strength == 0.0, 0.0, std / jnp.where(strength == 0.0, 1.0, strength))
        return gain * noise

    pairs = zip(maps, strengths, strict=True)
    return tuple(scaled(i, noise, strength) for i, (noise, strength) in enumerate(pairs))


def diversity(shared: Shared, examples: Example, images: Any) -> dict[str, Array]:
    """D: -weight x sum_j ||I_i - I_j||_2 over the other solutions of the same image, (B,).

    Images (B, H, W, 3) as in [0, 1]; norms as at 256 px, whatever the resolution, so that one
    weight serves all generators. Summed over i this is the report's double sum.
    """
    n_starts, height, width = images.shape[:3]
    scale = 0.5 * REPORT_SIZE / (height * width) ** 0.5
    total = jnp.zeros(n_starts)
    for shift in range(1, n_starts):
        other = jnp.roll(images, shift, axis=0)
        square = jnp.sum(jnp.square(images - other), axis=(1, 2, 3))
        same = (examples.group == jnp.roll(examples.group, shift)).astype(jnp.float32)
        total = total + same * scale * jnp.sqrt(square + 1e-8)
    return {"diversity": -shared.settings["diversity"] * total}
