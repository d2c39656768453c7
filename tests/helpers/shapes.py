"""Shapes in the annotations of the package, checked by beartype whenever a test calls a function.

pytest's option --jaxtyping-packages names `checked`. Only shapes are checked: tests pass wrong
choices on purpose, and JAX puts placeholders into the fields of dataclasses. NumPy's arrays pass
for JAX's and numbers for scalars, as in JAX's own functions.
"""

import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jax
import numpy as np
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

CONF = BeartypeConf(is_pep484_tower=True)  # whole numbers are numbers


def _is_shape(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, AbstractArray)


def _has_shape(annotation: Any) -> bool:
    return _is_shape(annotation) or any(map(_has_shape, get_args(annotation)))


def _as_jax_takes(annotation: Any) -> Any:
    """The annotation with NumPy's arrays and numbers where it has JAX's."""
    if _is_shape(annotation):
        if annotation.array_type is not jax.Array:
            return annotation
        either = annotation.dtype[jax.Array | np.ndarray, annotation.dim_str]
        return either if annotation.dim_str else either | float
    arguments = tuple(map(_as_jax_takes, get_args(annotation)))
    if not arguments:
        return annotation
    origin: Any = get_origin(annotation)
    return Union[arguments] if origin in (Union, UnionType) else origin[arguments]  # noqa: UP007


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose calls are checked for the shapes that its annotations have."""
    kinds = function.__annotations__.items()
    shapes = {name: _as_jax_takes(kind) for name, kind in kinds if _has_shape(kind)}
    if not shapes or function.__name__ == "__init__":
        return function
    function.__annotations__ = shapes
    return beartype(function, conf=CONF)
