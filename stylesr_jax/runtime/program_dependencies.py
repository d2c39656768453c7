"""What kept programs depend on besides their arguments, registered by whoever knows."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
import jax.export


class Dependency(NamedTuple):
    """Code outside XLA that programs call and that may be in the making, or not to be had.

    Attributes:
        module: the module that registers the dependency when imported.
        targets: names of the XLA custom calls.
        applies_to: whether a program may call them that has this part among its arguments.
        state: a text for how they are called; empty if they cannot be. Waits until that is known.
        assume_ready: a context in which `state` does not wait.
    """

    module: str
    targets: tuple[str, ...]
    applies_to: Callable[[Any], bool]
    state: Callable[[], str]
    assume_ready: Callable[[], AbstractContextManager[Any]]


_registered: dict[str, Dependency] = {}  # by module


def register_dependency(dependency: Dependency) -> None:
    """Let programs be kept that call what the dependency describes."""
    _registered[dependency.module] = dependency


def modules_for(arguments: Any) -> list[str]:
    """The modules of the dependencies that a program with these arguments may call."""
    return [
        module
        for module, dependency in _registered.items()
        if any(
            map(dependency.applies_to, jax.tree.leaves(arguments, is_leaf=dependency.applies_to))
        )
    ]


def modules_in(exported: jax.export.Exported) -> list[str]:
    """The modules of the dependencies that a program calls."""
    code = exported.mlir_module_serialized
    return [
        module
        for module, dependency in _registered.items()
        if any(target.encode() in code for target in dependency.targets)
    ]


def can_call(modules: Iterable[str]) -> bool:
    """Whether these dependencies can be called; waits until that is known."""
    return all(module in _registered and _registered[module].state() for module in modules)


def states(modules: Iterable[str]) -> list[str]:
    """What besides a program's arguments decides how it calls these dependencies."""
    return [_registered[module].state() for module in modules]


@contextmanager
def assume_ready(modules: Iterable[str]) -> Iterator[None]:
    """In here these dependencies are taken to be ready if that can be expected."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_registered[module].assume_ready())
        yield


def safety_checks() -> list[jax.export.DisabledSafetyCheck]:
    """For `jax.export`: interfaces of these calls change with the package's source files alone."""
    targets = [target for dependency in _registered.values() for target in dependency.targets]
    return [jax.export.DisabledSafetyCheck.custom_call(target) for target in targets]
