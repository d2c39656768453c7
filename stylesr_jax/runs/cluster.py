"""Images divided over the machines of a Ray cluster.

Ray Data hands pieces of the list of images to workers and hands them out again when a worker or a
machine is lost. A worker is a process with a device of its own that builds its job once and runs
the loop of `worker`, which skips what is finished; it returns what it has to say, never images.

A ledger beside the command counts how often an input was in work when its worker died. Inputs that
were are searched alone, and left out after the third time.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stylesr_jax.errors import UserError, in_a_line
from stylesr_jax.images.kinds import printable
from stylesr_jax.runs.joining import AUTO, imported, joined
from stylesr_jax.runs.pipeline import images_together
from stylesr_jax.runs.places import safe_stem, same_name
from stylesr_jax.runs.plan import Plan
from stylesr_jax.runs.worker import Job, Worker
from stylesr_jax.runtime.startup import check_device, configure
from stylesr_jax.solver.batching import MOST

KILLS = 3  # of workers that an input may have been in work at
MOST_PIECES = 10_000  # Ray keeps an account of each
BATCHES = 4  # in a piece on GPUs, so that most results are written beside the next search
COLUMN = "report"  # of what Ray Data hands over

MakeJob = Callable[[], Job[Any]]  # called in each worker; pickled
Progress = Callable[[int, int], None]  # (inputs that are done, all)


# --- Who does what --------------------------------------------------------------------------


class Allotment(NamedTuple):
    """How many workers there are, and what each of them takes."""

    workers: int
    cpus: float
    gpus: int

    def __str__(self) -> str:
        each = f"{self.gpus} GPU" if self.gpus else f"{self.cpus:g} CPU(s)"
        return f"{self.workers} worker(s) with {each} each"


def allot(nodes: Sequence[Mapping[str, float]], wanted: int | None) -> Allotment:
    """A worker for each GPU; where there are none, for as many CPUs as the smallest node has.

    Args:
        nodes: resources of the cluster's machines.
        wanted: workers, or None for as many as there is room for. More than that wait for
            machines that join.

    Raises:
        UserError: the machines offer neither.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus:
        return Allotment(wanted or gpus, 1, 1)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise UserError("the Ray cluster offers neither CPUs nor GPUs; start it with --num-cpus")
    each = min(cpus)
    room = sum(count // each for count in cpus)
    if wanted is not None and wanted > room:
        each = max(1, sum(cpus) // wanted)
    return Allotment(wanted or room, each, 0)


def piece_size(plan: Plan, images: int, allotment: Allotment) -> int:
    """Images that a worker is given at a time."""
    starts = plan.batch or (MOST if allotment.gpus else 1)
    batches = BATCHES if allotment.gpus else 1
    size = min(images_together(starts, plan.solutions) * batches, -(-images // allotment.workers))
    return max(size, -(-images // MOST_PIECES), 1)


def pieces(paths: Sequence[Path], size: int) -> tuple[list[Path], list[tuple[int, int]]]:
    """The paths in another order, and where the pieces begin and end.

    Photos of one stem stay together: a worker decides their names as one machine does.
    """

    def key(path: Path) -> str:
        return same_name(safe_stem(path))

    ordered = sorted(paths, key=key)
    cuts = [0]
    for i in range(1, len(ordered)):
        if i - cuts[-1] >= size and key(ordered[i]) != key(ordered[i - 1]):
            cuts.append(i)
    return ordered, list(zip(cuts, [*cuts[1:], len(ordered)], strict=True))


# --- In a worker ----------------------------------------------------------------------------


@dataclass
class Report:
    """What a worker reports of a piece.

    Attributes:
        said: (name of the job's callable, arguments, named arguments) of what it told the user.
        collected: of each input, see `Job.collect`.
        retried: inputs that were in work when a worker died, and how often.
        error: why the worker cannot work at all.
    """

    said: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    collected: dict[Path, Any] = field(default_factory=dict)
    retried: dict[Path, int] = field(default_factory=dict)
    error: str | None = None


class Ledger:
    """How often each input was in work when its worker died; an actor of one process."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begin(self, inputs: Sequence[int]) -> None:
        for number in inputs:
            self._begun[number] = self._begun.get(number, 0) + 1

    def end(self, inputs: Sequence[int]) -> None:
        for number in inputs:
            self._begun.pop(number, None)

    def deaths(self, inputs: Sequence[int]) -> dict[int, int]:
        """Of inputs that nobody works on now."""
        return {number: self._begun[number] for number in inputs if number in self._begun}


class PieceWorker:
    """A worker: builds a job and does pieces of the inputs, each called with (begin, end)."""

    def __init__(
        self, make_job: MakeJob, ordered: Sequence[Path], size: int, ledger: Any, folder: str
    ) -> None:
        self.ordered, self.ledger = ordered, ledger
        self.report = Report()
        with suppress(OSError):  # relative paths mean there what they mean to the command
            os.chdir(folder)
        try:
            configure()
            check_device()
            self.worker = Worker(make_job(), size)
        except Exception as error:  # said once, by the command
            self.error: str | None = in_a_line(error)
            return
        self.error = None
        for name in self.worker.job.voices:
            setattr(self.worker.job, name, self._recorder(name))

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(*arguments: Any, **named: Any) -> None:
            self.report.said.append((name, arguments, named))

        return record

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        reports = map(self.do, batch["begin"], batch["end"])
        return {COLUMN: [pickle.dumps(report) for report in reports]}

    def do(self, begin: int, end: int) -> Report:
        """A piece: inputs that no worker died of together, the others alone."""
        if self.error is not None:
            return Report(error=self.error)
        self.report = report = Report()
        numbers = range(int(begin), int(end))
        deaths = self._ask("deaths", list(numbers))
        self._work([number for number in numbers if number not in deaths])
        for number, times in deaths.items():
            path = self.ordered[number]
            report.retried[path] = times
            if times < KILLS:
                self._work([number])
            else:
                self._leave_out(path)
        paths = [self.ordered[number] for number in numbers]
        report.collected = {path: self.worker.job.collect(path) for path in paths}
        return report

    def _work(self, numbers: Sequence[int]) -> None:
        self._ask("begin", numbers)
        self.worker.work([self.ordered[number] for number in numbers])
        self._ask("end", numbers)

    def _leave_out(self, path: Path) -> None:
        why = UserError(
            f"{printable(path.name)}: its worker died {KILLS} times; left out. Give it alone to see"
        )
        for variant in self.worker.plan.variants:
            self.worker.job.fail(path, variant, why)

    def _ask(self, question: str, numbers: Sequence[int]) -> Any:
        return imported().get(getattr(self.ledger, question).remote(numbers))


# --- In the command -------------------------------------------------------------------------


def work(
    paths: Sequence[Path],
    job: Job[Any],
    make_job: MakeJob,
    *,
    address: str,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> None:
    """As `worker.work`, by the workers of a Ray cluster.

    Args:
        job: receives what the workers find, and says what they say.
        make_job: builds the same job in a worker, with paths as the command's.
        address: of the cluster, see `joining.joined`.
        workers: how many; None is one for each GPU, or on CPUs for each machine.

    Raises:
        UserError: there is no such cluster, or a worker cannot be set up.
        KeyboardInterrupt: Ctrl-C; what was finished is kept.
    """
    job.note(
        "joining a Ray cluster, or starting one here"
        if address == AUTO
        else f"joining the Ray cluster at {address}; this machine must belong to it"
    )
    with joined(address) as nodes:
        allotment = allot(nodes, workers)
        job.note(f"a cluster of {len(nodes)} machine(s): {allotment}")
        ordered, spans = pieces(paths, piece_size(job.plan, len(paths), allotment))
        done = 0
        for report in _reports(make_job, ordered, spans, allotment):
            _receive(job, report)
            done += len(report.collected)
            if on_progress is not None:
                on_progress(done, len(paths))


def _receive(job: Job[Any], report: Report) -> None:
    if report.error is not None:
        raise UserError(f"a worker of the Ray cluster cannot begin: {report.error}")
    for path, times in report.retried.items():
        if times < KILLS:
            job.note(f"{printable(path.name)}: its worker died; tried again ({times} of {KILLS})")
    for name, arguments, named in report.said:
        getattr(job, name)(*arguments, **named)
    for path, collected in report.collected.items():
        job.receive(path, collected)


def _reports(
    make_job: MakeJob,
    ordered: Sequence[Path],
    spans: Sequence[tuple[int, int]],
    allotment: Allotment,
) -> Iterator[Report]:
    """What the workers report, as they come."""
    ray = imported()
    if not spans:
        return
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    here = affinity(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
    arguments = {
        "make_job": make_job,
        "ordered": ordered,
        "size": max(end - begin for begin, end in spans),
        "ledger": ledger,
        "folder": os.getcwd(),
    }
    items = [{"begin": begin, "end": end} for begin, end in spans]
    pieces = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        PieceWorker,
        batch_size=None,
        fn_constructor_kwargs=arguments,
        compute=ray.data.ActorPoolStrategy(
            size=min(allotment.workers, len(spans)), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=allotment.cpus,
        num_gpus=allotment.gpus,
    )
    try:
        for row in pieces.iter_rows():
            yield pickle.loads(row[COLUMN])
    except ray.exceptions.RayError as error:
        raise UserError(f"the Ray cluster gave up: {in_a_line(error)}") from error
