"""Adapters by id: each answers, cold ones are read once, those used most stay, and all of it is counted."""

import random
from collections import Counter

import pytest
import torch

from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.formats.peft import write_adapter
from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.protocol.link import LOAD_BUCKETS
from loreloop.protocol.sampling import Revision
from loreloop.protocol.training import LoraSpec
from tests.engine.sample_rig import sample_op
from tests.engine.train_rig import random_tokens
from tests.tiny import make_tiny_model

N, RESIDENT = 60, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(folder, tmp_path):
    config = EngineConfig(
        device="cpu", threads=1, precision="fp32", kv_cache_mib=1, resident_revisions=RESIDENT, deterministic=True
    )
    return LocalEngine(config, "tiny", folder, tmp_path / "work")


@pytest.fixture
def revisions(engine, tmp_path):
    layout = LoraLayout(engine.decoder.spec, LoraSpec(2, 0))
    for number in range(N):
        flat = 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(number))
        (tmp_path / str(number)).mkdir()
        write_adapter(tmp_path / str(number), AdapterView(layout, flat), "tiny", durable=False)
    return [Revision(f"r{number}", str(tmp_path / str(number))) for number in range(N)]


def op(revision, request="r", max_tokens=2):
    named = f"{revision.revision_id}={revision.folder}"
    return sample_op(random_tokens(5), request=request, revision=named, max_tokens=max_tokens)


def ask(engine, *ops):
    """First tokens by request, and the most cold loads of one step."""
    tokens, most, waiting = {}, 0, list(ops)
    while waiting or engine.sampling:
        before = sum(engine.meters.cold_loads.counts)
        while waiting and engine.admit(waiting[0]):
            waiting.pop(0)
        most = max(most, sum(engine.meters.cold_loads.counts) - before)
        for event in engine.sample_step():
            tokens.setdefault(event.request_id, []).append(getattr(event, "logprob", None))
    return tokens, most


def n_loads(engine):
    return sum(engine.meters.cold_loads.counts)


def test_each_of_many_answers_and_few_stay(engine, revisions):
    found, most = ask(engine, *(op(revision, revision.revision_id) for revision in revisions))
    assert len({tuple(logprobs) for logprobs in found.values()}) == N
    assert most == 1
    meters = engine.meters
    assert (meters.resident_revisions, n_loads(engine), meters.revision_hits) == (RESIDENT, N, 0)
    assert meters.revision_evictions == N - RESIDENT
    loads = meters.cold_loads
    assert len(loads.counts) == len(LOAD_BUCKETS) + 1
    assert 0 < loads.longest_seconds <= loads.seconds
    again, _ = ask(engine, *(op(revision, revision.revision_id) for revision in revisions[:5]))
    assert all(found[name] == again[name] for name in again)


def test_equal_cold_loads_are_one_also_after_an_eviction(engine, revisions):
    long = op(revisions[0], "long", max_tokens=40)
    others = [op(revision, revision.revision_id) for revision in revisions[1:10]]
    ask(engine, op(revisions[0], "a"), op(revisions[0], "b"), long, *others, op(revisions[0], "c"))
    assert n_loads(engine) == 10
    assert engine.meters.revision_hits == 3


def test_a_crowd_of_strangers_does_not_push_out_what_is_used(engine, revisions):
    table = engine.revisions
    for _ in range(5):
        for revision in revisions[:3]:
            table.get(revision)
    for revision in revisions[3:]:
        table.get(revision)
    assert {revision.revision_id for revision in revisions[:3]} <= set(table.resident)
    for _ in range(40):  # what is no longer used goes in the end
        for revision in revisions[10:14]:
            table.get(revision)
    assert set(table.resident) == {revision.revision_id for revision in revisions[10:14]}


def test_most_requests_find_a_hot_set_in_memory(engine, revisions):
    rng, table = random.Random(0), engine.revisions
    asked = Counter(int(rng.paretovariate(1.2)) - 1 for _ in range(2000))
    for number in rng.sample(list(asked.elements()), 2000):
        table.get(revisions[number % N])
    best = sum(n for _, n in Counter(number % N for number in asked.elements()).most_common(RESIDENT)) / 2000
    assert table.n_hits / 2000 > 0.85 * best


def test_pages_are_counted(engine, revisions):
    meters = engine.meters
    assert meters.kv_pages == meters.kv_pages_free > 0
    engine.admit(op(revisions[0]))
    engine.sample_step()
    assert engine.meters.kv_pages_free < meters.kv_pages
