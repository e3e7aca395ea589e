"""A rank that makes, saves, exports and loads an adapter, and how much memory each of these took at its peak."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.parallel import adapter_share
from loreloop.parallel.place import Place
from loreloop.protocol.errors import OutOfService
from loreloop.protocol.sampling import Revision
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    LoadState,
    LoraSpec,
    OptimStep,
    SaveExternal,
    SaveSampler,
    SaveState,
)
from tests.engine.train_rig import datum, random_tokens, train_pass

CONFIG = EngineConfig(device="cpu", precision="fp32", threads=1, kv_cache_mib=1)
LORA = LoraSpec(32, 7, train_unembed=True, experts="per_expert")


def own_bytes() -> int:
    """This process's memory, without that of files."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def growth(work: Callable[[], object]) -> int:
    """How much more memory than before there is while something is done, at most."""
    before = highest = own_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, own_bytes())
            time.sleep(0.0005)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        done.set()
        watching.join()
    return highest - before


def peaks(place: Place, folder: Path, work: Path) -> dict[str, int]:
    """Bytes by what was done; and those of a vector of this rank's share, and of the whole."""
    adapter_share.RUN_NUMBERS = 1 << 18  # of this small adapter no more than a site at once
    engine = LocalEngine(CONFIG, "tiny", folder, work / f"work{place.rank}", place=place)
    found = {"create": growth(lambda: engine.create_model(CreateModel("a", 0, "r", LORA)))}
    data = [datum(random_tokens(20, seed)) for seed in range(2)]
    for seq_id in range(2):
        engine.train([train_pass(*data, model="a")], lambda: None)
        if seq_id == 0:
            engine.optim_step(OptimStep("a", 5, "r", AdamParams(learning_rate=1e-2)))
    state, sampler = work / "state", work / "sampler"
    found |= {
        "snapshot": growth(lambda: engine.snapshot(str(work), 1)),
        "save state": growth(lambda: engine.save_state(SaveState("a", 1, "r", str(state)))),
        "save sampler": growth(lambda: engine.save_sampler(SaveSampler("a", 1, "r", str(sampler), "saved"))),
        "export": growth(lambda: engine.save_external(SaveExternal("a", 1, "r", str(work / "export")))),
        "load state": growth(lambda: engine.load_state(LoadState("a", 1, "r", str(state), optimizer=True))),
        "load sampler": growth(lambda: engine.revisions.get(Revision("other", str(sampler)))),
    }
    layout = engine.bank.get("a").share
    return found | {"share": 4 * layout.layout.size, "whole": 4 * layout.whole_layout.size}


def rewritten(place: Place, folder: Path, source: Path, target: Path, trains: bool) -> None:
    """Begins from a saved state, and writes everything that can be written; `trains` before, for a gradient."""
    adapter_share.RUN_NUMBERS = 1 << 12
    engine = LocalEngine(CONFIG, "tiny", folder, target / f"work{place.rank}", place=place)
    engine.create_model(CreateModel("a", 0, "r", LORA, load_folder=str(source), load_optimizer=True))
    if trains:
        engine.train([train_pass(datum(random_tokens(20, 3)), model="a")], lambda: None)
    for write in writes(engine, target):
        write()


def writes(engine: LocalEngine, target: Path) -> list[Callable[[], object]]:
    """What writes an adapter, each in its own way."""
    return [
        lambda: engine.snapshot(str(target / "snapshot"), 1),
        lambda: engine.save_state(SaveState("a", 1, "r", str(target / "state"))),
        lambda: engine.save_sampler(SaveSampler("a", 1, "r", str(target / "sampler"), "saved")),
        lambda: engine.save_external(SaveExternal("a", 1, "r", str(target / "export"))),
    ]


def struck(place: Place, folder: Path, source: Path, target: Path, fault: str) -> list[str]:
    """As `rewritten`, with a gradient, after all of it has failed on the first process, in the midst of it; what each
    process was told of that."""
    adapter_share.RUN_NUMBERS = 1 << 12
    engine = LocalEngine(CONFIG, "tiny", folder, target / f"work{place.rank}", place=place)
    engine.create_model(CreateModel("a", 0, "r", LORA, load_folder=str(source), load_optimizer=True))
    engine.train([train_pass(datum(random_tokens(20, 3)), model="a")], lambda: None)
    said = []
    for write in writes(engine, target):
        with FAULTS[fault]() if place.is_first else contextlib.nullcontext():
            try:
                write()
            except OutOfService as error:
                said.append(error.message)
    if place.is_first:  # the only one that writes
        assert not [*target.rglob("*.safetensors*")]
    for write in writes(engine, target):
        write()
    return said


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Files may not become larger than some of the runs of an adapter."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_memory() -> Iterator[None]:
    """The third run of sites finds no room."""
    shapes, n_runs = adapter_share._Other.shapes, 0

    def failing(*arguments: object) -> list[torch.Size]:
        nonlocal n_runs
        n_runs += 1
        if n_runs == 3:
            raise MemoryError("no room")
        return shapes(*arguments)

    adapter_share._Other.shapes = failing
    try:
        yield
    finally:
        adapter_share._Other.shapes = shapes


FAULTS = {"disk": full_disk, "memory": no_memory}
