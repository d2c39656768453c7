"""Low-resolution observations: placed on a canvas, or made from originals."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.degradations import Bicubic, Degradation, output_shape, resize, scaled_size
from stylesr_jax.degradations.resize import resize_matrix
from stylesr_jax.errors import UserError
from stylesr_jax.solver.covariance import Covariance, of_degraded

MAX_LOW = 256  # px: what is larger is no low-resolution observation
MIN_LOW = 4
DATA_KEY = 2**31  # folded into an image's key for the degradation of its data


@dataclass(frozen=True)
class Observation:
    """A low-resolution image on a square canvas, as generators make squares.

    Attributes:
        target: (s, s, 3) float32 in [-1, 1], s the longer side; padding repeats the edge.
        mask: (s, s, 1), 1 on the image and 0 on the padding, which no term looks at.
        box: (top, left, height, width) of the image in the canvas.
        noise: Sigma, how far the image may be off; None where a search's A has no linear part,
            so that solutions cannot be corrected.
    """

    target: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]
    noise: Covariance | None = field(default_factory=Covariance)

    @property
    def image(self) -> Float[np.ndarray, "height width 3"]:
        """The image alone."""
        top, left, height, width = self.box
        return self.target[top : top + height, left : left + width]

    def crop(self, images: Any) -> Any:
        """The image's part of pictures of the whole canvas (..., H, H, C), at their scale."""
        scale = images.shape[-2] / self.target.shape[0]
        top, left, height, width = (round(v * scale) for v in self.box)
        return images[..., top : top + height, left : left + width, :]


def reduced(image: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "h w C"]:
    """An image in [-1, 1], shrunk until its longer side has 256 px (bicubic)."""
    height, width = scaled_size(image.shape, MAX_LOW)
    rows, columns = (
        resize_matrix(n, m).astype(np.float32)
        for n, m in zip(image.shape[:2], (height, width), strict=True)
    )
    shrunk = np.tensordot(columns, np.tensordot(rows, image, 1), ((1,), (1,))).swapaxes(0, 1)
    return np.clip(np.ascontiguousarray(shrunk), -1.0, 1.0)


def place_on_canvas(image: Any, known: Float[np.ndarray, "h w"] | None = None) -> Observation:
    """Put a low-resolution image (h, w, 3) in [-1, 1] in the middle of a square canvas.

    Args:
        known: (h, w) in [0, 1], how much of each pixel was observed; None: all of it.

    Raises:
        UserError: its shape, size or values are not those of such an image.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image is an array (height, width, 3), not {image.shape}")
    height, width = image.shape[:2]
    if not MIN_LOW <= min(height, width) <= max(height, width) <= MAX_LOW:
        advice = "shrink it first" if max(height, width) > MAX_LOW else "give a larger one"
        raise UserError(
            f"the low-resolution image is {width}x{height} px; sides from {MIN_LOW} to {MAX_LOW} "
            f"px can be super-resolved: {advice}"
        )
    if not np.isfinite(image).all() or np.abs(image).max() > 1.5:
        raise UserError("the image's values must lie in [-1, 1]; scale 8-bit ones by x / 127.5 - 1")
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    edges = ((top, side - height - top), (left, side - width - left), (0, 0))
    seen = np.ones((height, width), np.float32) if known is None else known
    mask = np.pad(seen[..., None].astype(np.float32), edges)
    return Observation(np.pad(image, edges, mode="edge"), mask, (top, left, height, width))


def key_of(seed: int, name: str) -> Key[Array, ""]:
    """The PRNG key of an image: from the seed and its name, whatever else is in the batch."""
    digest = hashlib.sha256(name.encode()).digest()
    return jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "big"))


def degrade_original(
    original: Float[np.ndarray, "H W 3"],
    key: Key[Array, ""],
    *,
    resolution: int,
    lr_size: int,
    degradation: Degradation | None = None,
    truth: bool = False,
    noise: Covariance | None = None,
) -> tuple[Observation, Degradation]:
    """What a method sees of an original, and the A that its search inverts.

    Args:
        original: in [-1, 1]; its longer side is first brought to `resolution` px, so
            that a degradation means the same for all originals.
        key: the image's, see `key_of`.
        resolution: the generator's.
        lr_size: px of the longer side where `degradation` is None, which is plain bicubic.
        degradation: of the data.
        truth: whether the search knows the degradation; else it assumes plain bicubic.
        noise: Sigma; None reads it from the degraded image.

    Raises:
        UserError: the degradation does not fit the image.
    """
    size = scaled_size(original.shape, resolution)
    large = jnp.clip(resize(jnp.asarray(original), size), -1.0, 1.0)
    key = jax.random.fold_in(key, DATA_KEY)
    applied = degradation or Bicubic(size=scaled_size(original.shape, lr_size))
    observation = place_on_canvas(np.clip(np.asarray(applied.degrade(key, large)), -1.0, 1.0))
    noise = of_degraded(applied, observation.image, told=truth) if noise is None else noise
    observation = replace(observation, noise=noise)
    if not truth or degradation is None:
        return observation, default_degradation(observation)
    return observation, realised_for_search(observation, degradation, key, resolution=resolution)


def realised_for_search(
    observation: Observation, degradation: Degradation, key: Key[Array, ""], *, resolution: int
) -> Degradation:
    """The degradation as a search knows it, its random parts drawn with `key`.

    Raises:
        UserError: it does not make images of the observation's size.
    """
    realised = degradation.realise(key)
    try:
        check_fit(realised, observation, resolution)
    except UserError as error:
        raise UserError(
            f"told the truth, {error}; use square images, or leave out --search-degradation truth"
        ) from error
    return realised


def default_degradation(observation: Observation) -> Degradation:
    """Antialiased bicubic down-sampling to the observation's canvas."""
    return Bicubic(size=observation.target.shape[0])


def on_crop(degradation: Degradation, observation: Observation) -> Degradation:
    """A for the observation's part of an image alone, where that differs from A for the canvas."""
    if degradation == default_degradation(observation):
        return Bicubic(size=observation.image.shape[:2])
    return degradation


def check_fit(degradation: Degradation, observation: Observation, resolution: int) -> None:
    """Raise UserError unless A makes images of the observation's shape."""
    shape = output_shape(degradation, (resolution, resolution, 3))
    if shape != observation.target.shape:
        raise UserError(
            f"the degradation {degradation} makes images of {shape}, but the one observed is "
            f"{observation.target.shape} on its square canvas; give a degradation to that size"
        )


def mask_on_canvas(
    noise_mask: np.ndarray | None, observation: Observation
) -> Float[np.ndarray, "s s 1"]:
    """A noise mask (h, w) in [0, 1] at the observation's size, on its canvas."""
    if noise_mask is None:
        return observation.mask
    mask = np.asarray(noise_mask, np.float32)
    if mask.ndim != 2 or mask.size == 0 or not (mask.min() >= 0.0 and mask.max() <= 1.0):
        raise UserError("a noise mask is an array (height, width) with values in [0, 1]")
    top, left, height, width = observation.box
    small = resize(jnp.asarray(mask[..., None]), (height, width), kernel="area")
    canvas = np.zeros_like(observation.mask)
    canvas[top : top + height, left : left + width] = np.asarray(small)
    return canvas
