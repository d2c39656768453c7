"""How a good image becomes the one we are given: y = A(x), then noise.

Every degradation is a frozen pytree. Calling it applies A, the deterministic and differentiable
part that a search inverts; `degrade(key, x)` makes data: A, the random parts, and the true codec.
Noise is apart from A: calling a noise stage changes nothing.

Images are (height, width, channels) float32 in [-1, 1]. Sizes, widths and qualities are static
(they decide shapes and kernels); masks and angles are leaves, so that a compiled search serves
every image of a size without tracing again.
"""

from stylesr_jax.degradations.base import (
    Compose,
    Degradation,
    Noise,
    Separable,
    degradation_identity,
    output_shape,
)
from stylesr_jax.degradations.blur import GaussianBlur, MotionBlur, motion_kernel
from stylesr_jax.degradations.downsample import Area, Bicubic, PulseBicubic
from stylesr_jax.degradations.jpeg import Jpeg
from stylesr_jax.degradations.mask import Grey, Mask
from stylesr_jax.degradations.noise import GaussianNoise, LaplaceNoise, SaltPepper
from stylesr_jax.degradations.parse import available, parse
from stylesr_jax.degradations.resize import (
    Kernel,
    cubic_taps,
    resize,
    resize_matrix,
    scaled_size,
    taps_matrix,
)

__all__ = [
    "Area",
    "Bicubic",
    "Compose",
    "Degradation",
    "GaussianBlur",
    "GaussianNoise",
    "Grey",
    "Jpeg",
    "Kernel",
    "LaplaceNoise",
    "Mask",
    "MotionBlur",
    "Noise",
    "PulseBicubic",
    "SaltPepper",
    "Separable",
    "available",
    "cubic_taps",
    "degradation_identity",
    "motion_kernel",
    "output_shape",
    "parse",
    "resize",
    "resize_matrix",
    "scaled_size",
    "taps_matrix",
]
