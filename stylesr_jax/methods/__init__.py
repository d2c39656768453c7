"""Every method, one file each, and what they are made of.

To add one, write its file, and name its class in `METHODS`.
"""

from stylesr_jax.errors import UserError
from stylesr_jax.methods.base import Method
from stylesr_jax.methods.bicubic import BicubicEnlargement
from stylesr_jax.methods.brgm import BRGM
from stylesr_jax.methods.csgm import CSGM
from stylesr_jax.methods.ilo import ILO
from stylesr_jax.methods.langevin import Langevin
from stylesr_jax.methods.multimodal import MultiModal
from stylesr_jax.methods.pulse import PULSE
from stylesr_jax.methods.rls import RLS
from stylesr_jax.methods.rls_plus import RLSPlus

__all__ = ["METHODS", "Method", "method_named"]

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        RLS,
        RLSPlus,
        PULSE,
        BRGM,
        ILO,
        CSGM,
        MultiModal,
        Langevin,
        BicubicEnlargement,
    )
}


def method_named(name: str) -> type[Method]:
    """A method by its name. Raises UserError with the names there are."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]
