"""What is taken back while a cycle runs: it leaves the data, and no weights that know it answer anybody new."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from loreloop.learn.loop import running
from loreloop.learn.loop.cycle_files import data_of
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import Unavailable
from loreloop.protocol.feedback_rules import speakers
from tests.loop.feeds import Feeds
from tests.loop.test_course import steps, to_canary, verdicts
from tests.loop.test_persons import MORE
from tests.loop.world import World


def withdraw(world: World, turn_id: str) -> None:
    """The turn stands in the feed anew, without consent, as the server tells it."""
    turn = next(one for one in world.feeds.turns if one.id == turn_id)
    number = max(one.number for one in world.feeds.turns) + 1
    gone = replace(turn, number=number, consent=False, messages=(), answer={}, fate="no_consent")
    world.feeds.turns.append(gone)


def during(world: World, stage: str, happens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, at the end of a piece of work."""
    work, done = getattr(world, stage), []

    async def once(*what: object) -> object:
        found = await work(*what)
        if not done:
            done.append(happens())
        return found

    monkeypatch.setattr(world, stage, once)


@pytest.mark.parametrize("stage", ["learn_reward", "train", "look"])
def test_consent_that_is_taken_back_in_a_cycle_is_heeded(tmp_path: Path, monkeypatch, stage: str) -> None:
    world = World()
    world.corrected(5)
    during(world, stage, lambda: withdraw(world, "chatcmpl-3"), monkeypatch)
    course = world.course(tmp_path)
    steps(course)
    state = course.folder.load()
    assert state.stage == "canary"
    used = json.loads((course.folder.cycle(state.cycle) / "data.json").read_text())["used"]["sft"]
    world.voted(40, candidate=True, champion=False)
    steps(course, 1)
    assert "chatcmpl-3" not in {one["turn"] for one in used}
    assert verdicts(tmp_path)[-1] == "promoted"
    assert "ann asks 2" not in world.trained[-1]["lines"]["sft"]
    if stage == "look":
        assert verdicts(tmp_path)[:2] == ["passed", "void"], "nobody has met the candidate of the first cycle"


def test_a_person_who_is_deleted_in_the_canary_is_not_in_what_is_promoted(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "bob")
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=True, champion=False)
    world.feeds.deleted.append(Person("key", "bob"))
    steps(course, 1)
    assert verdicts(tmp_path) == ["passed", "rolled_back"]
    assert (world.deployed.target, world.deployed.canary) == ("tiny", None)
    assert course.folder.load().stage == "collecting", "the next cycle begins at once"
    steps(course)
    assert "bob" not in world.trained[-1]["lines"]["sft"]


@pytest.mark.parametrize("dies_again", [False, True])
def test_a_promotion_that_was_decided_is_not_carried_out_once_words_of_it_are_taken_back(
    tmp_path: Path, monkeypatch, dies_again: bool
) -> None:
    world = World()
    world.corrected(3, "bob")
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=True, champion=False)
    deploy = world.deploy

    def away(*_: object, **__: object) -> None:
        raise Unavailable("the server is away")

    monkeypatch.setattr(world, "deploy", away)
    with pytest.raises(Unavailable):
        steps(course, 1)
    assert verdicts(tmp_path) == ["passed", "promoted"]
    world.feeds.deleted.append(Person("key", "bob"))
    if dies_again:
        # It moves the deployment, and dies before its own state is on the disk.
        monkeypatch.setattr(world, "deploy", deploy)
        with monkeypatch.context() as patched:
            patched.setattr(course.folder, "save", away)
            with pytest.raises(Unavailable):
                steps(course, 1)
    monkeypatch.setattr(world, "deploy", deploy)
    steps(course, 1)
    assert verdicts(tmp_path) == ["passed", "promoted", "rolled_back"]
    assert (world.deployed.target, world.deployed.canary) == ("tiny", None)
    assert (course.folder.load().stage, running.n_ended(course)) == ("collecting", 1)


@pytest.mark.parametrize("stage", ["train", "look"])
@pytest.mark.parametrize("said", ["correction", "worse answer"])
def test_who_spoke_of_others_turns_and_is_deleted_meanwhile_is_in_nothing_that_goes_on(
    tmp_path: Path, monkeypatch, stage: str, said: str
) -> None:
    world = World()
    world.corrected(4)
    turn = world.feeds.turn("ann asks", "no")
    if said == "correction":
        world.feeds.say(turn.id, "demonstration", "as bob has it", who="bob", giver="key/browser")
    else:
        worse = world.feeds.turn("ann asks", "as bob has it", person=Person("key", "bob"))
        world.feeds.say(turn.id, "preference", worse.id)

    def deleted() -> None:
        world.feeds.deleted.append(Person("key", "bob"))

    during(world, stage, deleted, monkeypatch)
    course = world.course(tmp_path, training={"least_examples": 1, "methods": ["sft", "dpo"]})
    steps(course)
    first, second = (str(one["lines"]) for one in world.trained)
    assert ("as bob has it" in first, "as bob has it" in second) == (True, False)
    assert ("void" in verdicts(tmp_path), course.folder.load().stage) == (True, "canary")
    assert "bob" not in (course.folder.cycle(2) / "data.json").read_text()


def test_consent_to_the_worse_answer_of_a_pair_is_asked_for_too(tmp_path: Path, monkeypatch) -> None:
    world = World()
    better, worse = world.feeds.turn("which?", "this"), world.feeds.turn("which?", "that one")
    world.feeds.say(better.id, "preference", worse.id)
    world.corrected(4)
    during(world, "train", lambda: withdraw(world, worse.id), monkeypatch)
    course = world.course(tmp_path, training={"least_examples": 1, "methods": ["dpo"]})
    steps(course)
    assert ["that one" in str(one["lines"]) for one in world.trained] == [True, False]


def test_of_who_spoke_of_others_turns_no_name_stays_behind_a_cycle(tmp_path: Path) -> None:
    world = World()
    world.corrected(4)
    world.feeds.say("chatcmpl-1", "demonstration", "better", who="bob", giver="other")
    course = to_canary(world, tmp_path)
    file = course.folder.cycle(1) / "data.json"
    assert {"key\nbob", "other\nbob"} <= data_of(file.parent).persons
    world.voted(40, candidate=True, champion=False)
    steps(course)
    world.corrected(1, "carol")
    steps(course)
    assert "bob" not in file.read_text()


@pytest.mark.parametrize(
    ("more", "persons"),
    [
        ({"who": "bob", "giver": "other/link"}, (Person("key", "bob"), Person("other", "bob"))),
        ({"who": "bob", "giver": "key"}, (Person("key", "bob"),)),
        ({"who": "bob", "giver": "operator:root"}, ()),
        ({"who": "judge", "source": "judge"}, ()),
        ({"giver": "key"}, ()),
    ],
)
def test_with_whom_a_statement_about_a_turn_goes(more: dict[str, str], persons: tuple[Person, ...]) -> None:
    feeds = Feeds()
    turn = feeds.turn("what?", "that")
    assert speakers(feeds.say(turn.id, "thumb", True, **more), turn) == persons


@pytest.mark.parametrize("at", ["train", "right"])
def test_nobody_is_answered_by_own_weights_that_know_what_was_taken_back(tmp_path: Path, monkeypatch, at: str) -> None:
    world = World()
    world.corrected(4, "ann")
    during(world, at, lambda: withdraw(world, "chatcmpl-1"), monkeypatch)
    course = world.course(tmp_path, **MORE)
    for _ in range(3):
        steps(course, 1)
    assert len(world.trained) == 2
    assert "ann asks 0" not in world.trained[1]["lines"]["sft"]
    (decision,) = LoopFolder(tmp_path).decisions()
    assert decision.numbers["corrections"] == 3
    assert world.owns == {"ann": decision.candidate}


def test_turns_that_went_while_own_weights_were_made_are_heeded(tmp_path: Path, monkeypatch) -> None:
    world = World()
    world.corrected(4, "ann")
    during(world, "train", lambda: world.feeds.turns.pop(0), monkeypatch)
    course = world.course(tmp_path, **MORE)
    for _ in range(3):
        steps(course, 1)
    assert "ann asks 0" not in world.trained[-1]["lines"]["sft"]
    assert len(world.trained) == 2


def test_lines_that_a_death_has_left_are_not_trained_on_after_a_withdrawal(tmp_path: Path, monkeypatch) -> None:
    world = World()
    world.corrected(4, "ann")
    course = world.course(tmp_path, **MORE)
    with monkeypatch.context() as patched:

        async def away(*_: object) -> None:
            raise Unavailable("the server is away")

        patched.setattr(course.persons, "train", away)
        with pytest.raises(Unavailable):
            steps(course, 1)
    withdraw(world, "chatcmpl-1")
    steps(course, 1)
    assert "ann asks 0" not in world.trained[0]["lines"]["sft"]


def test_of_a_deleted_person_no_weights_are_remembered(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    course = world.course(tmp_path, **MORE)
    steps(course, 1)
    assert "ann" in (tmp_path / "persons.json").read_text()
    world.feeds.deleted.append(Person("key", "ann"))
    world.corrected(1, "bob")
    steps(course, 1)
    assert "ann" not in (tmp_path / "persons.json").read_text()
    assert not list((tmp_path / "persons").glob("*"))


def test_of_a_deleted_person_nothing_is_left_of_an_attempt_that_came_to_no_end(tmp_path: Path, monkeypatch) -> None:
    world = World()
    world.corrected(3, "ann")
    course = world.course(tmp_path, **MORE)

    async def away(*_: object) -> None:
        raise Unavailable("the server is away")

    monkeypatch.setattr(course.persons, "train", away)
    with pytest.raises(Unavailable):
        steps(course, 1)
    assert any("ann asks 0" in file.read_text() for file in (tmp_path / "persons").rglob("*.jsonl"))
    world.feeds.deleted.append(Person("key", "ann"))
    steps(course, 1)
    assert not list((tmp_path / "persons").glob("*"))


def test_what_has_grown_old_while_it_was_learned_voids_no_cycle(tmp_path: Path) -> None:
    world = World()
    world.corrected(5)
    course = world.course(tmp_path)
    steps(course, 2)
    world.feeds.turns = [replace(one, fate="mixed") for one in world.feeds.turns]
    steps(course)
    assert course.folder.load().stage == "canary"


def test_a_loop_that_is_paused_collects_nothing_anew(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "bob")
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=True, champion=False)
    world.feeds.deleted.append(Person("key", "bob"))
    steps(course, 1)
    course.folder.pause(True)
    n_trained, names = len(world.trained), course.folder.cycle(1) / "data.json"
    assert "bob" in names.read_text()
    steps(course)
    assert (course.folder.load().stage, len(world.trained)) == ("collecting", n_trained)
    assert "bob" not in names.read_text(), "the names of a cycle that has ended wait for nothing"


def test_of_a_cycle_that_has_ended_the_ids_stay_and_no_names(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    file = course.folder.cycle(1) / "data.json"
    assert "ann" in file.read_text(), "a canary must know whose withdrawal ends it"
    world.voted(40, candidate=True, champion=False)
    steps(course)
    world.corrected(5, "bob")
    steps(course)
    assert course.folder.load().cycle == 2
    assert "ann" not in file.read_text()
    assert "chatcmpl-5" in file.read_text()


def test_a_loop_that_waits_lets_its_reward_hear(tmp_path: Path) -> None:
    world, clock, heard = World(), [1e9], []
    course = to_canary(world, tmp_path, now=lambda: clock[0], triggers={"feedback": 4, "poll_seconds": 0.001})

    async def hear(turns, statements) -> str:
        heard.append(len(statements))
        if len(heard) == 1:
            raise Unavailable("the server is away")
        return ""

    course.listening.hear = hear
    world.voted(1, candidate=True, champion=True)
    looks: list[float] = []

    def wish() -> bool:
        clock[0] += 61
        looks.append(clock[0])
        return len(looks) > 5

    asyncio.run(running.run(course, running.Running(wish=wish)))
    assert heard == [7, 7], "what it missed it hears at the next wait, and then nothing is new"


def test_what_is_said_in_a_canary_reaches_the_reward(tmp_path: Path) -> None:
    world, clock, heard = World(), [1e9], []
    course = to_canary(world, tmp_path, now=lambda: clock[0])

    async def hear(turns, statements) -> str:
        heard.append(len(statements))
        return ""

    course.listening.hear = hear
    clock[0] += 61
    world.voted(2, candidate=True, champion=True)
    assert course.folder.load().stage == "canary"
    asyncio.run(course.listening.meanwhile())
    asyncio.run(course.listening.meanwhile())
    clock[0] += 61
    asyncio.run(course.listening.meanwhile())
    assert heard == [9], "once for all that is new"


def test_a_canary_reads_on_from_where_it_was(tmp_path: Path, monkeypatch) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    world.voted(3, candidate=True, champion=True)
    steps(course)
    read: list[int] = []
    feed = world.feeds

    def feedback(after: int = 0):
        found = [one for one in feed.feedback if one.number > after]
        read.append(len(found))
        return found

    monkeypatch.setattr(world, "feedback", feedback)
    world.voted(1, candidate=True, champion=True)
    steps(course, 1)
    assert max(read) == 2
    assert course.folder.why()["numbers"]["candidate_episodes"] == 4
