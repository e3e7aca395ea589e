"""`python -m bench.pipeline [MESH]`: two processes of one thread each against one of two threads, on the default model.

Training of eight micro-batches and decoding of 32 samples, by turns; bench/results/pipeline.json gets how much of the
one process's throughput the two have. MESH is `pp=2` unless another of two ranks is named. To be run on an idle machine
of two cores; it takes some minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from torch import distributed as dist

from bench.record import RESULTS, line, write_record
from bench.rig import (
    Figure,
    Side,
    alternating,
    datum,
    engine,
    new_model,
    random_ids,
    sample_op,
    saved_revision,
    timed,
    train_step,
)
from loreloop.cli.serve import MEMORY
from loreloop.config import EngineConfig
from loreloop.engine.leading import LeadingEngine, follow
from loreloop.engine.local import LocalEngine
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.place import Place, place_of
from loreloop.protocol.sampling import Revision

N_RANKS = 2
N_BATCHES = 8
BATCH_ROWS = 512
N_SAMPLES, N_NEW = 32, 64
AT_LEAST = 0.6


def place(mesh: str, rank: int, meeting: str) -> Place:
    """This process's place, once the other is there."""
    store = dist.FileStore(meeting, N_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=N_RANKS)
    return place_of(parse_mesh(mesh))


def of_several(where: Place) -> LocalEngine:
    """One process's share, of one thread."""
    from bench.rig import MODEL, folder

    config = EngineConfig(threads=1, train_tokens=BATCH_ROWS, kept_tokens=BATCH_ROWS)
    return LocalEngine(config, MODEL, folder(), Path(tempfile.mkdtemp()), place=where)


def other(mesh: str, meeting: str) -> None:
    """The second process."""
    follow(of_several(place(mesh, 1, meeting)))


def decode(running: LocalEngine, rng: np.random.Generator, revision: Revision) -> None:
    """All samples to their end. Their prompts are new, so that nothing of them is cached."""
    for number in range(N_SAMPLES):
        op = sample_op(str(number), random_ids(rng, 64), revision, N_NEW, seed=number)
        while not running.admit(op):
            running.sample_step()
    while running.sampling:
        running.sample_step()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("mesh", nargs="?", default="pp=2")
    mesh = parser.parse_args(arguments).mesh
    if parse_mesh(mesh).n_ranks != N_RANKS:
        sys.exit(f"The mesh {mesh} has not {N_RANKS} ranks.")
    started = time.monotonic()
    meeting = str(Path(tempfile.mkdtemp()) / "meeting")
    second = multiprocessing.get_context("spawn").Process(target=other, args=(mesh, meeting), daemon=True)
    second.start()
    both = cast(LocalEngine, LeadingEngine(of_several(place(mesh, 0, meeting))))
    one = engine(threads=N_RANKS, train_tokens=BATCH_ROWS, kept_tokens=BATCH_ROWS)
    rng = np.random.default_rng(1)
    data = [datum(random_ids(rng, BATCH_ROWS + 1)) for _ in range(N_BATCHES)]
    engines = {"one": (one, N_RANKS), "several": (both, 1)}
    for running, _ in engines.values():
        new_model(running)
    # Written by the one process, and read by the others.
    revision = saved_revision(one, "r")
    figures = []
    work = {
        "training": lambda running: train_step(running, data),
        "decoding": lambda running: decode(running, rng, revision),
    }
    for name, does in work.items():
        sides = {
            side: Side(lambda does=does, running=running: timed(lambda: does(running)), n_threads=n_threads)
            for side, (running, n_threads) in engines.items()
        }
        for side in sides.values():
            side.set_threads(side.n_threads or 1)
            side.work()  # warms up
        turns = alternating(sides)
        ratio = turns.seconds["one"] / turns.seconds["several"]
        figures += turns.note([Figure(f"{name}, {mesh} of one process's throughput", ratio, "×", at_least=AT_LEAST)])
    name = "pipeline" if mesh == "pp=2" else f"mesh-{mesh.replace('=', '')}"
    write_record(RESULTS, name, __doc__ or "", figures, seconds=round(time.monotonic() - started, 1))
    for figure in figures:
        print(line(name, figure), flush=True)
    second.kill()
    return 0


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in MEMORY.items()):
        # As in `python -m bench`: both sides get the allocator's settings of `loreloop serve`.
        os.execve(sys.executable, [sys.executable, "-m", "bench.pipeline", *sys.argv[1:]], os.environ | MEMORY)
    sys.exit(main(sys.argv[1:]))
