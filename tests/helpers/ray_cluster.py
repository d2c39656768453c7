"""A Ray cluster of three machines on one: python -m ray_cluster, in a process of its own.

The head has no CPU, so that workers run on the other two machines alone, and a driver survives
them. The address is printed first; then a line of standard input is a thing to do: "kill worker"
kills the process of a worker, "kill machine" a machine with all of its processes. An answer is
printed when that is done; the end of the input ends the cluster.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from where import ROOT


class Cluster:
    """A running cluster.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self.address = self._line()

    def kill(self, what: str) -> None:
        """Kill a "worker" or a "machine"."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"kill {what}\n")
        self._process.stdin.flush()
        assert self._line() == f"killed {what}"

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the cluster has ended"
        return line


@contextmanager
def running(environment: Mapping[str, str]) -> Iterator[Cluster]:
    """A cluster whose processes have these variables too."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_cluster"],
        env={**os.environ, "PYTHONPATH": paths, "RAY_worker_niceness": "0", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Cluster(process)
    finally:
        process.communicate()  # closes its input


def _worker_of(raylets: list[int]) -> int:
    """The process number of a worker that one of the raylets has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            title = stat.with_name("cmdline").read_text()
        except OSError:  # it has ended
            continue
        if parent in raylets and "PieceWorker" in title:
            return int(stat.parent.name)
    raise RuntimeError("no worker")


def main() -> None:
    """Run the cluster; what to do is read from standard input."""
    from ray.cluster_utils import Cluster as Nodes  # pyright: ignore[reportMissingImports]

    memory = 100 * 2**20  # of the object store
    head = {"num_cpus": 0, "object_store_memory": memory}
    cluster = Nodes(initialize_head=True, head_node_args=head)
    machines = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        what = line.split()[1]
        if what == "machine":
            cluster.remove_node(machines.pop(), allow_graceful=False)
        else:
            raylets = [node.all_processes["raylet"][0].process.pid for node in machines]
            os.kill(_worker_of(raylets), signal.SIGKILL)
        print(f"killed {what}", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
