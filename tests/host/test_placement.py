"""Which engine draws a sample: the one that knows most of the prompt, as long as it is not too busy for that."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loreloop.host.placement import MOST_SLACK, SLACK_SAMPLES, Candidate, KnownPrefixes, choose, prefixes_of, slack
from loreloop.protocol.sampling import Revision, SampleOp, SamplingParams
from loreloop.protocol.training import ImageChunk, TextChunk

numbers = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5000)), min_size=1, max_size=6)
engines = numbers.map(lambda pairs: [Candidate(i, *pair) for i, pair in enumerate(pairs)])


def op(ids: list[int], revision: str | None = None, *, cut: int = 0) -> SampleOp:
    """A prompt, in two chunks where it is cut."""
    chunks = [TextChunk(np.array(part, "<i4").tobytes()) for part in (ids[:cut], ids[cut:]) if part]
    return SampleOp(
        "r", "ann", Revision(revision, "") if revision else None, tuple(chunks), 1, SamplingParams(max_tokens=1, seed=1)
    )


@given(engines)
def test_nobody_is_given_more_than_the_idlest_and_what_a_prefix_is_worth(candidates: list[Candidate]) -> None:
    chosen = candidates[choose(candidates)]
    idlest = min(one.n_samples for one in candidates)
    assert chosen.n_samples <= idlest + slack(chosen.n_known) <= idlest + MOST_SLACK
    assert chosen.n_known or chosen.n_samples == idlest


@given(engines)
def test_nobody_else_knows_more_and_is_as_idle(candidates: list[Candidate]) -> None:
    chosen = candidates[choose(candidates)]
    for other in candidates:
        assert not (other.n_known > chosen.n_known and other.n_samples <= chosen.n_samples)
        assert not (other.n_known >= chosen.n_known and other.n_samples < chosen.n_samples)


@given(engines, st.randoms())
def test_the_order_does_not_matter(candidates: list[Candidate], dice) -> None:
    assert choose(dice.sample(candidates, len(candidates))) == choose(candidates)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=60), st.integers(1, 5))
def test_strangers_are_spread_evenly(sizes: list[int], n_engines: int) -> None:
    in_hand = [0] * n_engines
    for size in sizes:
        in_hand[choose([Candidate(i, n, 0) for i, n in enumerate(in_hand)])] += size
    assert max(in_hand) - min(in_hand) <= max(sizes)


@given(st.integers(1, 80), st.integers(2, 4), st.integers(1, 400))
def test_a_group_stays_together_until_it_is_large_and_is_then_spread(
    n_members: int, n_engines: int, n_tokens: int
) -> None:
    known, prefixes, in_hand = KnownPrefixes(), prefixes_of(op(list(range(n_tokens)))), [0] * n_engines
    for _ in range(n_members):
        chosen = choose([Candidate(i, n, known.n_known(prefixes, i)) for i, n in enumerate(in_hand)])
        known.note(prefixes, chosen)
        in_hand[chosen] += 1
    assert (sum(n > 0 for n in in_hand) == 1) == (n_members <= SLACK_SAMPLES + 1 + n_tokens // 256)
    assert max(in_hand) - min(in_hand) <= slack(n_tokens) + 1


@given(st.lists(st.integers(0, 3), max_size=500), st.lists(st.integers(0, 3), max_size=300), st.integers(0, 500))
def test_a_continuation_shares_most_of_what_came_before(before: list[int], more: list[int], cut: int) -> None:
    first, later = prefixes_of(op(before)), prefixes_of(op(before + more, cut=cut))
    shared = max((one.length for one in first if one in later), default=0)
    assert shared <= len(before)
    assert shared > len(before) - max(16, len(before) // 16 + 1)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200), st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_a_shared_prefix_is_one(left: list[int], right: list[int]) -> None:
    both = set(prefixes_of(op(left))) & set(prefixes_of(op(right)))
    assert all(left[: one.length] == right[: one.length] for one in both)


def test_another_adapter_knows_nothing_of_it() -> None:
    ids = list(range(100))
    assert not set(prefixes_of(op(ids))) & set(prefixes_of(op(ids, "a")))
    assert not set(prefixes_of(op(ids, "a"))) & set(prefixes_of(op(ids, "b")))


def test_an_image_belongs_to_the_prefix() -> None:
    def with_image(data: bytes) -> SampleOp:
        chunks = (*op([1, 2]).prompt, ImageChunk(data, "png", expected_tokens=40), *op([3]).prompt)
        return SampleOp("r", "ann", None, chunks, 1, SamplingParams(max_tokens=1, seed=1))

    left, right = prefixes_of(with_image(b"left")), prefixes_of(with_image(b"right"))
    assert [one.length for one in left] == [2, 42, 43]
    assert [one in right for one in left] == [True, False, False]


def test_long_prompts_have_few_prefixes() -> None:
    found = prefixes_of(op(list(range(100_000))))
    assert len(found) < 200
    assert found[-1].length == 100_000


def test_who_has_died_knows_nothing_and_little_is_remembered() -> None:
    known, prefixes = KnownPrefixes(most=8), prefixes_of(op(list(range(64))))
    known.note(prefixes, 1)
    known.note(prefixes[:2], 2)
    known.forget(1)
    assert [known.n_known(prefixes, engine) for engine in (1, 2)] == [0, 32]
    known.note(prefixes_of(op(list(range(500, 700)))), 3)
    assert len(known) == 8
