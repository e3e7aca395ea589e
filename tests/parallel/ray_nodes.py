"""A Ray cluster of several hosts on this machine: `python -m tests.parallel.ray_nodes CPUS…`, a process of its own.

Prints the cluster's address, then takes a command a line: `add CPUS`, `kill INDEX`, `where`; each is answered by a line.
"""

import os
import sys

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}

from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20  # the least that Ray takes


def main(sizes: list[str]) -> None:
    cluster = Cluster()
    nodes = [_added(cluster, size) for size in sizes]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "add":
            nodes.append(_added(cluster, argument))
        elif command == "kill":
            # Its processes die at once, as those of a host that loses its power.
            cluster.remove_node(nodes[int(argument)], allow_graceful=False)
        print(nodes[int(argument)].node_id if command == "id" else "done", flush=True)
    cluster.shutdown()


def _added(cluster: Cluster, size: str) -> object:
    n_cpus, _, n_gpus = size.partition("+")
    head = {"include_dashboard": False} if not cluster.list_all_nodes() else {}
    return cluster.add_node(
        num_cpus=int(n_cpus), num_gpus=int(n_gpus or 0), object_store_memory=STORE_BYTES, **head
    )


if __name__ == "__main__":
    main(sys.argv[1:])
