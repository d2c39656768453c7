"""Levers for several different solutions, usable with every method that searches.

Source: Ünalan & Alkilani, "Multi-modal photo upsampling" (B, C, D there; A, a start of its own
for each solution, is what methods do anyway, and `starts="same"` turns it off).
"""

import re

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator, Noise

REPORT_SIZE = 256  # px: the images whose norm the weight of D was published for


def noisy_target(
    key: Key[Array, ""],
    target: Float[Array, "h w c"],
    where: Float[Array, "h w 1"],
    std: Float[Array, ""],
) -> Float[Array, "h w c"]:
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


def noise_strengths(generator: Generator) -> list[Float[Array, ""]]:
    """What each noisy layer multiplies its map by, from the input on; scalars."""
    leaves = jax.tree_util.tree_flatten_with_path(generator.params["synthesis"])[0]
    strengths = []
    for path, value in leaves:
        names = [str(getattr(part, "key", part)) for part in path]
        if names[-1] == "noise_strength":
            # "input" has no number and comes first; "b16" comes after "b8".
            order = [[int(n) for n in re.findall(r"\d+", name)] for name in names]
            strengths.append((order, value))
    return [value for _, value in sorted(strengths, key=lambda pair: pair[0])]


def injected_noise(
    key: Key[Array, ""], generator: Generator, layers: tuple[int, ...], std: Float[Array, ""]
) -> Noise:
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


def diversity(group: Int[Array, " B"], images: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """D: -sum_j ||I_i - I_j||_2 over the other solutions of the same image, (B,).

    Args:
        group: (B,) the image that each start belongs to.
        images: (B, H, W, 3) in [-1, 1]; taken as in [0, 1], and norms as at 256 px, whatever the
            resolution, so that one weight serves all generators. Summed over i this is the
            report's double sum.
    """
    n_starts, height, width = images.shape[:3]
    scale = 0.5 * REPORT_SIZE / (height * width) ** 0.5
    total = jnp.zeros(n_starts)
    for shift in range(1, n_starts):
        other = jnp.roll(images, shift, axis=0)
        square = jnp.sum(jnp.square(images - other), axis=(1, 2, 3))
        same = (group == jnp.roll(group, shift)).astype(jnp.float32)
        total = total + same * scale * jnp.sqrt(square + 1e-8)
    return -total
