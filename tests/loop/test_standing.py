"""What a loop tells its server of itself: why nothing was promoted yet, the comparison's numbers, its decisions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loreloop.learn.loop.running import Running, run
from loreloop.learn.loop.standing import tell_server
from loreloop.protocol.errors import NotFound
from loreloop.protocol.loop_rest import LoopStanding
from tests.loop.test_course import steps, to_canary
from tests.loop.world import World


def test_a_server_hears_of_the_comparison_and_of_its_end(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    world.voted(2, candidate=True, champion=False)
    steps(course)
    tell_server(course)
    (told,) = world.stands
    assert (told.stage, told.cycle, told.champion) == ("canary", 1, "tiny")
    assert told.candidate == world.deployed.canary
    assert told.sentence == course.folder.why()["sentence"]
    assert told.numbers["difference_low"] < told.numbers["difference"] <= told.numbers["difference_high"] == 1.0
    tell_server(course)
    assert len(world.stands) == 1, "nothing has changed"
    world.voted(40, candidate=True, champion=False)
    asyncio.run(run(course, Running(cycles=1)))
    assert [one.verdict for one in world.stands[-1].decisions] == ["passed", "promoted"]
    assert (world.stands[-1].stage, world.stands[-1].candidate) == ("idle", None)


def test_a_loop_goes_on_beside_a_server_that_takes_no_such_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: World, standing: LoopStanding) -> None:
        raise NotFound("There is no route for this.")

    monkeypatch.setattr(World, "stand", refuse)
    world = World()
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=True, champion=False)
    asyncio.run(run(course, Running(cycles=1)))
    assert course.folder.decisions()[-1].verdict == "promoted"
