"""A Ray cluster of several hosts on this machine: `python -m tests.parallel.ray_nodes CPUS…`, a process of its own.

Prints the cluster's address, then takes a command a line, `add CPUS` or `kill INDEX`, each answered by a line. A host
with GPUs is CPUS+GPUS; Ray believes it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}  # before Ray is imported

STORE_BYTES = 80 << 20  # about the least that Ray takes
ROOT = Path(__file__).parents[2]
END_SECONDS = 60


@dataclass(frozen=True)
class Nodes:
    """A running cluster, to whoever tests with it."""

    address: str
    process: subprocess.Popen[str]

    def tell(self, command: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        print(command, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline().strip() == "done", command


@contextmanager
def ray_nodes(*sizes: str) -> Iterator[Nodes]:
    """A cluster of hosts with so many CPUs, the head first; ended afterwards."""
    command = [sys.executable, "-m", "tests.parallel.ray_nodes", *sizes]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    try:
        address = ""
        while not address.rpartition(":")[2].isdecimal():
            address = process.stdout.readline().strip()
            assert address or process.poll() is None, "the cluster has ended"
        yield Nodes(address, process)
    finally:
        process.stdin.close()
        process.wait(END_SECONDS)


def main(sizes: list[str]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    nodes = [_added(cluster, size) for size in sizes]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "add":
            nodes.append(_added(cluster, argument))
        else:
            # Its processes die at once, as those of a host that loses its power.
            node = nodes[int(argument)]
            if node is nodes[0]:
                node.kill_gcs_server()
                node.kill_raylet()
            else:
                cluster.remove_node(node, allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


def _added(cluster, size: str):
    n_cpus, _, n_gpus = size.partition("+")
    head = {} if cluster.list_all_nodes() else {"include_dashboard": False}
    return cluster.add_node(num_cpus=int(n_cpus), num_gpus=int(n_gpus or 0), object_store_memory=STORE_BYTES, **head)


if __name__ == "__main__":
    main(sys.argv[1:])
