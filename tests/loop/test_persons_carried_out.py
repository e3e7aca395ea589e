"""Weights of persons that were decided on before a death, or that the server takes for some of a team only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loreloop.learn.loop.running import n_ended
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import BadRequest, Conflict, LoreloopError
from tests.loop.test_course import steps, verdicts
from tests.loop.test_persons import MORE, TEAM, dies_at
from tests.loop.test_withdrawn import withdraw
from tests.loop.world import World


@dataclass
class Choosy(World):
    """A world that does not take weights for some persons, or some weights for anybody, and says why."""

    refused: dict[str, LoreloopError] = field(default_factory=dict)

    def set_person(self, user: str, target: str, key_id: str = "") -> None:
        for one in (user, target):
            if one in self.refused:
                raise self.refused[one]
        super().set_person(user, target, key_id)


def test_what_was_decided_before_a_death_answers_nobody_once_words_of_it_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_decided = 0
    for moment in range(1, 100):
        world, folder = World(), tmp_path / str(moment)
        world.corrected(4, "ann")
        if not dies_at(moment, world, world.course(folder, **MORE), monkeypatch):
            break
        withdraw(world, "chatcmpl-1")
        decided = LoopFolder(folder).decisions()
        is_answered = bool(world.owns)
        course = world.course(folder, **MORE)
        for _ in range(3):
            steps(course, 1)
        if is_answered:
            continue  # it answered before anything was taken back
        last = world.trained[-1]
        assert "ann asks 0" not in last["lines"]["sft"], moment
        assert world.owns == {"ann": LoopFolder(folder).decisions()[-1].candidate}, moment
        assert not decided or len(world.trained) == 2, moment
        n_decided += bool(decided)
    assert n_decided > 2, "it died between the decision and its being carried out"
    assert moment > 10


def test_a_team_that_has_its_weights_by_half_has_none_of_them_once_words_of_it_are_taken_back(tmp_path: Path) -> None:
    world = Choosy(refused={"bob": Conflict("moved meanwhile")})
    world.corrected(3, "ann")
    world.feeds.turn("and bob asks", "something", person=Person("key", "bob"))
    course = world.course(tmp_path, **TEAM)
    steps(course, 1)
    assert [*world.owns] == ["ann"], "the rest waits"
    withdraw(world, "chatcmpl-1")
    world.refused.clear()
    steps(course, 1)
    assert not world.owns
    assert verdicts(tmp_path) == ["promoted", "void"]
    assert "consent was taken back" in course.folder.decisions()[-1].sentence
    assert len(world.trained) == 1, "two corrections are not enough for another attempt"
    world.corrected(1, "ann")
    steps(course, 1)
    assert world.owns == dict.fromkeys(("ann", "bob"), course.folder.decisions()[-1].candidate)


def test_a_team_whose_older_weights_are_not_taken_back_is_answered_by_the_shared_ones(tmp_path: Path) -> None:
    world = Choosy()
    world.corrected(3, "ann")
    world.feeds.turn("and bob asks", "something", person=Person("key", "bob"))
    course = world.course(tmp_path, **TEAM)
    steps(course, 1)
    older = world.owns["bob"]
    assert world.owns == {"ann": older, "bob": older}
    world.refused = {"bob": BadRequest("not these"), older: BadRequest("gone")}
    world.corrected(3, "ann")
    steps(course, 1)
    assert world.owns == {}, "some would have the newer weights, and some the older ones"
    assert verdicts(tmp_path) == ["promoted", "promoted", "rejected"]
    # Nobody is answered by words that the team's next weights would not be known to have.
    world.refused.clear()
    world.corrected(3, "bob")
    steps(course, 1)
    assert len({*world.owns.values()} - {older}) == 1
    assert {*world.owns} == {"ann", "bob"}


def test_a_team_is_set_back_also_where_the_deployment_moves_each_time(tmp_path: Path) -> None:
    world = Choosy()
    world.corrected(3, "ann")
    world.feeds.turn("and bob asks", "something", person=Person("key", "bob"))
    course = world.course(tmp_path, **TEAM)
    steps(course, 1)
    older = world.owns["bob"]
    world.refused = {"bob": BadRequest("not these"), older: Conflict("moved meanwhile")}
    world.corrected(3, "ann")
    steps(course, 1)
    assert world.owns["ann"] != older, "it is set back later"
    world.refused = {}
    steps(course, 1)
    assert world.owns == {"ann": older, "bob": older}
    steps(course, 2)
    assert len(world.trained) == 2


def test_a_person_counts_as_no_cycle(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    course = world.course(tmp_path, **MORE)
    asyncio.run(course.step())
    assert (verdicts(tmp_path), n_ended(course)) == (["promoted"], 0)
