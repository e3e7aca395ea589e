"""Simulates many seeds: `python -m tests.simulation --first 0 --seeds 10000 --processes 2`; `make simulate` does.

One seed alone is told with its whole course.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.seeds import results


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
