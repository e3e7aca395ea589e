"""The thread count beside neighbours, with a made-up load and a real one's shape."""

import os

import pytest
import torch

from loreloop.engine import threads
from loreloop.engine.threads import ThreadKeeper, threads_beside


@pytest.fixture(autouse=True)
def _as_it_was():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch):
    """Wall time, the time of this process, and of all, each set by hand."""
    now = {"wall": 0.0, "own": 0.0, "all": 0.0}
    monkeypatch.setattr(threads.time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(threads.time, "process_time", lambda: now["own"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    return now


def passes(clock, seconds, own, others):
    clock["wall"] += seconds
    clock["own"] += own * seconds
    clock["all"] += (own + others) * seconds


@pytest.mark.parametrize(("others", "expected"), [(0, 4), (0.4, 4), (0.6, 3), (1, 3), (2.9, 1), (9, 1)])
def test_threads_are_the_cores_that_are_left(clock, others, expected):
    assert threads_beside(others, 4) == expected
    assert threads_beside(others, 2) == min(2, expected)


def test_the_keeper_follows_the_load_of_others_and_not_its_own(clock):
    keeper = ThreadKeeper(4, fixed=False, busy_seconds=lambda: clock["all"])
    for others, expected in ((0, 4), (2, 2), (3.5, 1), (0, 4)):
        passes(clock, 1.0, own=4 - others, others=others)
        keeper.adjust()
        assert torch.get_num_threads() == expected


def test_the_keeper_looks_twice_a_second_at_most(clock):
    keeper = ThreadKeeper(4, fixed=False, busy_seconds=lambda: clock["all"])
    passes(clock, 0.2, own=1, others=3)
    keeper.adjust()
    assert torch.get_num_threads() == 4


def test_a_number_that_was_asked_for_stays(clock):
    keeper = ThreadKeeper(4, fixed=True, busy_seconds=lambda: clock["all"])
    passes(clock, 1.0, own=1, others=3)
    keeper.adjust()
    assert torch.get_num_threads() == 4


def test_the_machine_s_own_counters_can_be_read():
    first = threads._busy_seconds()
    assert 0 <= first <= threads._busy_seconds()
