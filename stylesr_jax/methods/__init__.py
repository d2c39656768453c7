"""Every method, one file each, and what they are made of."""

from stylesr_jax.methods.base import Method
from stylesr_jax.methods.catalogue import METHODS, method_named

__all__ = ["METHODS", "Method", "method_named"]
