"""Work in a thread of its own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_background(function: Callable[..., Result], *args: Any) -> Future[Result]:
    """Call a function in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    called = pool.submit(function, *args)
    pool.shutdown(wait=False)
    return called
