"""Ranks as processes that are forked from one which has imported everything, so that many tests can afford them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.place import Place, place_of

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.parallel.one_rank"])


def on_ranks(mesh: str, folder: Path, work: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """What `work(place, *arguments)` gives on each rank of a mesh, by rank. `work` is a function of a module."""
    outs = [folder / f"{rank}.pt" for rank in range(parse_mesh(mesh).n_ranks)]
    store = str(folder / "store")
    running = [
        FORKS.Process(target=_rank, args=(mesh, rank, store, str(out), work, arguments))
        for rank, out in enumerate(outs)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout)
    late = [process for process in running if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, "a rank waits for another"
    assert [process.exitcode for process in running] == [0] * len(outs)
    return [torch.load(out) for out in outs]


def _rank(mesh: str, rank: int, store: str, out: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    size = parse_mesh(mesh).n_ranks
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    place: Place = place_of(parse_mesh(mesh))
    torch.save(work(place, *arguments), out)
    dist.destroy_process_group()
