"""Mask, allocate and refill, each alone."""

from hypothesis import given
from hypothesis import strategies as st

from loreloop.memory.allocate import Demand, allocate
from loreloop.memory.condense import condense, excerpt, joined, spans_of
from loreloop.memory.mask import Chunk, masked, steps_of, threshold_for
from loreloop.memory.words import words_of
from tests.memory.conversations import count

CHUNKS = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=30)


def chunks_of(sizes: list[tuple[float, int, int]]) -> list[Chunk]:
    return [Chunk(n, worth, small + more, small) for n, (worth, small, more) in enumerate(sizes)]


@given(CHUNKS, st.integers(0, 5))
def test_a_chunks_mask_does_not_depend_on_its_neighbours(sizes: list[tuple[float, int, int]], seed: int) -> None:
    chunks = chunks_of(sizes)
    steps = [steps_of(chunk, seed, 0.7) for chunk in chunks]
    threshold = threshold_for(steps, chunks, sum(chunk.tokens for chunk in chunks) // 2)
    alone = [masked([steps_of(chunk, seed, 0.7)], threshold)[0] for chunk in chunks]
    assert masked(steps, threshold) == alone


@given(CHUNKS, st.integers(1, 500))
def test_the_threshold_frees_enough_and_no_lower_one_does(sizes: list[tuple[float, int, int]], to_free: int) -> None:
    chunks = chunks_of(sizes)
    steps = [steps_of(chunk, 0, 0.0) for chunk in chunks]
    threshold = threshold_for(steps, chunks, to_free)

    def freed(strict: bool) -> int:
        def below(loss: float) -> bool:
            return loss < threshold if strict else loss <= threshold

        return sum(
            (c.tokens - c.condensed) * below(s.condense) + c.condensed * below(s.drop)
            for s, c in zip(steps, chunks, strict=True)
        )

    assert freed(strict=False) >= min(to_free, sum(chunk.tokens for chunk in chunks))
    assert freed(strict=True) < to_free or threshold == float("inf")


@given(CHUNKS, st.floats(0, 1), st.integers(1, 20))
def test_budgets_sum_exactly_to_what_is_free(sizes: list[tuple[float, int, int]], share: float, minimum: int) -> None:
    demands = [Demand(worth, small + more, small) for worth, small, more in sizes]
    free = int(share * sum(demand.tokens for demand in demands))
    budgets = allocate(demands, free, minimum)
    assert sum(budgets) == free
    cut = [budget for budget, demand in zip(budgets, demands, strict=True) if 0 < budget < demand.condensed]
    assert len(cut) <= 1
    assert all(budget >= minimum for budget in cut) or free < minimum


def test_the_densest_are_served_first() -> None:
    demands = [Demand(1.0, 40, 20), Demand(3.0, 40, 20), Demand(2.0, 40, 20)]
    assert allocate(demands, 40, 8) == [0, 20, 20]
    assert allocate(demands, 45, 8) == [0, 25, 20]
    assert allocate(demands, 52, 8) == [12, 20, 20]


@given(st.text(max_size=200))
def test_condensing_keeps_names_numbers_and_most_words(text: str) -> None:
    before, after = words_of(text), condense(text)
    have = words_of(after).content
    assert before.marks <= have
    assert len(before.content & have) >= 0.8 * len(before.content)


def test_condensing_drops_function_words_and_what_is_said_twice() -> None:
    text = "I was at the bank in Oslo on 3 May. The bank, in Oslo. I have never been so angry at a bank!"
    assert condense(text) == "bank Oslo 3 May. never angry bank!"


def test_code_keeps_its_lines_and_its_words() -> None:
    assert (
        condense("Here it is:\n```\nfor i in names:\n  print(i)\n```\nIs it good?")
        == "for i in names:\nprint(i)\ngood?"
    )


def test_an_excerpt_takes_what_says_most_for_its_length() -> None:
    text = "quiet calm evening. Anna paid 300 crowns. incomprehensibly uncomfortable."
    assert excerpt(text, 8, count) == "Anna paid 300 crowns."


@given(st.text(max_size=300), st.integers(0, 60))
def test_an_excerpt_fits_and_keeps_the_order(text: str, budget: int) -> None:
    cut = excerpt(text, budget, count)
    assert count(cut) <= budget
    rest = iter(joined(spans_of(text)).split())
    assert all(word in rest for word in cut.split())
