"""Every method, one file each, and what they are made of.

To add one, write its file, and import its class here.
"""

from stylesr_jax.errors import UserError
from stylesr_jax.methods.base import Method

# The methods, one line each, in the order of messages and tables.
# isort: off
from stylesr_jax.methods.rls import RLS as RLS
from stylesr_jax.methods.rls_plus import RLSPlus as RLSPlus
from stylesr_jax.methods.pulse import PULSE as PULSE
from stylesr_jax.methods.brgm import BRGM as BRGM
from stylesr_jax.methods.ilo import ILO as ILO
from stylesr_jax.methods.robust import Robust as Robust
from stylesr_jax.methods.csgm import CSGM as CSGM
from stylesr_jax.methods.multimodal import MultiModal as MultiModal
from stylesr_jax.methods.langevin import Langevin as Langevin
from stylesr_jax.methods.bicubic import BicubicEnlargement as BicubicEnlargement
# isort: on


def _named(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Method) and hasattr(kind, "name")


METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in tuple(globals().values()) if _named(kind)
}


def method_named(name: str) -> type[Method]:
    """A method by its name. Raises UserError with the names there are."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]
