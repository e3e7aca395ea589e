"""Of more corrections than a cycle has time for, each has its turn, and nobody wonders where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from loreloop.learn.loop.collecting import Rules, collect
from loreloop.learn.loop.config import Training
from loreloop.learn.loop.cycle import Course
from loreloop.learn.loop.portioning import held_by_champion
from loreloop.learn.loop.state import LoopFolder
from loreloop.learn.loop.training import most_corrections
from loreloop.protocol.episodes import Person
from tests.loop.feeds import Feeds
from tests.loop.test_course import steps, verdicts
from tests.loop.test_withdrawn import during, withdraw
from tests.loop.world import World

BY_RULE = {"least_examples": 2, "methods": ["sft"]}


@pytest.mark.parametrize(
    ("told", "most"),
    [
        ({}, 96),
        ({"liked": 1}, 48),
        ({"liked": 100}, 4),
        ({"least_examples": 200}, 200),
        ({"epochs": 3}, None),
        ({"methods": ["kto"]}, None),
    ],
)
def test_a_cycle_learns_what_it_has_time_for(told: dict, most: int | None) -> None:
    assert most_corrections(Training(**{**told, "methods": tuple(told.get("methods", ("sft", "kto")))})) == most


def corrected(n: int) -> Feeds:
    feeds = Feeds()
    for k in range(n):
        feeds.say(feeds.turn(f"what is {k}?", "no").id, "demonstration", f"it is {k}")
    return feeds


def taken(feeds: Feeds, **rules) -> tuple[list[str], int]:
    found = collect(feeds.turns, feeds.feedback, Rules(**rules))
    asked = [line["messages"][0]["content"].split()[-1].rstrip("?") for line in found.lines["sft"]]
    assert [used.turn for used in found.used["sft"]] == [f"chatcmpl-{int(one) + 1}" for one in asked]
    return asked, found.left


def of(*numbers: int, heard: int = 100) -> dict[str, int]:
    return {f"chatcmpl-{number + 1}": heard for number in numbers}


@pytest.mark.parametrize(
    ("most", "tried", "holds", "asked", "left"),
    [
        (None, (), (), "012345", 0),
        (6, (), (), "012345", 0),
        (2, (), (), "01", 4),
        (2, (0, 1), (0, 1), "23", 2),
        (4, (0, 1, 2), (), "2345", 0),
        (4, (0, 1, 2, 3, 4), (4,), "1235", 0),
        (2, (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), "45", 0),
    ],
)
def test_those_come_first_that_have_waited_longest(
    most: int | None, tried: Sequence[int], holds: Sequence[int], asked: str, left: int
) -> None:
    assert taken(corrected(6), most_corrections=most, tried=of(*tried), holds=of(*holds)) == ([*asked], left)


def test_who_corrects_an_answer_once_more_is_heard_once_more() -> None:
    feeds = corrected(4)
    feeds.say("chatcmpl-1", "demonstration", "it is nought")
    assert taken(feeds, most_corrections=1, tried=of(0, 1, 2, 3, heard=4), holds=of(0, 1, 2, 3, heard=4))[0] == ["0"]


def learned(world: World) -> list[list[str]]:
    return [[line for line in one["lines"]["sft"].splitlines() if line] for one in world.trained]


def test_the_rest_of_many_corrections_is_learned_by_the_next_cycles(tmp_path: Path) -> None:
    world = World(broken=["it is worse"])
    for k in range(250):
        turn = world.feeds.turn(f"asks {k};", "no", person=Person("key", f"user {k}"))
        world.feeds.say(turn.id, "demonstration", f"yes {k}")
    course = world.course(tmp_path, training=BY_RULE)
    steps(course, 2)
    assert course.folder.load().left == 154
    told = course.folder.why()
    assert "It learns 96 corrections; 154 more wait for the next one." in told["sentence"]
    for _ in range(4):  # nobody says anything any more
        steps(course)
    assert verdicts(tmp_path) == ["rejected"] * 3
    lines = learned(world)
    assert [len(one) for one in lines] == [96, 96, 96]
    # What has no candidate that was promoted is tried again where there is room, the newest first.
    assert ("asks 191;" in str(lines[2]), "asks 0;" in str(lines[2])) == (True, False)
    assert len({line for one in lines for line in one}) == 250
    assert (course.folder.load().left, course.folder.load().stage) == (0, "idle")


def test_a_few_that_are_left_over_count_towards_the_next_cycle(tmp_path: Path) -> None:
    world = World(broken=["it is worse"])
    world.corrected(98)
    course = world.course(tmp_path, training=BY_RULE)
    steps(course)
    steps(course)
    assert len(world.trained) == 1
    assert course.folder.why()["sentence"] == (
        "0 statements since the last cycle, and 2 corrections for which it had no time; 4 begin one."
    )
    world.corrected(2, "bob")
    steps(course)
    assert len(world.trained) == 2
    assert all(f"ann asks {k}" in world.trained[1]["lines"]["sft"] for k in (96, 97))


def test_a_cycle_that_was_void_has_tried_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.corrected(100)
    during(world, "train", lambda: withdraw(world, "chatcmpl-1"), monkeypatch)
    course = world.course(tmp_path, training=BY_RULE)
    steps(course)
    assert verdicts(tmp_path) == ["void", "passed"]
    first, second = learned(world)
    assert '"ann asks 0"' in first[0]
    assert '"ann asks 1"' in second[0], "they have waited longest still"
    assert (len(first), len(second), course.folder.load().left) == (96, 96, 3)


def test_a_candidate_that_begins_where_the_loop_began_learns_everything(tmp_path: Path) -> None:
    world = World(broken=["it is worse"])
    world.corrected(120)
    course = world.course(tmp_path, training=BY_RULE)
    LoopFolder(tmp_path).retrain(True)
    steps(course)
    assert [len(one) for one in learned(world)] == [120]
    assert course.folder.load().left == 0


def asked_in(world: World) -> list[set[str]]:
    return [{line.split('"content":"')[1].split('"')[0] for line in one} for one in learned(world)]


@pytest.mark.parametrize(
    "training",
    [{"most_per_person": 5}, {"most_per_person": 5, "epochs": 2}, {"most_examples": 5, "epochs": 2}],
    ids=["a-person-s-share", "a-share-by-epochs", "the-most-of-all"],
)
def test_what_is_beyond_a_share_waits_and_is_not_lost_behind_newer_words(tmp_path: Path, training: dict) -> None:
    world = World(broken=["it is worse"])
    world.corrected(13)
    course = world.course(tmp_path, training=BY_RULE | training)
    steps(course, 2)
    assert course.folder.why()["sentence"].endswith("It learns 5 corrections; 8 more wait for the next one.")
    for _ in range(3):
        steps(course)
    world.corrected(1, "bob")
    steps(course)
    first, second, third = asked_in(world)
    assert first == {f"ann asks {k}" for k in range(5)}
    assert second == {f"ann asks {k}" for k in range(5, 10)}
    # Three of hers and one of his have never been tried; of her share two places are left for the newest before.
    assert {f"ann asks {k}" for k in (10, 11, 12)} | {"bob asks 0"} <= third
    assert course.folder.load().left == 0


def test_what_a_person_says_beside_others_does_not_keep_these_from_their_turn(tmp_path: Path) -> None:
    world = World(broken=["it is worse"])
    world.corrected(8)
    world.corrected(2, "bob")
    steps(world.course(tmp_path, training=BY_RULE | {"most_per_person": 3}))
    assert asked_in(world) == [{"ann asks 0", "ann asks 1", "ann asks 2", "bob asks 0", "bob asks 1"}]


FOUR = BY_RULE | {"epochs": 2, "most_examples": 4}


def promote(world: World, course: Course, who: str) -> None:
    """A cycle of four corrections of somebody, who likes what comes of it."""
    world.corrected(4, who)
    steps(course)
    world.voted(40, candidate=True, champion=False)
    steps(course)


def test_what_was_rolled_back_by_hand_is_not_in_the_champion(tmp_path: Path) -> None:
    world = World()
    course = world.course(tmp_path, training=FOUR)
    promote(world, course, "ann")
    before = world.deployed.target
    promote(world, course, "bob")
    world.deploy(before)
    steps(course)
    promote(world, course, "carl")
    held, first = held_by_champion(course.folder, course.folder.load())
    assert (held, first) == ({1, 3}, 0)
    world.corrected(1, "dora")
    steps(course)
    # Of what was tried before, what the champion does not hold comes before what it does, though that is newer.
    assert asked_in(world)[-1] == {"dora asks 0", "bob asks 1", "bob asks 2", "bob asks 3"}


def test_behind_a_candidate_that_began_anew_the_rest_is_learned_once_more(tmp_path: Path) -> None:
    """What was tried by cycles before it is in nothing that answers now."""
    world = World()
    course = world.course(tmp_path, training=FOUR)
    promote(world, course, "ann")
    promote(world, course, "bob")
    LoopFolder(tmp_path).retrain(True)
    steps(course)
    assert (asked_in(world)[-1], course.folder.load().left) == ({f"ann asks {k}" for k in range(4)}, 4)
    world.voted(40, candidate=True, champion=False)
    steps(course)
    assert held_by_champion(course.folder, course.folder.load()) == ({3}, 3)
    steps(course)
    assert asked_in(world)[-1] == {f"bob asks {k}" for k in range(4)}
    assert course.folder.load().left == 0
