"""When a cycle begins: nights, with a clock that is handed in, that skips and repeats hours, and that stands wrong."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.learn.loop.config import Triggers, config_of
from loreloop.learn.loop.state import LoopFolder
from loreloop.learn.loop.triggers import Moment, due, night_of
from loreloop.protocol.errors import WrongSettings
from tests.loop.test_course import steps, verdicts
from tests.loop.world import World

ZONE = "Europe/Berlin"
NIGHTLY = Triggers(feedback=0, nightly="02:30", zone=ZONE)
HOUR, DAY = 3600.0, 86_400.0


def at(text: str, fold: int = 0, zone: str = ZONE) -> float:
    """Seconds since the epoch of a time as clocks in the zone show it; `fold` 1: the second time in that night."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


class Loop:
    """What a loop does about nights, with something new at all times."""

    def __init__(self, began: float) -> None:
        self.night, self.began = night_of(NIGHTLY, began, ""), list[float]()

    def look(self, now: float, n_said: int = 1) -> bool:
        why = due(NIGHTLY, Moment(now=now, n_said=n_said, night=self.night))
        self.night = night_of(NIGHTLY, now, self.night)
        if why == "nightly":
            self.began.append(now)
        return why == "nightly"


def test_a_loop_that_begins_behind_the_hour_waits_for_the_next_night() -> None:
    for began in ("2026-05-01T02:31", "2026-05-01T12:00", "2026-05-02T02:29"):
        loop = Loop(at(began))
        assert not loop.look(at(began))
        assert not loop.look(at("2026-05-02T02:29"))
        assert loop.look(at("2026-05-02T02:30"))
        assert not loop.look(at("2026-05-02T23:59"))


@pytest.mark.parametrize("back", ["2026-05-05T00:10", "2026-05-05T02:20", "2026-05-05T12:00"])
def test_missed_nights_are_made_up_for_once_whenever_the_loop_is_back(back: str) -> None:
    loop = Loop(at("2026-05-01T12:00"))
    assert loop.look(at(back))
    assert not loop.look(at(back) + 60)


def test_an_hour_that_the_clock_skips_or_shows_twice_is_one_night() -> None:
    loop = Loop(at("2026-03-28T12:00"))
    # On March 29 the clock goes from 02:00 to 03:00.
    assert not loop.look(at("2026-03-29T01:59"))
    assert loop.look(at("2026-03-29T03:00"))
    assert not loop.look(at("2026-03-29T03:30"))
    loop = Loop(at("2026-10-24T12:00"))
    # On October 25 the clock shows 02:00 to 02:59 twice.
    assert loop.look(at("2026-10-25T02:30"))
    assert not loop.look(at("2026-10-25T02:10", fold=1))
    assert not loop.look(at("2026-10-25T02:30", fold=1))
    assert loop.look(at("2026-10-26T02:30"))


def test_the_hour_is_that_of_the_zone() -> None:
    loop = Loop(at("2026-05-01T12:00"))
    assert not loop.look(at("2026-05-02T00:29", zone="UTC"))
    assert loop.look(at("2026-05-02T00:30", zone="UTC"))
    here = night_of(Triggers(nightly="00:00"), at("2026-05-02T12:00"), "")
    assert here == datetime.fromtimestamp(at("2026-05-02T12:00")).date().isoformat(), "without one, of this machine"


def test_a_clock_that_goes_back_by_hours_repeats_no_night() -> None:
    loop = Loop(at("2026-05-01T12:00"))
    assert loop.look(at("2026-05-02T02:31"))
    for now in ("2026-05-01T23:00", "2026-05-02T02:29", "2026-05-02T02:30", "2026-05-02T12:00"):
        assert not loop.look(at(now))
    assert loop.look(at("2026-05-03T02:30"))


def test_a_clock_that_stood_years_ahead_does_not_stop_the_nights_until_then() -> None:
    loop = Loop(at("2026-05-01T12:00"))
    assert loop.look(at("2036-01-01T12:00"))
    loop.look(at("2026-05-02T12:00"))
    assert not loop.look(at("2026-05-02T13:00"))
    assert loop.look(at("2026-05-03T02:30"))


@given(st.lists(st.floats(-DAY / 2, 3 * DAY), max_size=40))
def test_no_night_is_had_twice_however_the_clock_jumps(jumps: list[float]) -> None:
    now = newest = at("2026-03-20T12:00")
    loop, nights = Loop(now), list[str]()
    for jump in jumps:
        # Back by half a day from the newest time at most: more is a clock that stood wrong.
        now = max(now + jump, newest - DAY / 2)
        newest = max(newest, now)
        if loop.look(now):
            nights.append(loop.night)
    assert len(nights) == len({*nights})
    assert nights == sorted(nights)


def test_a_night_without_anything_new_is_over_and_does_not_begin_a_cycle_at_noon(tmp_path: Path) -> None:
    world, clock = World(), [at("2026-05-01T12:00")]
    more = {"triggers": {"feedback": 0, "nightly": "02:30", "zone": ZONE}, "training": {"least_examples": 100}}
    course = world.course(tmp_path, now=lambda: clock[0], **more)
    steps(course)
    clock[0] = at("2026-05-02T02:31")
    steps(course)
    world.corrected(5)
    clock[0] = at("2026-05-02T12:00")
    steps(course)
    assert not verdicts(tmp_path)
    clock[0] = at("2026-05-03T02:31")
    steps(course)
    assert verdicts(tmp_path) == ["void"]


def test_a_loop_that_was_down_for_nights_begins_one_cycle_at_its_next_start(tmp_path: Path) -> None:
    world, clock = World(), [at("2026-05-01T12:00")]
    more = {"triggers": {"feedback": 0, "nightly": "02:30", "zone": ZONE}, "training": {"least_examples": 100}}
    steps(world.course(tmp_path, now=lambda: clock[0], **more))
    world.corrected(5)
    clock[0] = at("2026-05-05T01:00")
    course = world.course(tmp_path, now=lambda: clock[0], **more)
    steps(course)
    world.corrected(5, "bob")
    steps(course)
    assert verdicts(tmp_path) == ["void"]


def test_nights_that_are_named_later_begin_with_the_next_one(tmp_path: Path) -> None:
    world, clock = World(), [at("2026-05-01T12:00")]
    less = {"training": {"least_examples": 100}}
    world.course(tmp_path, now=lambda: clock[0], triggers={"feedback": 0}, **less)
    world.corrected(5)
    course = world.course(
        tmp_path, now=lambda: clock[0], triggers={"feedback": 0, "nightly": "02:30", "zone": ZONE}, **less
    )
    steps(course)
    assert LoopFolder(tmp_path).load().cycle == 0
    clock[0] = at("2026-05-02T02:31")
    steps(course)
    assert verdicts(tmp_path) == ["void"]


@pytest.mark.parametrize("zone", ["Europe", "Mars/Olympus", "/etc/passwd", "../x", ""])
def test_a_zone_that_is_none_is_refused_by_its_name(zone: str) -> None:
    with pytest.raises(WrongSettings, match=r"`triggers\.zone`"):
        config_of({"deployment": "assistant", "triggers": {"nightly": "02:30", "zone": zone}})
