"""Counts of tokens, kept one by one, are those of the whole text."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.engine.sampling.token_counts import TokenCounts


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_they_are_those_of_the_whole_text(before: list[int], after: list[int]) -> None:
    counts = TokenCounts(before)
    for token in after:
        counts.add(token)
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == Counter(before + after)


@pytest.mark.timed
def test_a_step_costs_the_same_in_a_long_text() -> None:
    tokens = np.random.default_rng(0).integers(0, 50_000, 100_000).tolist()
    counts = TokenCounts(tokens)
    started = time.perf_counter()
    for token in tokens[:1000]:
        counts.add(token)
        assert len(counts.ids) == len(counts.counts)
    assert time.perf_counter() - started < 0.1
