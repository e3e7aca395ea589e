"""One process of an engine that is led by the first, which makes the same calls again and again."""

import contextlib
import logging
import os
from pathlib import Path

import torch

from loreloop.config import EngineConfig
from loreloop.engine.contract import SampleFailed
from loreloop.engine.divergence import COMPARED_CALLS
from loreloop.engine.leading import LeadingEngine, follow
from loreloop.engine.local import LocalEngine
from loreloop.parallel.place import Place
from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.training import CreateModel, LoadState, LoraSpec, SaveSampler
from tests.engine.sample_rig import sample_op

CONFIG = EngineConfig(device="cpu", precision="fp32", threads=1, kv_cache_mib=1)


def unread(place: Place, folder: Path, damaged: bool) -> None:
    """One process has no folder of a revision that all are asked for, or a file of it is `damaged`, which the first one
    alone looks at; then they go on until they have compared."""
    logging.basicConfig(filename=folder / f"{place.rank}.log", force=True)
    local = LocalEngine(CONFIG, "tiny", folder, folder / str(place.rank), place=place)
    lora, revision = LoraSpec(4, 0), folder / "revision"
    if not place.is_first:
        if not damaged:
            local.revisions.place = AsOnAnotherDisk(place)
        follow(local)
    engine = LeadingEngine(local)
    engine.create_model(CreateModel("a", 0, "r", lora))
    engine.save_sampler(SaveSampler("a", 1, "r", str(revision), "unknown"))
    if damaged:
        (revision / "adapter_config.json").write_text("{")
    told = []
    for number in range(COMPARED_CALLS):
        engine.admit(sample_op([1, 2, 3], request=str(number), max_tokens=1, revision=f"cold={revision}"))
        told += engine.sample_step()
        with contextlib.suppress(NotFound):
            engine.load_state(LoadState("none", 1, "r", str(revision), optimizer=False))
    failures = {event.failure for event in told if isinstance(event, SampleFailed)}
    assert len(told) == COMPARED_CALLS
    torch.save(sorted((failure.message, failure.passing) for failure in failures), folder / "failures.pt")
    os._exit(0)


class AsOnAnotherDisk(Place):
    """A place where what all can read cannot be read."""

    def __init__(self, place: Place) -> None:
        super().__init__(**vars(place))

    def agreed(self, work):
        def failing():
            raise BadRequest("This disk has no such folder.")

        return super().agreed(failing)


def led(place: Place, folder: Path, spoiled: str) -> None:
    """Samples until the processes have compared; on the second one something is `spoiled` before."""
    logging.basicConfig(filename=folder / f"{place.rank}.log", force=True)
    local = LocalEngine(CONFIG, "tiny", folder, folder / str(place.rank), place=place)
    if place.is_first:
        engine = LeadingEngine(local)
        for number in range(COMPARED_CALLS):
            engine.admit(sample_op([1, 2, 3], request=str(number), max_tokens=1))
            engine.sample_step()
        os._exit(0)  # the others wait for its next word
    if spoiled == "pages":
        local.sampler.pool.take()
    elif spoiled == "results":
        step = local.sampler.step
        local.sampler.step = lambda: step()[:-1]
    follow(local)
