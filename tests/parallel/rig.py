"""Ranks as processes that are forked from one which has imported everything, so that many tests can afford them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from loreloop.cli.ranks import Meeting, meet
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.place import Place

FORKS = multiprocessing.get_context("forkserver")
MOST_SECONDS = 120
FORKS.set_forkserver_preload(
    [
        f"tests.parallel.{module}"
        for module in ("one_rank", "stage_rank", "leading_rank", "life", "adapter_rank", "vision_rank")
    ]
)


def on_ranks(mesh: str, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(place, *arguments)` gives on each rank of a mesh, by rank. `work` is a function of a module."""
    codes = exits(mesh, folder, work, *arguments)
    assert codes == [0] * len(codes)
    return [torch.load(_out(folder, rank)) for rank in range(len(codes))]


def exits(
    mesh: str, folder: Path, work: Callable[..., Any], *arguments: Any, first_only: bool = False
) -> list[int | None]:
    """The exit codes of ranks that do `work`, by rank; or of the first alone, with which the others end."""
    n_ranks = parse_mesh(mesh).n_ranks
    running = [FORKS.Process(target=_rank, args=(mesh, rank, folder, work, arguments)) for rank in range(n_ranks)]
    for process in running:
        process.start()
    awaited = running[:1] if first_only else running
    for process in awaited:
        process.join(MOST_SECONDS)
    late = [process for process in running if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert first_only or not late, "a rank waits for another"
    return [process.exitcode for process in awaited]


def _out(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.pt"


def _rank(mesh: str, rank: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place: Place = meet(parse_mesh(mesh), rank, Meeting.in_file(folder / "store", parse_mesh(mesh).n_ranks))
    torch.save(work(place, *arguments), _out(folder, rank))
    dist.barrier()  # what this rank has sent is still on its way
    dist.destroy_process_group()
