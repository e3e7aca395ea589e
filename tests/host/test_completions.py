"""Ends that are told in one poll: numbers that go back, polls that nobody follows, ids of any form."""

import asyncio
import gc

import pytest

from loreloop.host.completions import CLONE, Completions, Target, target_of

TARGET = Target("s:sample:0", 0)


def test_a_cursor_ahead_of_all_numbers_hears_of_every_end() -> None:
    async def scene() -> None:
        before = Completions(last=10**18)  # its clock was ahead
        before.ended("s:sample:0:1", failed=False)
        cursor = (await before.since(TARGET, 0, 0)).cursor
        ends = Completions()
        later = asyncio.create_task(ends.since(TARGET, cursor, 10))
        await asyncio.sleep(0)
        ends.ended("s:sample:0:2", failed=False)
        heard = await later
        assert [one.request_id for one in heard.completions] == ["s:sample:0:2"]
        assert heard.cursor == ends.last

    asyncio.run(scene())


def test_nothing_is_kept_for_polls_that_are_over() -> None:
    async def scene() -> None:
        ends = Completions()
        for number in range(1000):
            assert (await ends.since(Target(f"s{number}:sample:0", 0), 0, 0)).completions == []
        broken_off = asyncio.create_task(ends.since(TARGET, 0, 60))
        await asyncio.sleep(0)
        assert len(ends.waiting) >= 1
        broken_off.cancel()
        await asyncio.wait([broken_off])
        del broken_off
        gc.collect()
        assert len(ends.waiting) == 0

    asyncio.run(scene())


def test_one_end_wakes_all_polls_of_its_target() -> None:
    async def scene() -> None:
        ends = Completions()
        polls = [asyncio.create_task(ends.since(TARGET, 0, 10)) for _ in range(3)]
        impatient = asyncio.create_task(ends.since(TARGET, 0, 0.001))
        assert (await impatient).completions == []
        ends.ended("s:sample:0:1", failed=True)
        heard = await asyncio.gather(*polls)
        assert [[one.request_id for one in each.completions] for each in heard] == [["s:sample:0:1"]] * 3

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("request_id", "target"),
    [
        ("s:sample:0:7", TARGET),
        (f"s:sample:0:{2 * CLONE + 7}", Target("s:sample:0", 2)),
        (f"s:sample:0:{'9' * 5000}", None),
        ("s:sample:0:-1", None),
        ("s:train:0:7", None),
    ],
)
def test_an_id_tells_whose_it_is(request_id: str, target: Target | None) -> None:
    assert target_of(request_id) == target
