"""MediaPipe's face landmark network: 468 points of a face on a crop, and whether it is one.

Source: Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs",
2019; the parameters are those of the wheel mediapipe 0.10.21 (Apache-2.0).
"""

from functools import lru_cache

import jax
from jax import Array

from stylesr_jax.faces.networks import Params, activate, block, convolve, load_params, pointwise
from stylesr_jax.runtime.program_cache import kept_jit

FILE = "faces-landmarks.safetensors"
KIND = "face landmark network"
SIDE = 192  # of the network's input, pixels
POINTS = 468
BLOCKS = 16
_STRIDED = (2, 5, 8, 11, 14)  # blocks that halve the resolution
_PRESENCE_AFTER = 13  # the block whose output the branch for presence takes


@lru_cache(maxsize=1)
def landmark_network() -> Params:
    """The embedded parameters, as float32. Raises UserError if their file is missing."""
    return load_params(FILE, KIND)


def _branch(x: Array, params: Params, *, stride: int) -> Array:
    """The two last blocks and a convolution that covers all that is left: (B, features)."""
    x = block(x, params["first"], stride=stride)
    x = activate(pointwise(x, params["narrow"]), params["narrow"])
    x = block(x, params["second"])
    return convolve(x, params["out"], padding="VALID")[:, 0, 0]


@kept_jit
def landmarks(params: Params, crops: Array) -> tuple[Array, Array]:
    """Points and presence of a face on each crop.

    Args:
        params: what `landmark_network` returns.
        crops: (B, 192, 192, 3) in [-1, 1], faces upright with a margin of a quarter around them.

    Returns:
        (B, 468, 2) points (x, y) in pixels of the crop, where pixel (i, j)'s centre is at
        (j + 0.5, i + 0.5), and (B,) probabilities that there is a face.
    """
    x = (crops + 1.0) / 2.0
    x = activate(convolve(x, params["stem"], stride=2), params["stem"])
    branched = x
    for i in range(BLOCKS):
        x = block(x, params[f"block{i:02d}"], stride=2 if i in _STRIDED else 1)
        if i == _PRESENCE_AFTER:
            branched = x
    points = _branch(x, params["points"], stride=1).reshape(-1, POINTS, 3)[..., :2]
    presence = _branch(branched, params["presence"], stride=2)[:, 0]
    return points, jax.nn.sigmoid(presence)
