"""A plan's order, its batches and its rates."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.learn.runs import plan


@given(n=st.integers(1, 40), size=st.integers(1, 12), epochs=st.integers(1, 4), seed=st.integers(0, 5))
def test_every_epoch_reads_every_example_once(n: int, size: int, epochs: int, seed: int) -> None:
    made, examples = plan(batch_size=size, epochs=epochs, seed=seed), list(range(n))
    read: dict[int, list[int]] = {}
    for step in range(made.n_steps(n)):
        moment, batch = made.moment(step, n), made.batch(step, examples)
        assert 1 <= len(batch) <= size
        read.setdefault(moment.epoch, []).extend(batch)
        assert moment.ends_epoch == (len(read[moment.epoch]) == n)
    assert list(read) == list(range(epochs))
    assert all(Counter(order) == Counter(examples) for order in read.values())


def test_the_order_is_the_seeds_and_another_in_every_epoch() -> None:
    examples = list(range(30))
    orders = [tuple(plan(batch_size=30, seed=seed).batch(epoch, examples)) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(plan(batch_size=30, seed=1).batch(0, examples)) == orders[0]


def test_steps_may_be_more_or_fewer_than_the_epochs() -> None:
    made = plan(batch_size=2, steps=5)
    assert [made.moment(step, 4).epoch for step in range(made.n_steps(4))] == [0, 0, 1, 1, 2]
    assert made.moment(4, 4).ends_epoch  # the last step of the run


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.853553, 0.5, 0.146447])],
)
def test_the_rate_falls_by_its_schedule(schedule: str, rates: list[float]) -> None:
    made = plan(schedule=schedule, learning_rate=1.0)
    assert [made.rate(step, 4) for step in range(4)] == pytest.approx(rates, abs=1e-6)


@given(st.integers(1, 50), st.integers(0, 20), st.floats(0, 1), st.sampled_from(["constant", "linear", "cosine"]))
def test_a_rate_lies_between_its_ends(n: int, warmup: int, share: float, schedule: str) -> None:
    made = plan(warmup_steps=warmup, final_share=share, schedule=schedule, learning_rate=0.5)
    rates = [made.rate(step, n) for step in range(n)]
    assert all(0 < rate <= 0.5 for rate in rates[:warmup])
    assert all(0.5 * share - 1e-9 <= rate <= 0.5 for rate in rates[warmup:])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
