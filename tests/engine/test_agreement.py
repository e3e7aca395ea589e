"""Whether an engine agrees with itself is measured over its contract, and an engine that does not is found out."""

import dataclasses
import math

import pytest
import torch

from loreloop.config import EngineConfig
from loreloop.engine.agreement import Difference, differences
from loreloop.engine.contract import PromptEvent, TokenEvent
from loreloop.engine.local import LocalEngine
from loreloop.engine.tolerances import Tolerance, documented
from loreloop.protocol.errors import ServerError
from loreloop.protocol.token_ids import pack_logprobs, unpack_logprobs
from tests.tiny import make_tiny_model

NAMES = ["split", "co-batch of samples", "co-batch of training", "mismatch"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def engine_of(kind, folder, tmp_path, **settings):
    config = EngineConfig(**{"device": "cpu", "threads": 1, "precision": "fp32", "kv_cache_mib": 8} | settings)
    return kind(config, "tiny", folder, tmp_path / "work")


def found(engine) -> dict[str, Difference]:
    return {each.name: each for each in differences(engine)}


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_an_exact_engine_differs_in_no_bit(family, tmp_path):
    folder = make_tiny_model(tmp_path / "model", family)
    by_name = found(engine_of(LocalEngine, folder, tmp_path, deterministic=True))
    assert list(by_name) == NAMES
    assert {each.largest for each in by_name.values()} == {0.0}
    assert all(each.n_tokens > 50 for each in by_name.values())


def test_a_fast_engine_stays_within_what_is_documented(folder, tmp_path):
    by_name = found(engine_of(LocalEngine, folder, tmp_path))
    tolerance = documented(EngineConfig(), "fp32", CPU)
    assert all(tolerance.holds(each) for each in by_name.values()), by_name


def test_nothing_of_a_check_stays_in_the_engine(folder, tmp_path):
    engine = engine_of(LocalEngine, folder, tmp_path)
    list(differences(engine))
    assert not engine.bank.resident
    assert not engine.revisions.resident
    assert not engine.sampling


class Crowded(LocalEngine):
    """Says something else of tokens that are drawn beside others."""

    def sample_step(self):
        events = super().sample_step()
        shift = 0.25 if len(events) > 1 else 0.0
        return [
            dataclasses.replace(event, logprob=event.logprob + shift) if isinstance(event, TokenEvent) else event
            for event in events
        ]


class Forgetful(LocalEngine):
    """Scores a prompt otherwise where a part of it was known."""

    def sample_step(self):
        events = super().sample_step()
        return [self._shifted(event) if isinstance(event, PromptEvent) else event for event in events]

    @staticmethod
    def _shifted(event):
        if not event.cache_hit_tokens or event.report.logprobs is None:
            return event
        scores = pack_logprobs(unpack_logprobs(event.report.logprobs) + 0.25)
        report = type(event.report)(logprobs=scores)
        return dataclasses.replace(event, report=report)


@pytest.mark.parametrize(
    ("kind", "differing"),
    [(Crowded, {"co-batch of samples", "mismatch"}), (Forgetful, {"split"})],
    ids=["crowded", "forgetful"],
)
def test_an_engine_that_disagrees_with_itself_is_found_out(kind, differing, folder, tmp_path):
    by_name = found(engine_of(kind, folder, tmp_path))
    assert {name for name, each in by_name.items() if each.largest > 0.2} == differing


class Silent(LocalEngine):
    """Reports nothing of prompts."""

    def sample_step(self):
        events = super().sample_step()
        return [
            dataclasses.replace(event, report=type(event.report)()) if isinstance(event, PromptEvent) else event
            for event in events
        ]


def test_an_engine_without_scores_cannot_be_checked(folder, tmp_path):
    with pytest.raises(ServerError, match="gave no scores"):
        list(differences(engine_of(Silent, folder, tmp_path)))


@pytest.mark.parametrize(
    ("config", "precision", "words", "largest", "holds"),
    [
        (EngineConfig(deterministic=True), "fp32", "equal", 1e-9, False),
        (EngineConfig(deterministic=True), "bf16", "equal", 0.0, True),
        (EngineConfig(), "fp32", "0.0001 nats for a token", 9e-5, True),
        (EngineConfig(), "fp32", "0.0001 nats for a token", 2e-4, False),
        (EngineConfig(), "bf16", "0.01 nats on average", 0.009, True),
        (EngineConfig(), "bf16", "0.01 nats on average", 0.02, False),
        (EngineConfig(), "fp32", "0.0001 nats for a token", math.nan, False),
    ],
    ids=["exact", "exact-bf16", "fp32", "fp32-over", "bf16", "bf16-over", "no-number"],
)
def test_the_bounds_are_those_of_the_docs(config, precision, words, largest, holds):
    tolerance = documented(config, precision, CPU)
    assert words in tolerance.in_words()
    assert tolerance.holds(Difference("mismatch", 1, largest, largest)) == holds


def test_a_bound_that_is_none_holds_all_numbers():
    assert Tolerance().holds(Difference("split", 1, 1e9, 1e9))
