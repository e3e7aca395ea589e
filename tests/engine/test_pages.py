"""Pages are free exactly when nobody holds them."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.engine.sampling.pages import PagePool
from tests.engine.page_rig import check_pages


def test_a_page_is_free_again_when_its_last_holder_lets_go():
    pool = PagePool(2)
    page = pool.take()
    pool.hold(page)
    pool.release(page)
    assert pool.n_free == 1
    pool.release(page)
    assert pool.n_free == 2


def test_nobody_gets_a_page_that_is_held():
    pool = PagePool(5)
    assert sorted(pool.take() for _ in range(5)) == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        pool.take()


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_a_free_page_cannot_be_held_or_released(verb):
    with pytest.raises(AssertionError):
        getattr(PagePool(1), verb)(0)


def test_a_page_that_is_free_twice_is_noticed():
    pool = PagePool(2)
    pool.free[0] = pool.free[1]
    with pytest.raises(AssertionError):
        check_pages(pool)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "hold", "release"]), st.integers(0, 5)), max_size=80))
def test_counts_agree_with_a_plain_counter(actions):
    pool, held = PagePool(4), Counter()
    for action, pick in actions:
        if action == "take" and pool.n_free:
            held[pool.take()] += 1
        elif action != "take" and held:
            page = sorted(held)[pick % len(held)]
            getattr(pool, action)(page)
            held[page] += 1 if action == "hold" else -1
            held = +held
        check_pages(pool)
        assert pool.n_free == 4 - len(held)
        assert {page: n for page, n in enumerate(pool.holders) if n} == dict(held)
