"""Adapters of single persons: who gets one, of which words, and what a death in between leaves."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from loreloop.learn.loop.door import Door
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.episodes import Person
from tests.loop.test_course import steps, verdicts
from tests.loop.world import Died, World, mortal

MORE = {"persons": {"corrections": 3}, "triggers": {"feedback": 0}}


def test_who_corrects_enough_gets_weights_of_their_own(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    world.corrected(2, "bob")
    steps(world.course(tmp_path, **MORE), 1)
    assert [*world.owns] == ["ann"]
    assert "bob" not in str(world.trained)
    assert verdicts(tmp_path) == ["promoted"]
    assert world.deployed.version == 1, "everybody else has what they had"


def test_only_named_users_have_them(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    world.corrected(3, "bob")
    course = world.course(tmp_path, **MORE | {"persons": {"corrections": 3, "users": ["bob"]}})
    steps(course, 4)
    assert [*world.owns] == ["bob"]


def test_persons_have_their_turn_where_a_shared_cycle_is_always_due(tmp_path: Path) -> None:
    world, broken = World(broken=["it is worse"]), {"persons": {"corrections": 3, "users": ["zoe", "bob"]}}
    course = world.course(tmp_path, **broken)
    world.corrected(3, "zoe")
    world.corrected(3, "bob")
    for n in range(5):
        world.corrected(4, f"crowd {n}")
        steps(course)  # until the loop is idle again
    assert [*world.owns] == ["zoe", "bob"]
    # Neither waits for more than one of the other.
    assert [one.stage for one in course.folder.decisions()] == ["person", "gate", "person", "gate", "gate"]


def test_persons_have_their_turn_while_a_canary_waits_for_its_users(tmp_path: Path) -> None:
    world = World()
    world.corrected(5, "crowd")
    course = world.course(tmp_path, persons={"corrections": 3, "users": ["zoe"]})
    steps(course)
    assert course.folder.load().stage == "canary"
    world.corrected(3, "zoe")
    steps(course)
    assert [*world.owns] == ["zoe"]
    assert course.folder.load().stage == "canary"
    course.folder.pause(True)
    world.corrected(3, "zoe")
    trained = len(world.trained)
    steps(course)
    assert len(world.trained) == trained, "a paused loop makes nothing"


def test_new_words_make_new_weights_out_of_all_of_them(tmp_path: Path) -> None:
    world = World()
    course = world.course(tmp_path, **MORE)
    world.corrected(3, "ann")
    steps(course, 1)
    first = world.owns["ann"]
    steps(course, 3)
    assert len(world.trained) == 1, "the same words are not learned twice"
    world.corrected(3, "ann")
    steps(course, 1)
    assert world.owns["ann"] != first
    assert world.trained[1]["lines"]["sft"].count("ann asks") == 6


def test_weights_that_do_not_hold_answer_nobody(tmp_path: Path) -> None:
    world = World(share_right=0.3)
    world.corrected(3, "ann")
    steps(world.course(tmp_path, **MORE), 3)
    assert not world.owns
    (decision,) = LoopFolder(tmp_path).decisions()
    assert decision.verdict == "rejected"
    assert "30%" in decision.sentence


@pytest.mark.parametrize("more", [{"consent": False}, {"side": True}])
def test_what_must_not_be_learned_is_in_no_persons_weights(tmp_path: Path, more: dict) -> None:
    world = World()
    for n in range(3):
        turn = world.feeds.turn(f"secret {n}", "no", person=Person("key", "ann"), **more)
        world.feeds.say(turn.id, "demonstration", "never this")
    steps(world.course(tmp_path, **MORE), 3)
    assert not world.trained


def test_deleted_and_nameless_persons_have_none(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    world.corrected(3, "")
    world.feeds.deleted.append(Person("key", "ann"))
    steps(world.course(tmp_path, **MORE), 3)
    assert not world.trained


def test_a_team_shares_one_adapter_that_learns_from_all_of_its_members(tmp_path: Path) -> None:
    world = World()
    for user in ("ann", "bob", "eve"):
        world.corrected(2, user)
    world.feeds.turn("and cid asks", "something", person=Person("key", "cid"))
    more = {"persons": {"corrections": 3, "teams": {"support": ["ann", "bob", "cid"]}}, "triggers": {"feedback": 0}}
    course = world.course(tmp_path, **more)
    steps(course, 5)
    (trained,) = world.trained
    assert ("ann asks" in str(trained), "bob asks" in str(trained), "eve" in str(trained)) == (True, True, False)
    assert world.owns.keys() == {"ann", "bob", "cid"}
    assert len({*world.owns.values()}) == 1
    # Who leaves takes their words along: it is made anew of what the others have said.
    world.feeds.deleted.append(Person("key", "bob"))
    world.corrected(1, "cid")
    steps(course, 5)
    assert "bob" not in str(world.trained[1])
    assert "bob" not in (tmp_path / "persons.json").read_text()
    assert len(world.trained) == 2
    assert world.owns["ann"] == world.owns["cid"] != world.owns["bob"]


TEAM = {"persons": {"corrections": 3, "teams": {"support": ["ann", "bob", "cid"]}}, "triggers": {"feedback": 0}}


def test_a_teams_adapter_answers_nobody_once_a_member_is_deleted(tmp_path: Path) -> None:
    world = World()
    for user in ("ann", "bob"):
        world.corrected(2, user)
    world.feeds.turn("and cid asks", "something", person=Person("key", "cid"))
    steps(world.course(tmp_path, **TEAM), 5)
    assert world.owns.keys() == {"ann", "bob", "cid"}
    world.feeds.deleted.append(Person("key", "bob"))
    steps(world.course(tmp_path, **TEAM), 1)
    assert world.owns.keys() <= {"bob"}, "his own arm the server has taken away itself"
    assert len(world.trained) == 1, "the others have said too little for one of their own"


def test_a_teams_adapter_is_made_anew_at_once_of_what_the_others_have_said(tmp_path: Path) -> None:
    world = World()
    world.corrected(2, "bob")
    world.corrected(3, "ann")  # the newest correction is the same with him and without
    course = world.course(tmp_path, **TEAM)
    steps(course, 3)
    made = course.folder.decisions()[0].candidate
    assert made == world.owns["ann"]
    world.feeds.deleted.append(Person("key", "bob"))
    steps(course, 3)
    assert len(world.trained) == 2
    assert "bob" not in str(world.trained[1])
    first, second = course.folder.decisions()
    assert (first.verdict, second.verdict) == ("promoted", "promoted")
    assert first.key != second.key


def test_whom_an_older_adapter_of_a_team_has_learned_from_is_known_behind_a_rejection(tmp_path: Path) -> None:
    world, more = World(), TEAM | {"persons": TEAM["persons"] | {"most": 3}}
    world.corrected(3, "bob")
    world.feeds.turn("and cid asks", "something", person=Person("key", "cid"))
    course = world.course(tmp_path, **more)
    steps(course, 3)
    assert world.owns.keys() == {"bob", "cid"}
    world.share_right = 0.1
    world.corrected(3, "ann")
    steps(course, 3)
    assert verdicts(tmp_path) == ["promoted", "rejected"]
    world.feeds.deleted.append(Person("key", "bob"))
    steps(course, 1)
    assert world.owns.keys() <= {"bob"}


def dies_at(moment: int, world: World, course, monkeypatch) -> bool:
    """Takes a step that dies at a moment; False where it has ended before."""
    with monkeypatch.context() as patched:
        mortal(world, patched)
        world.fate.at = moment
        try:
            steps(course, 1)
        except Died:
            return True
    return False


def test_who_is_deleted_while_a_team_gets_its_weights_is_in_none_of_them(tmp_path: Path, monkeypatch) -> None:
    for moment in range(1, 100):
        world, folder = World(), tmp_path / str(moment)
        world.corrected(2, "ann")
        world.corrected(2, "bob")
        course = world.course(folder, **TEAM)
        if not dies_at(moment, world, course, monkeypatch):
            break
        world.feeds.deleted.append(Person("key", "bob"))
        steps(world.course(folder, **TEAM), 1)
        assert world.owns.keys() <= {"bob"}, moment
    assert moment > 10


def test_users_of_two_keys_who_have_the_names_of_a_team_are_not_in_one(tmp_path: Path) -> None:
    world = World()
    world.corrected(2, "ann", key="one")
    world.corrected(2, "bob", key="other")
    course = world.course(tmp_path, **TEAM)
    steps(course, 3)
    assert not world.trained
    world.corrected(1, "cid", key="one")
    steps(course, 3)
    (trained,) = world.trained
    assert "bob" not in str(trained)
    assert world.owns.keys() == {"ann", "cid"}


def test_a_death_at_any_moment_of_it_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    for moment in range(1, 100):
        world, folder = World(), tmp_path / str(moment)
        world.corrected(3, "ann")
        course = world.course(folder, **MORE)
        if not dies_at(moment, world, course, monkeypatch):
            break
        steps(world.course(folder, **MORE), 1)
        (decision,) = LoopFolder(folder).decisions()
        assert world.owns == {"ann": decision.candidate}, moment
        assert not list(folder.glob("persons/*/*/*.jsonl"))
    assert moment > 10


def test_the_door_looks_at_the_person_of_the_key_that_is_named_and_lets_go_of_them() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.raw_path.decode()))
        return httpx.Response(404 if len(asked) == 2 else 200, json={"target": "tinker://own"})

    with httpx.Client(base_url="http://site", transport=httpx.MockTransport(answer)) as http:
        for _ in range(2):  # who has none any more is as one who was let go
            Door(http, "assistant").clear_person("a/b", "key 1")
        assert Door(http, "assistant").person_target("a/b", "key 1") == "tinker://own"
    path = "/loop/v1/deployments/assistant/persons/a%2Fb?key=key%201"
    assert asked == [("DELETE", path), ("DELETE", path), ("GET", path)]


def test_weights_of_a_persons_own_that_know_anothers_words_go_with_that_other(tmp_path: Path) -> None:
    world = World()
    world.corrected(4, "ann")
    world.corrected(3, "carol")
    world.feeds.say("chatcmpl-1", "demonstration", "as bob has it", who="bob", giver="key")
    world.feeds.say("chatcmpl-2", "demonstration", "as carol has it", who="carol", giver="key")
    course = world.course(tmp_path, **MORE)
    for _ in range(4):
        steps(course, 1)
    assert {*world.owns} == {"ann", "carol"}
    assert "as bob has it" in str(world.trained[-1])
    world.feeds.deleted.append(Person("key", "bob"))
    course.persons.forget()
    assert {*world.owns} == {"carol"}, "who has only spoken of Ann's turns keeps their own"
    course.persons_heard = -1
    for _ in range(4):
        steps(course, 1)
    assert "bob" not in (tmp_path / "persons.json").read_text()
    assert {*world.owns} == {"ann", "carol"}
    assert "as bob has it" not in str(world.trained[-1])
