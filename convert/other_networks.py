"""Networks that are not StyleGAN2's generator, known by the names of their arrays."""

import re
from collections.abc import Iterable

from stylesr_jax.errors import UserError

ORIGINAL = "give the file that NVIDIA published, of which this is a port"
# What is refused: (what its names look like, one name a line; what to do instead).
_OTHERS = {
    "a StyleGAN3 generator (config t or r)": (
        r"(^|\.)synthesis\.(input\.(freqs|phases|transform|weight)|L\d+_)",
        "",
    ),
    "a StyleGAN1 generator": (
        r"StyleMod|(^|\.)g_(mapping|synthesis)\.|(^|\.)progression\.\d",
        "",
    ),
    "a BigGAN generator": (
        r"(^|\.)generator\.gen_z\.|(^|\.)blocks\.\d+\.\d+\.(conv1|bn1)\.|"
        r"(^|\.)generator\.layers\.\d+\.bn_\d",
        "",
    ),
    "an EG3D generator": (r"(^|\.)(superresolution|backbone\.synthesis)\.", ""),
    "a GFPGAN restoration network": (r"(^|\.)stylegan_decoder", ""),
    "a generator of GenForce's port": (
        r"(^|\.)synthesis\.(early_layer|layer\d+)\.|(^|\.)mapping\.dense\d",
        ORIGINAL,
    ),
    "a generator of MMGeneration's port": (r"(^|\.)style_mapping\.\d+\.", ORIGINAL),
    "a network of lucidrains' stylegan2-pytorch": (
        r"(^|\.)(initial_block$|initial_conv\.|SE?\.net\.\d|to_vector_quant)",
        "its layers are not NVIDIA's",
    ),
    "a pSp, e4e or ReStyle encoder without its decoder": (
        r"(^|\.)encoder\.(input_layer|body|styles)\.",
        "give the whole checkpoint",
    ),
    "a StyleGAN2 discriminator": (
        r"(^|\.)(b4\.(out|fc)\.weight|final_linear\.\d\.weight)",
        "give the file of the generator",
    ),
}


def refuse_other_networks(names: Iterable[str]) -> None:
    """Name the kind of network that the arrays' names show, where it is a known other one.

    Raises:
        UserError: the names are those of another kind of network.
    """
    joined = "\n".join(names)
    for kind, (pattern, instead) in _OTHERS.items():
        if re.search(pattern, joined, re.MULTILINE):
            advice = f"; {instead}" if instead else ""
            raise UserError(f"this is {kind}; only StyleGAN2 generators can be converted{advice}")
