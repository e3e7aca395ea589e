"""Prompts beside rows that decode: as many tokens a step as their gap has time for, and the same bits however many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine, gap_seconds_of
from loreloop.engine.sampling.prefill_budget import LEAST_TOKENS, PrefillBudget, tokens_within
from loreloop.engine.sampling.sampler import Sampler, SamplerLimits
from loreloop.parallel.mesh import Mesh
from loreloop.parallel.place import Place
from tests.engine.sample_rig import Answer, sample_op
from tests.engine.train_rig import Rig, random_tokens
from tests.tiny import make_tiny_model

GAP_SECONDS, MOST = 0.2, 256
SECONDS = st.floats(1e-9, 1e3)


@given(gap=SECONDS, token=SECONDS, most=st.integers(1, 5000), factor=st.floats(1, 100))
def test_what_fits_into_the_gap_is_computed_within_bounds(gap, token, most, factor):
    n_tokens = tokens_within(gap, token, most)
    assert min(LEAST_TOKENS, most) <= n_tokens <= most
    assert n_tokens * token <= gap * (1 + 1e-9) or n_tokens == min(LEAST_TOKENS, most)
    assert (n_tokens + 1) * token >= gap * (1 - 1e-9) or n_tokens == most
    assert tokens_within(gap * factor, token, most) >= n_tokens >= tokens_within(gap, token * factor, most)


@given(most=st.integers(1, 5000), seconds=SECONDS)
def test_without_a_gap_or_a_measured_time_only_the_setting_bounds_them(most, seconds):
    assert tokens_within(0, seconds, most) == tokens_within(seconds, 0, most) == most


def test_later_steps_count_more_and_steps_with_few_tokens_do_not():
    budget = PrefillBudget(512, GAP_SECONDS)
    assert budget.tokens(beside_others=True) == 512
    budget.took(500, 1.0)
    assert budget.tokens(beside_others=True) == 100
    assert budget.tokens(beside_others=False) == 512
    budget.took(LEAST_TOKENS - 1, 60.0)
    assert budget.tokens(beside_others=True) == 100
    for _ in range(20):
        budget.took(100, 0.1)
    assert budget.tokens(beside_others=True) == pytest.approx(200, abs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


class Timed:
    """A sampler whose steps take 80 ms, and 1 more for each token, by a clock of its own."""

    def __init__(self, rig: Rig, gap_seconds: float) -> None:
        self.now, self.seconds = 0.0, list[float]()
        limits = SamplerLimits(256, 8, 64, MOST, gap_seconds)
        trainer = rig.trainer
        self.sampler = Sampler(rig.decoder, trainer.attention, trainer.head, limits, clock=lambda: self.now)
        self.forward, self.sampler._forward = self.sampler._forward, self._forward
        self.answers = {name: Answer() for name in ("stream", "first", "second")}

    def _forward(self, shares):
        self.seconds.append(0.08 + 0.001 * sum(share.n_tokens for share in shares))
        self.now += self.seconds[-1]
        return self.forward(shares)

    def admit(self, name: str, n_tokens: int, max_tokens: int = 2) -> None:
        self.sampler.admit(sample_op(random_tokens(n_tokens, n_tokens), request=name, max_tokens=max_tokens), None)

    def drain(self, until: str) -> None:
        while not self.answers[until].reasons:
            for event in self.sampler.step():
                self.answers[event.request_id].add(event)


def lived(rig: Rig, gap_seconds: float) -> Timed:
    """A long prompt alone, and then one beside a stream."""
    timed = Timed(rig, gap_seconds)
    timed.admit("first", 260)
    timed.drain("first")
    timed.seconds.clear()
    timed.admit("stream", 3, 20)
    timed.sampler.step()
    timed.admit("second", 300)
    timed.drain("second")
    timed.drain("stream")
    return timed


def test_a_stream_goes_on_beside_a_long_prompt_and_all_bits_are_the_same(folder):
    rig = Rig(folder, deterministic=True)
    bound, unbound = lived(rig, GAP_SECONDS), lived(rig, 0.0)
    assert max(unbound.seconds) > 0.33
    assert max(bound.seconds) < GAP_SECONDS + 0.05
    assert bound.answers == unbound.answers


@pytest.mark.parametrize(("gap_ms", "expected"), [(200, 0.2), (0, 0.0)])
def test_an_engine_of_one_process_is_bound_by_its_decode_gap(folder, tmp_path, gap_ms, expected):
    config = EngineConfig(device="cpu", precision="fp32", threads=1, kv_cache_mib=1, decode_gap_ms=gap_ms)
    assert LocalEngine(config, "tiny", folder, tmp_path / "work").sampler.limits.gap_seconds == expected


def test_several_processes_compute_the_same_rows_whatever_time_each_takes():
    assert gap_seconds_of(EngineConfig(), Place(Mesh(tp=2), 1)) == 0.0
