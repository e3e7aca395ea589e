"""Simulates many seeds: `python -m tests.simulation --first 0 --seeds 10000 --processes 2`; `make simulate` does.

One seed alone is told with its whole course.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.simulation.world import Template, World, make_template

Result = tuple[int, list[str], list[str]]
IN_MEMORY = next((place for place in ("/dev/shm",) if os.access(place, os.W_OK)), None)  # nothing is to outlive a world
SEEDS_IN_ONE_GO = 20  # for one process, which makes one template for them
_HELD: list[tempfile.TemporaryDirectory[str]] = []
_TEMPLATES: list[Template] = []


def simulate(seed: int, template: Template) -> Result:
    """The seed, the promises that were not kept, and the course of its world."""
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=IN_MEMORY) as folder:
        world = World(seed, template, Path(folder))
        problems = world.run()
        return seed, problems, world.course


def one_seed(seed: int) -> Result:
    """The same in a process of its own, which has a template of its own."""
    if not _TEMPLATES:
        _HELD.append(tempfile.TemporaryDirectory(prefix="simulation-"))
        _TEMPLATES.append(make_template(Path(_HELD[0].name, "data")))
    return simulate(seed, _TEMPLATES[0])


def results(seeds: range, n_processes: int) -> Iterator[Result]:
    """Of all seeds, as they come."""
    if n_processes == 1:
        yield from map(one_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(n_processes) as pool:
        yield from pool.imap_unordered(one_seed, seeds, chunksize=SEEDS_IN_ONE_GO)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=1)
    wanted = parser.parse_args()
    seeds = range(wanted.first, wanted.first + wanted.seeds)
    started, n_failed = time.monotonic(), 0
    for seed, problems, course in results(seeds, wanted.processes):
        if problems or len(seeds) == 1:
            print("\n".join(course))
        if problems:
            n_failed += 1
            print(f"seed {seed} failed; `make simulate FIRST={seed} SEEDS=1` repeats it:")
            print("\n".join(f"  {problem}" for problem in problems), flush=True)
    print(f"{len(seeds)} seeds in {time.monotonic() - started:.0f} s, {n_failed} failed")
    return int(n_failed > 0)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a world's course
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main())
