"""Reading ahead and writing behind a search, and what is searched together.

The search keeps the calling thread, where Ctrl-C arrives; one thread reads, one writes. Both
queues are short, so that memory does not grow with the number of images.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import gcd
from typing import Any, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Pipeline:
    """Two threads around a search; leaving the block waits until everything is written.

    Attributes:
        ahead: how many items are read before they are asked for.
        behind: how many pieces of work may wait to be written.
    """

    def __init__(self, *, ahead: int = 2, behind: int = 2) -> None:
        self.ahead, self.behind = ahead, behind
        self._reader = ThreadPoolExecutor(1, "reader")
        self._writer = ThreadPoolExecutor(1, "writer")
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: Any) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()
        while self._writing:
            self._writing.popleft().result()

    def read(self, function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
        """function(item) in the items' order, made on the reading thread."""
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(self._reader.submit(function, item))
            if len(waiting) > self.ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def write(self, function: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> None:
        """Call with each of the arguments, on the writing thread and in order.

        It is one piece of work, and as many items are read ahead: so the results of a group wait
        together, and the next group is read while it is searched. Waits while too much is waiting
        to be written. An error is raised by a later `write`, or at the end.
        """

        def write_all() -> None:
            for arguments in calls:
                function(*arguments)

        self.ahead = max(self.ahead, len(calls))
        while len(self._writing) >= self.behind:
            self._writing.popleft().result()
        self._writing.append(self._writer.submit(write_all))


def images_together(starts: int, solutions: int) -> int:
    """The fewest images whose solutions fill whole batches of `starts`."""
    return starts // gcd(starts, solutions)


def grouped(
    items: Iterable[Item],
    key: Callable[[Item], Hashable],
    size: Callable[[Item], int],
) -> Iterator[list[Item]]:
    """Lists of items of one key, each of `size` items; at the end those that are left over.

    At most twice the size is held back: then the largest list goes as it is.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(key(item), [])
        group.append(item)
        full = size(item)
        if len(group) < full and sum(map(len, waiting.values())) >= 2 * full:
            group = max(waiting.values(), key=len)
        elif len(group) < full:
            continue
        del waiting[key(group[0])]
        yield group
    yield from waiting.values()
