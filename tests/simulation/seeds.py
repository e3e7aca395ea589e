"""Seeds, each simulated in a world of its own, in as many processes as are asked for."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.simulation.world import Template, World, make_template

Result = tuple[int, list[str], list[str]]
IN_MEMORY = next((place for place in ("/dev/shm",) if os.access(place, os.W_OK)), None)  # nothing outlives a world
SEEDS_IN_ONE_GO = 20
_HELD: list[tempfile.TemporaryDirectory[str]] = []
_TEMPLATES: list[Template] = []


def simulate(seed: int, template: Template) -> Result:
    """The seed, the promises that were not kept, and the course of its world."""
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=IN_MEMORY) as folder:
        world = World(seed, template, Path(folder))
        problems = world.run()
        return seed, problems, world.course


def one_seed(seed: int) -> Result:
    """The same with a template that this process makes once."""
    if not _TEMPLATES:
        _HELD.append(tempfile.TemporaryDirectory(prefix="simulation-"))
        _TEMPLATES.append(make_template(Path(_HELD[0].name, "data")))
    return simulate(seed, _TEMPLATES[0])


def results(seeds: range, n_processes: int) -> Iterator[Result]:
    """Of all seeds, as they come."""
    if n_processes == 1 or len(seeds) == 1:
        yield from map(one_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(n_processes) as pool:
        yield from pool.imap_unordered(one_seed, seeds, chunksize=SEEDS_IN_ONE_GO)
