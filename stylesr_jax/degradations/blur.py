"""Blur: Gaussian, and of a straight motion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key
from scipy.fft import next_fast_len

from stylesr_jax.degradations.arguments import LARGEST, Argument
from stylesr_jax.degradations.base import Degradation, Separable
from stylesr_jax.degradations.resize import reflect, taps_matrix
from stylesr_jax.errors import UserError


class GaussianBlur(Separable):
    """Gaussian blur; sigma in pixels of the image it is applied to, more than 0, up to LARGEST.

    Cut at 4 sigma, borders mirrored with the edge repeated, as scipy.ndimage.gaussian_filter.
    """

    name = "blur"
    about = "Gaussian"
    example = "blur(2)"
    arguments = (Argument("sigma", float, "a number of pixels"),)

    sigma: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma <= LARGEST:
            raise UserError(
                f"blur: sigma must be a positive number of pixels up to {LARGEST}, got {self.sigma}"
            )

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (height, height) and (width, width)."""
        radius = int(4.0 * self.sigma + 0.5)
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / self.sigma) ** 2)
        weights = tuple((taps / taps.sum()).tolist())
        return (
            taps_matrix(height, weights, stride=1, before=radius, repeat_edge=True),
            taps_matrix(width, weights, stride=1, before=radius, repeat_edge=True),
        )

    def __str__(self) -> str:
        return f"blur({self.sigma:g})"


def motion_kernel(length: float, angle: ArrayLike) -> Float[Array, "k k"]:
    """The (k, k) kernel of a straight motion of `length` pixels; it sums to 1.

    k is odd and holds the line at any angle, in degrees anticlockwise from the x axis. The line is
    sampled finely and each sample shared between its four pixels, so the angle is differentiable.
    """
    reach = (length - 1.0) / 2.0
    radius = int(np.ceil(reach))
    # Four samples a pixel: evenly shared where the length is whole.
    along = jnp.asarray(np.linspace(-reach, reach, 8 * radius + 1), jnp.float32)
    radians = jnp.deg2rad(jnp.asarray(angle, jnp.float32))
    pixels = jnp.asarray(np.arange(-radius, radius + 1), jnp.float32)[:, None]
    rows = jnp.maximum(1.0 - jnp.abs(pixels + along * jnp.sin(radians)), 0.0)
    columns = jnp.maximum(1.0 - jnp.abs(pixels - along * jnp.cos(radians)), 0.0)
    kernel = jnp.einsum("yt,xt->yx", rows, columns, precision=jax.lax.Precision.HIGHEST)
    return kernel / jnp.sum(kernel)


class MotionBlur(Degradation):
    """Blur along a straight line of `length` pixels, from 1 to LARGEST.

    angle, in degrees anticlockwise from the x axis, is a leaf: images with different directions
    share one compiled search. None means a direction drawn for each image by `realise`; such a
    degradation can make data but not be searched with (UserError). Borders are mirrored.
    """

    name = "motion"
    about = "motion blur; without an angle, a random direction"
    example = "motion(100,45)"
    arguments = (
        Argument("length", float, "a number of pixels"),
        Argument("angle", float, "degrees", required=False),
    )

    length: float = struct.field(pytree_node=False)
    angle: ArrayLike | None = None

    def __post_init__(self) -> None:
        if not 1.0 <= self.length <= LARGEST:
            raise UserError(
                f"motion: length must be at least 1 pixel and at most {LARGEST}, got {self.length}"
            )

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """A(x): (H, W, C) -> (H, W, C)."""
        if self.angle is None:
            raise UserError(
                "motion: the direction is random; give an angle or call realise(key) to search"
            )
        height, width = x.shape[0], x.shape[1]
        kernel = motion_kernel(self.length, self.angle)
        radius = kernel.shape[0] // 2
        index = [
            reflect(np.arange(-radius, n + radius), n, repeat_edge=False) for n in (height, width)
        ]
        padded = x[index[0]][:, index[1]]
        # As long as the padded image, circular convolution leaves the inside exact.
        shape: Any = [next_fast_len(n, real=True) for n in padded.shape[:2]]
        spectrum = jnp.fft.rfftn(padded, shape, axes=(0, 1))
        response = jnp.fft.rfftn(kernel, shape)
        blurred = jnp.fft.irfftn(spectrum * response[..., None], shape, axes=(0, 1))
        inside = slice(2 * radius, None)
        return blurred[inside, inside][:height, :width]

    def realise(self, key: Key[Array, ""]) -> "MotionBlur":
        """With a direction drawn uniformly from 0 to 180 degrees if none is given."""
        if self.angle is not None:
            return self
        return self.replace(angle=jax.random.uniform(key, maxval=180.0))

    def __str__(self) -> str:
        angle = "" if self.angle is None else f",{float(np.asarray(self.angle)):g}"
        return f"motion({self.length:g}{angle})"
