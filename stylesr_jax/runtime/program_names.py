"""Texts for functions, static values and structures that are the same in every process."""

import dataclasses
import types
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

# What is defined elsewhere has no name here: a change of its source would go unnoticed.
PACKAGES = frozenset(
    {"builtins", "distrax", "flax", "jax", "jaxlib", "numpy", "optax", "stylesr_jax"}
)


class NoNameError(Exception):
    """A value that cannot be told apart from others by a text."""


def lookup(path: str) -> Any:
    """The function or class of a path "package.module:name".

    Raises:
        NoNameError: the path leads nowhere, or out of `PACKAGES`.
    """
    module, _, name = path.partition(":")
    if module.partition(".")[0] not in PACKAGES:
        raise NoNameError(f"{path} is not defined in one of {', '.join(sorted(PACKAGES))}")
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise NoNameError(f"{path} cannot be found") from error


def path_of(value: Any) -> str:
    """The path of a function, jitted or not, or of a class.

    Raises:
        NoNameError: the path does not lead back to the value, as for closures.
    """
    function = getattr(value, "__wrapped__", value) if hasattr(value, "lower") else value
    path = f"{function.__module__}:{getattr(function, '__qualname__', '')}"
    target = lookup(path)
    while target is not function:
        if not hasattr(target, "__wrapped__"):
            raise NoNameError(f"{path} is something else")
        target = target.__wrapped__
    return path


def name_of(value: Any) -> str:
    """A text for a static value: plain ones, functions, classes, sequences and dataclasses.

    Raises:
        NoNameError: the value is, or holds, something else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (types.FunctionType, type)) or hasattr(value, "lower"):
        return path_of(value)
    if isinstance(value, (tuple, list)):
        parts = [name_of(item) for item in value]
    elif dataclasses.is_dataclass(value):
        parts = [f"{f.name}={name_of(getattr(value, f.name))}" for f in dataclasses.fields(value)]
    else:
        raise NoNameError(repr(value))
    return f"{path_of(type(value))}({','.join(parts)})"


def describe(tree: Any, of_static: Callable[[Any], Any] = lambda static: static) -> Any:
    """A PyTreeDef as nested lists [class, static data, *children]; leaves are 0.

    Args:
        tree: the PyTreeDef.
        of_static: what stands for the static data of a node.

    Raises:
        NoNameError: a node's class has no name.
    """
    data = tree.node_data()
    if data is None:
        return 0
    kind, static = data
    if kind is types.NoneType:
        return None
    children = (describe(child, of_static) for child in tree.children())
    return [path_of(kind), of_static(static), *children]


def example_of(description: Any) -> Any:
    """A pytree that `describe` describes so, with leaves 0.

    Raises:
        NoNameError, ValueError, TypeError: a class is none of dictionaries, sequences, NamedTuples
            and dataclasses that are built from their fields.
    """
    if not isinstance(description, list):
        return description
    path, static, *rest = description
    kind, children = lookup(path), [example_of(child) for child in rest]
    if kind is dict:
        return dict(zip(static, children, strict=True))
    if issubclass(kind, (tuple, list)):
        return getattr(kind, "_make", kind)(children)
    groups: dict[bool, list[str]] = {True: [], False: []}
    for field in dataclasses.fields(kind):  # flax.struct's
        groups[field.metadata.get("pytree_node", True)].append(field.name)
    fields = [*zip(groups[True], children, strict=True), *zip(groups[False], static, strict=True)]
    return kind(**dict(fields))
