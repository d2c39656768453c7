"""A search in a thread of its own, and what is heard of it meanwhile."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.loading import notes_of
from stylesr_jax.metrics.lpips import load_features
from stylesr_jax.priors.flow import load_prior
from stylesr_jax.runs.plan import load_parts
from stylesr_jax.runtime.weights import DEFAULT
from stylesr_jax.solver.observation import Observation, key_of
from stylesr_jax.solver.result import Result
from stylesr_jax.solver.solve import solve
from stylesr_jax.web.request import Request, check_bounds, method_of

PAUSE = 2.0  # seconds at least between two previews, each of which draws a whole picture


class Models:
    """The generator, and what methods need beside it; each is loaded when it is first needed.

    Attributes:
        name: of the generator, or its file as it was given.
        generator: of the class that was asked for.
        weights_file: of the generator, in this project's format.
        identity: see `Plan`.
        notes: what the converter had to say of the file, each a printable line.
    """

    def __init__(
        self, *, generator: str | None = None, label: int | None = None, prior: str | None = None
    ) -> None:
        self._prior = prior
        self.name = generator or DEFAULT
        parts = load_parts([], generator=generator, label=label)
        self.generator: Generator = parts["generator"]
        self.weights_file: Path = parts["weights_file"]
        self.identity: dict[str, Any] = parts["identity"]
        self.notes = notes_of(self.weights_file)

    @cached_property
    def prior(self) -> Any:
        """The generator's flow prior."""
        return load_prior(self.generator, path=self._prior)

    @cached_property
    def perceptual(self) -> Any:
        """The LPIPS network."""
        return load_features("vgg16")


@dataclass(frozen=True, eq=False)
class Update:
    """What is heard of a search.

    Attributes:
        solution: counts from 0.
        step, steps: done and in all.
        losses: after each message's step, of this solution.
        preview: (H, W, 3) in [-1, 1], the best so far, if one was drawn.
        result: at the end.
    """

    solution: int = 0
    step: int = 0
    steps: int = 0
    losses: tuple[float, ...] = ()
    preview: np.ndarray | None = None
    result: Result | None = None


@dataclass
class _Listener:
    """What `solve` calls, in the thread that searches."""

    stop: threading.Event
    heard: "queue.SimpleQueue[Update | BaseException | None]"
    pause: float
    latest: Update = field(default_factory=Update)
    drawn: float = 0.0  # when the last preview was

    def on_progress(
        self, _: int, solution: int, step: int, steps: int, terms: dict[str, float]
    ) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt  # ends the search with the best so far
        same = solution == self.latest.solution and step > self.latest.step
        losses = (*(self.latest.losses if same else ()), sum(terms.values()))
        self.latest = Update(solution, step, steps, losses)
        self.heard.put(self.latest)

    def on_preview(self, _: int, __: int, draw: Callable[[], np.ndarray]) -> None:
        if time.monotonic() - self.drawn >= self.pause:
            self.heard.put(replace(self.latest, preview=draw()))
            self.drawn = time.monotonic()


def updates(
    models: Models,
    observation: Observation,
    request: Request,
    *,
    name: str,
    start: np.ndarray | None = None,
    stop: threading.Event,
    pause: float = PAUSE,
) -> Iterator[Update]:
    """Search, and say how it goes; the last update has the result.

    Args:
        name: what starts depend on beside the seed, see `key_of`.
        start: (num_ws, w_dim) styles to begin from.
        stop: once it is set the search ends, with the best so far.
        pause: seconds at least between previews.

    Raises:
        UserError: what is asked for cannot be done.
    """
    check_bounds(request)
    method = method_of(request)
    listener = _Listener(stop, queue.SimpleQueue(), pause)

    def search() -> None:
        """In the thread: solve, and put the result or the error where it is heard."""
        try:
            results = solve(
                [observation],
                [key_of(request.seed, name)],
                generator=models.generator,
                prior=models.prior if method.needs_prior else None,
                perceptual=models.perceptual if method.needs_perceptual else None,
                method=method,
                solutions=request.solutions,
                noise_mask=request.mask,
                start=start,
                on_progress=listener.on_progress,
                on_preview=listener.on_preview,
            )
            if not results:
                raise UserError("the search was stopped before there was anything to show")
            listener.heard.put(Update(result=results[0]))
            listener.heard.put(None)
        except BaseException as error:  # it is raised again where the updates are read
            listener.heard.put(error)

    work = threading.Thread(target=search, daemon=True)
    work.start()
    try:
        while (message := listener.heard.get()) is not None:
            if isinstance(message, BaseException):
                raise message
            yield message
    finally:  # the reader may have gone
        stop.set()
        work.join()
