"""Adapters that sampling uses: immutable, known by id, loaded from their folders when first asked for.

Those used most stay in memory, where a use counts half as much after some hundred others: a passing crowd of strangers
does not push out what is asked for all day. Knows nothing of where an id comes from.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from loreloop.engine.adapter_reading import read_share
from loreloop.model.lora import AdapterView
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.place import ALONE, Place
from loreloop.protocol.link import LOAD_BUCKETS, ColdLoads
from loreloop.protocol.sampling import Revision

HALF_LIFE = 16  # times the number of places: so many uses of others halve what a use counts


@dataclass
class _Heat:
    """How much an adapter is used: one a use, fading with the uses of all."""

    value: float
    clock: int

    def now(self, clock: int, half_life: int) -> float:
        return self.value * 0.5 ** ((clock - self.clock) / half_life)


class Revisions:
    """At most `max_resident` adapters in the compute dtype. One in use outlives its eviction, and is found again."""

    def __init__(
        self, spec: DecoderSpec, dtype: torch.dtype, device: torch.device, max_resident: int, place: Place = ALONE
    ) -> None:
        self.spec, self.dtype, self.device, self.max_resident, self.place = spec, dtype, device, max_resident, place
        self.resident: dict[str, AdapterView] = {}
        # Weak: an evicted adapter that samples still use can be found again without a read, and vanishes with the last
        # of them.
        self.in_use: WeakValueDictionary[str, AdapterView] = WeakValueDictionary()
        self.heat: dict[str, _Heat] = {}  # of the resident ones
        self.clock = 0  # uses of all
        self.n_hits = self.n_evictions = 0
        self.load_counts = [0] * (len(LOAD_BUCKETS) + 1)
        self.load_seconds = self.longest_load_seconds = 0.0

    def is_cold(self, revision: Revision) -> bool:
        """Whether getting it means reading its folder."""
        return revision.revision_id not in self.in_use

    def get(self, revision: Revision) -> AdapterView:
        """The adapter of a revision; raises BadRequest where its folder cannot be read."""
        # `in_use` holds the resident ones too, since `resident` keeps them alive.
        view = self.in_use.get(revision.revision_id)
        if view is None:
            view = self._load(revision)
        else:
            self.n_hits += 1
        self.put(revision.revision_id, view)
        return view

    def put(self, revision_id: str, view: AdapterView) -> None:
        """This adapter is used now; the coldest of the others give way to it."""
        self.clock += 1
        half_life = HALF_LIFE * self.max_resident
        before = self.heat.get(revision_id)
        self.resident[revision_id] = self.in_use[revision_id] = view
        self.heat[revision_id] = _Heat((before.now(self.clock, half_life) if before else 0.0) + 1, self.clock)
        while len(self.resident) > self.max_resident:
            # Whatever is used right now stays, however cold: it is about to run.
            others = (other for other in self.resident if other != revision_id)
            self._evict(min(others, key=lambda other: self.heat[other].now(self.clock, half_life)))

    def drop(self, revision_id: str) -> None:
        """Forgets a revision; one that is not there is no error, and samples that use it keep it."""
        for known in (self.resident, self.heat, self.in_use):
            known.pop(revision_id, None)

    @property
    def cold_loads(self) -> ColdLoads:
        """How often and how long adapters had to be read from their folders."""
        return ColdLoads(tuple(self.load_counts), self.load_seconds, self.longest_load_seconds)

    def _evict(self, revision_id: str) -> None:
        del self.resident[revision_id], self.heat[revision_id]
        self.n_evictions += 1

    def _load(self, revision: Revision) -> AdapterView:
        started = time.perf_counter()
        share, mine = read_share(Path(revision.folder), self.spec, self.dtype, self.place)
        # One copy of one vector, rather than one of each of its matrices.
        view = AdapterView(share.layout, mine.flat.to(self.device))
        seconds = time.perf_counter() - started
        self.load_counts[bisect_left(LOAD_BUCKETS, seconds)] += 1
        self.load_seconds += seconds
        self.longest_load_seconds = max(self.longest_load_seconds, seconds)
        return view
