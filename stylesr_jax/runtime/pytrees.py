"""Pytrees: dataclasses whose structures differ by their class, and hashes of arrays."""

import hashlib
from dataclasses import Field, fields
from inspect import get_annotations
from typing import Any, dataclass_transform

import jax
import numpy as np
from flax import struct

_CLASS = "pytree_class"
SMALL = 4096  # numbers in the largest arrays by which a network is recognised


@dataclass_transform(frozen_default=True, field_specifiers=(struct.field,))
class PyTreeNode(struct.PyTreeNode):
    """`flax.struct.PyTreeNode` with the class's name as one more static field.

    JAX 0.10 compares the structures of two registered dataclasses without their classes. Those of
    two classes with like fields are equal then, and `jax.jit` calls the program of the one for the
    other wherever their hashes happen to meet: once in some hundred pairs.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        name = f"{cls.__module__}.{cls.__qualname__}"
        cls.__annotations__ = {**get_annotations(cls), _CLASS: str}
        field = struct.field(pytree_node=False, default=name, kw_only=True, repr=False)
        setattr(cls, _CLASS, field)
        super().__init_subclass__(**kwargs)


def own_fields(node: Any) -> tuple[Field[Any], ...]:
    """The fields of a dataclass that were declared for it."""
    return tuple(field for field in fields(node) if field.name != _CLASS)


def network_sha256(params: Any) -> str:
    """The hash of a network's small arrays (biases, strengths): which network it is."""
    return tree_sha256(jax.tree.map(lambda leaf: leaf if leaf.size <= SMALL else None, params))


def tree_sha256(tree: Any) -> str:
    """Hexadecimal SHA-256 of a pytree's arrays, as float32, and of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()
