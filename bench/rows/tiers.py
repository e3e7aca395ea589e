"""A thousand adapters on one engine with room for sixteen: each answers, the popular ones are in memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from bench.rig import Figure, engine, random_ids, run_samples, sample_op, saved_revision
from loreloop.engine.local import LocalEngine
from loreloop.protocol.sampling import Revision, SampleOp

N_REVISIONS, N_FOLDERS, N_ASKED, RANK = 1000, 8, 1000, 8


def tiers() -> list[Figure]:
    """1,000 adapters of rank 8, sixteen resident: each asked once; then 1,000 requests by a Zipf law."""
    running, rng = engine(resident_revisions=16), np.random.default_rng(0)
    revisions = registered(running)
    everyone = [request(f"all-{at}", revision, rng) for at, revision in enumerate(revisions)]
    longest = run(running, everyone)
    before = running.meters
    assert sum(before.cold_loads.counts) >= N_REVISIONS - 16
    popular = 1 / np.arange(1, N_REVISIONS + 1) ** 1.2
    chosen = rng.choice(N_REVISIONS, N_ASKED, p=popular / popular.sum())
    run(running, [request(f"some-{at}", revisions[i], rng) for at, i in enumerate(chosen)])
    after = running.meters
    n_hits = after.revision_hits - before.revision_hits
    best = int(np.sort(np.bincount(chosen))[-16:].sum())
    n_loads = sum(after.cold_loads.counts)
    return [
        Figure("1,000 adapters: cold load, mean", 1e3 * after.cold_loads.seconds / n_loads, "ms"),
        Figure("1,000 adapters: cold load, longest", 1e3 * after.cold_loads.longest_seconds, "ms"),
        Figure("1,000 adapters: longest step while each is asked once", 1e3 * longest, "ms"),
        Figure("1,000 adapters: hit rate by a Zipf law of 1.2", n_hits / N_ASKED, ""),
        Figure("1,000 adapters: hits over those of the 16 most asked", n_hits / best, "x", at_least=0.9),
    ]


def registered(running: LocalEngine) -> list[Revision]:
    """Folders of their own, whose files are links to those of a few; the operating system caches either alike."""
    made = [saved_revision(running, f"made{number}", RANK) for number in range(N_FOLDERS)]
    root = Path(tempfile.mkdtemp())
    for number in range(N_REVISIONS):
        folder = root / str(number)
        folder.mkdir()
        for file in Path(made[number % N_FOLDERS].folder).iterdir():
            os.link(file, folder / file.name)
    for revision in made:
        running.drop_revision(revision.revision_id)
    return [Revision(f"r{number}", str(root / str(number))) for number in range(N_REVISIONS)]


def request(name: str, revision: Revision, rng: np.random.Generator) -> SampleOp:
    return sample_op(name, random_ids(rng, 16), revision, 4, seed=0)


def run(running: LocalEngine, ops: list[SampleOp]) -> float:
    """Sixty-four at a time; gives the seconds of the longest step."""
    longest = 0.0

    def heard(events: object, seconds: float) -> None:
        nonlocal longest
        longest = max(longest, seconds)

    for first in range(0, len(ops), 64):
        answers = run_samples(running, ops[first : first + 64], heard)
        assert all(len(tokens) > 0 for tokens in answers.values())
    return longest
