"""One process of an engine that is led by the first, which makes the same calls again and again."""

import logging
import os
from pathlib import Path

from loreloop.config import EngineConfig
from loreloop.engine.divergence import COMPARED_CALLS
from loreloop.engine.leading import LeadingEngine, follow
from loreloop.engine.local import LocalEngine
from loreloop.parallel.place import Place
from tests.engine.sample_rig import sample_op

CONFIG = EngineConfig(device="cpu", precision="fp32", threads=1, kv_cache_mib=1)


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
