"""JPEG compression."""

import io
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Key
from PIL import Image

from stylesr_jax.degradations.arguments import Argument
from stylesr_jax.degradations.base import Degradation
from stylesr_jax.degradations.mask import LUMA
from stylesr_jax.degradations.resize import resize
from stylesr_jax.errors import UserError

# Annex K of the JPEG standard (ITU-T T.81), scaled by quality as libjpeg does.
_LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""


def _quantisation(table: str, quality: int) -> np.ndarray:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = np.array(table.split(), dtype=np.int64).reshape(8, 8)
    return np.clip((base * scale + 50) // 100, 1, 255).astype(np.float32)


def quantisation_tables(quality: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps (8, 8) of luminance and chrominance that Pillow writes at a quality."""
    return _quantisation(_LUMINANCE, quality), _quantisation(_CHROMINANCE, quality)


def dct_matrix(size: int = 8) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II), (size, size) float32."""
    k, n = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix = np.sqrt(2.0 / size) * np.cos((2 * n + 1) * k * np.pi / (2 * size))
    matrix[0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)


def _round(x: Array) -> Array:
    """Rounding whose gradient is that of the identity."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def _jpeg_plane(x: Array, table: np.ndarray) -> Array:
    """One plane (H, W), sides multiples of 8, in [-128, 127]: transform, quantise, and back."""
    height, width = x.shape
    dct, steps = jnp.asarray(dct_matrix()), jnp.asarray(table)
    highest = jax.lax.Precision.HIGHEST
    blocks = x.reshape(height // 8, 8, width // 8, 8)
    terms = jnp.einsum("ui,aibj,vj->abuv", dct, blocks, dct, precision=highest)
    terms = _round(terms / steps) * steps
    blocks = jnp.einsum("ui,abuv,vj->aibj", dct, terms, dct, precision=highest)
    return blocks.reshape(height, width)


class Jpeg(Degradation):
    """JPEG with 4:2:0 chroma, as Pillow writes; quality from 1 to 95.

    Called, it is a differentiable stand-in: the codec's own steps in float32, with rounding passed
    straight through by the gradient. `degrade` runs Pillow's codec and so cannot be traced.
    Takes 3 channels, or 1 (UserError).
    """

    name = "jpeg"
    about = "compression"
    example = "jpeg(30)"
    arguments = (Argument("quality", int, "a whole number 1 to 95"),)
    linear: ClassVar[bool] = False

    quality: int = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.quality, int) and 1 <= self.quality <= 95):
            raise UserError(f"jpeg: quality is a whole number from 1 to 95, got {self.quality}")

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """A(x): (H, W, C) -> (H, W, C) in [-1, 1]."""
        height, width, channels = x.shape
        if channels not in (1, 3):
            raise UserError(f"jpeg: needs 3 channels, or 1, got {channels}")
        levels = _round(jnp.clip((x + 1.0) * 127.5, 0.0, 255.0))
        pad = ((0, -height % 16), (0, -width % 16), (0, 0))
        levels = jnp.pad(levels, pad, mode="edge")
        luminance = _quantisation(_LUMINANCE, self.quality)
        if channels == 1:
            decoded = _jpeg_plane(levels[..., 0] - 128.0, luminance)[..., None] + 128.0
        else:
            r, g, b = levels[..., 0], levels[..., 1], levels[..., 2]
            y = LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
            chroma = jnp.stack([(b - y) / 1.772, (r - y) / 1.402], axis=-1)
            half = (chroma.shape[0] // 2, chroma.shape[1] // 2)
            chroma = resize(_round(chroma), half, kernel="area")
            table = _quantisation(_CHROMINANCE, self.quality)
            planes = [_jpeg_plane(_round(chroma[..., i]), table) for i in range(2)]
            full = (levels.shape[0], levels.shape[1])
            chroma = resize(jnp.stack(planes, axis=-1), full, kernel="bilinear")
            y = _jpeg_plane(_round(y) - 128.0, luminance) + 128.0
            cb, cr = chroma[..., 0], chroma[..., 1]
            r, b = y + 1.402 * cr, y + 1.772 * cb
            g = (y - LUMA[0] * r - LUMA[2] * b) / LUMA[1]
            decoded = jnp.stack([r, g, b], axis=-1)
        decoded = _round(jnp.clip(decoded, 0.0, 255.0))
        return decoded[:height, :width] / 127.5 - 1.0

    def degrade(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """x through Pillow's JPEG codec; (H, W, C) in [-1, 1], clipped to it first."""
        levels = np.rint(np.clip((np.asarray(x) + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)
        file = io.BytesIO()
        grey = levels.shape[-1] == 1
        image = Image.fromarray(levels[..., 0] if grey else levels)
        image.save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        decoded = np.asarray(Image.open(file), np.float32).reshape(levels.shape)
        return jnp.asarray(decoded / 127.5 - 1.0, jnp.float32)

    def __str__(self) -> str:
        return f"jpeg({self.quality})"
