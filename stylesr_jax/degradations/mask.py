"""What hides part of an image: grey, and masks."""

import os
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float
from PIL import Image

from stylesr_jax.degradations.arguments import Argument
from stylesr_jax.degradations.base import Degradation
from stylesr_jax.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's "L" and JPEG's Y


class Grey(Degradation):
    """Colour to grey in three equal channels: luma of ITU-R 601 as Pillow's mode "L"."""

    name = "grey"
    about = "colour to grey"
    example = "grey()"

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """A(x): (H, W, 3) -> (H, W, 3). Raises UserError for other channel counts."""
        if x.shape[-1] != 3:
            raise UserError(f"grey: needs 3 channels, got {x.shape[-1]}")
        weights = jnp.asarray(LUMA, jnp.float32)
        return jnp.broadcast_to(jnp.sum(x * weights, axis=-1, keepdims=True), x.shape)

    def __str__(self) -> str:
        return "grey()"


class Mask(Degradation):
    """Inpainting: pixels where `known` is 1 are kept, where it is 0 they become 0, mid-grey.

    known: (H, W) float32 in [0, 1], a leaf, of the size of the image at this stage (UserError).
    source is the file it came from, for reports.
    """

    name = "mask"
    about = "inpainting"
    example = "mask(hole.png)"
    arguments = (Argument("text", str, "an image file; white marks the hole", verbatim=True),)

    known: Array
    source: str = struct.field(pytree_node=False, default="")

    @classmethod
    def make(cls, *, text: str) -> "Mask":
        """The mask in an image file, where white marks the hole as in most inpainting tools.

        Raises:
            UserError: the file cannot be read.
        """
        if not os.path.isfile(text):
            raise UserError(f"mask: cannot read {text!r:.200}: no such file; check the path")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bombs, and of damaged metadata
                with Image.open(text) as image:
                    levels = np.asarray(image.convert("L"))
        except Exception as error:  # Pillow's readers raise whatever they meet in a damaged file
            raise UserError(f"mask: cannot read {text!r} as an image: {error}") from error
        return cls(jnp.asarray(levels < 128, jnp.float32), source=Path(text).as_posix())

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """A(x): (H, W, C) -> (H, W, C)."""
        if self.known.shape != x.shape[:2]:
            raise UserError(
                f"mask: it is {self.known.shape[0]}x{self.known.shape[1]} but the image at this "
                f"stage is {x.shape[0]}x{x.shape[1]}; give a mask of that size"
            )
        return x * self.known[..., None]

    def __str__(self) -> str:
        return f"mask({self.source})"
