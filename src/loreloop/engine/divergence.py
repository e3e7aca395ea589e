"""Whether the processes of one engine are still alike: what their calls gave, and what each knows of its own state.

From equal commands come equal states: tokens, losses, pages, prefixes, resident adapters. Where they differ, the next
number would be wrong. Knows nothing of the commands.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch

from loreloop.engine.contract import SampleFailed
from loreloop.engine.local import LocalEngine
from loreloop.protocol.training import PassResult

COMPARED_CALLS = 64  # between two comparisons
FIELDS = 2  # what a process has been told, and what it holds


class Divergence:
    """Of one process. `add` is called after each call of the engine, also one that has failed, on all processes in the
    same order."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine, self.n_calls, self.given = engine, 0, 0

    def add(self, given: Any) -> str:
        """Takes in what a call gave. Every so many calls the processes compare; it gives what differs then, in words,
        and "" where nothing does or it is not the time."""
        self.given = zlib.crc32(repr(_told(given)).encode(), self.given)
        self.n_calls += 1
        if self.n_calls % COMPARED_CALLS:
            return ""
        mine = torch.tensor([self.given, zlib.crc32(repr(held_state(self.engine)).encode())])
        ranks = self.engine.place.gathered(mine, [FIELDS] * self.engine.place.n_ranks)
        return " and ".join(_differing(torch.stack(ranks).T.tolist()))


def _told(given: Any) -> Any:
    """What a call gave, in few words: of a training pass its metrics, which sum up what each token gave."""
    if isinstance(given, list):
        return [_told(one) for one in given]
    if isinstance(given, SampleFailed):
        return given.request_id, "failed"  # each process says in its own words what it could not read
    return given.metrics if isinstance(given, PassResult) else given


def held_state(engine: LocalEngine) -> tuple[Any, ...]:
    """What a process keeps on the host that decides what it does next: pages and their holders, prefixes by adapter,
    adapters and models in memory."""
    pool, tree = engine.sampler.pool, engine.sampler.tree
    prefixes = sorted((name, tree.clock) for name in tree.roots), sorted(tree.n_nodes.items())
    return pool.free, pool.holders, prefixes, [*engine.revisions.resident], [*engine.bank.resident]


def _differing(rows: Sequence[Sequence[int]]) -> list[str]:
    words = ("have given other results", "hold another state")
    found: list[str] = []
    for said, by_rank in zip(words, rows, strict=True):
        # The first process is the one that clients hear.
        if others := [rank for rank, number in enumerate(by_rank) if number != by_rank[0]]:
            found.append(f"processes {', '.join(map(str, others))} {said} than process 0")
    return found
