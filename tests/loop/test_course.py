"""The course of a loop, and what a death at any moment of it leaves: the same decision, and nothing half promoted."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path

import pytest

from loreloop.learn.loop import by_hand
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import Conflict
from tests.loop.world import Died, World, mortal


def steps(course, n: int = 100) -> None:
    """Until nothing is to be done but to wait, or a cycle has ended: what was said in its canary may begin another."""

    async def go() -> None:
        for _ in range(n):
            if not await course.step() or course.folder.load().stage == "idle":
                return

    asyncio.run(go())


def verdicts(folder: Path) -> list[str]:
    return [one.verdict for one in LoopFolder(folder).decisions()]


def to_canary(world: World, folder: Path, **more):
    world.corrected(5)
    course = world.course(folder, **more)
    steps(course)
    assert world.deployed.canary is not None
    return course


def test_a_loop_waits_for_its_count(tmp_path: Path) -> None:
    world = World()
    world.corrected(3)
    course = world.course(tmp_path)
    steps(course)
    assert course.folder.load().stage == "idle"
    assert course.folder.why()["sentence"] == "3 statements since the last cycle; 4 begin one."
    world.corrected(1, "bob")
    steps(course)
    assert course.folder.load().stage == "canary"


def test_a_better_candidate_is_promoted_and_a_worse_one_rolled_back(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=True, champion=False)
    steps(course)
    champion = course.folder.load().champion
    assert (world.deployed.target, world.deployed.canary) == (champion.target, None)
    assert champion.cycle == 1
    world.corrected(5, "bob")
    steps(course)
    world.voted(40, candidate=False, champion=True)
    steps(course)
    assert verdicts(tmp_path) == ["passed", "promoted", "passed", "rolled_back"]
    assert (world.deployed.target, world.deployed.canary) == (champion.target, None)
    # The next candidate begins where the champion's training ended, not at the base.
    assert world.trained[1]["start"] == champion.state
    assert not list(tmp_path.glob("cycles/*/*.jsonl")), "what persons said is not kept beyond its cycle"


def test_a_candidate_that_breaks_a_limit_meets_nobody(tmp_path: Path) -> None:
    world = World(broken=["it is three times as long"])
    world.corrected(5)
    steps(world.course(tmp_path))
    assert verdicts(tmp_path) == ["rejected"]
    assert world.deployed.version == 1
    assert "three times" in LoopFolder(tmp_path).decisions()[0].sentence


def test_the_canary_grows_when_it_has_shown_no_harm(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    assert world.deployed.canary_percent == 10
    world.voted(5, candidate=True, champion=True)
    steps(course)
    assert world.deployed.canary_percent == 50
    assert course.folder.load().stage == "canary"


def n_moments(tmp_path: Path, monkeypatch) -> int:
    world = World()
    with monkeypatch.context() as patched:
        mortal(world, patched)
        whole_course(world, tmp_path / "whole")
    return world.fate.n


def whole_course(world: World, folder: Path, *, resumed: bool = False) -> None:
    if not resumed:
        world.corrected(5)
    course = world.course(folder)
    if course.folder.decided("1:canary") and course.folder.load().stage == "idle":
        return
    steps(course)
    if course.folder.load().stage == "canary" and len(world.feeds.turns) < 50:
        world.voted(40, candidate=True, champion=False)
        steps(course)


def test_a_death_at_any_moment_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    total = n_moments(tmp_path, monkeypatch)
    assert total > 20
    for moment in range(1, total + 1):
        world, folder = World(), tmp_path / str(moment)
        with monkeypatch.context() as patched:
            mortal(world, patched)
            world.fate.at = moment
            with pytest.raises(Died):
                whole_course(world, folder)
        half_way(world, folder, moment)
        decided = LoopFolder(folder).decided("1:canary")
        if decided is not None:
            # What has come since would decide otherwise, and must not: a decision is final.
            world.voted(60, candidate=False, champion=True)
        whole_course(world, folder, resumed=True)
        loop = LoopFolder(folder)
        keys = [one.key for one in loop.decisions()]
        assert keys == ["1:gate", "1:canary"], moment
        assert world.deployed.target == loop.load().champion.target == "tinker://assistant-0001/sampler_weights/s", (
            moment
        )
        assert world.deployed.canary is None
        assert not list(folder.glob("cycles/*/*.jsonl")), "what persons said is not kept beyond its cycle"
        assert loop.load().heard == 5, "no statement is lost, and none is heard twice"
        assert {turns for _, turns in world.marked} == {tuple(f"chatcmpl-{n}" for n in range(1, 6))}
        assert len({json.dumps(one) for one in world.trained}) == 1, "what is trained again is the same"


@pytest.mark.parametrize("ends_in", ["collecting", "training"])
def test_a_death_at_any_moment_of_a_cycle_that_trains_nothing_ends_it_once(
    tmp_path: Path, monkeypatch, ends_in: str
) -> None:
    def goes_on(world: World, folder: Path) -> None:
        # What would decide otherwise behind a decision, and must not.
        least = 100 if ends_in == "collecting" and not LoopFolder(folder).decisions() else 2
        course = world.course(folder, training={"least_examples": least})
        if not course.folder.decisions() or course.folder.load().stage != "idle":
            steps(course)

    def world_of() -> World:
        world = World(refuses="it is too long")
        world.corrected(5)
        return world

    alive = world_of()
    with monkeypatch.context() as patched:
        mortal(alive, patched)
        goes_on(alive, tmp_path / "alive")
    for moment in range(1, alive.fate.n + 1):
        world, folder = world_of(), tmp_path / str(moment)
        with monkeypatch.context() as patched:
            mortal(world, patched)
            world.fate.at = moment
            with pytest.raises(Died):
                goes_on(world, folder)
        loop = LoopFolder(folder)
        if loop.decisions():
            world.refuses = ""
            for file in folder.glob("cycles/*/*.jsonl"):
                file.unlink()
        goes_on(world, folder)
        assert [one.key for one in loop.decisions()] == [f"1:{ends_in}"], moment
        after = loop.load()
        assert (after.stage, after.heard, world.trained) == ("idle", 5, []), moment


def half_way(world: World, folder: Path, moment: int) -> None:
    """What holds at the very moment of a death."""
    decision = LoopFolder(folder).decided("1:canary")
    if world.deployed.target != "tiny":
        assert decision is not None, moment
        assert decision.verdict == "promoted"


def test_a_nightly_loop_runs_once_a_night(tmp_path: Path) -> None:
    world, clock = World(), [datetime(2026, 5, 1, 12).timestamp()]
    more = {"triggers": {"feedback": 0, "nightly": "03:30"}, "training": {"least_examples": 100}}
    course = world.course(tmp_path, now=lambda: clock[0], **more)
    world.corrected(5)
    steps(course)
    assert not verdicts(tmp_path)
    clock[0] = datetime(2026, 5, 2, 3, 31).timestamp()
    steps(course)
    world.corrected(5)
    steps(course)
    assert verdicts(tmp_path) == ["void"]
    clock[0] = datetime(2026, 5, 3, 4).timestamp()
    steps(course)
    assert verdicts(tmp_path) == ["void", "void"]


def test_a_cycle_begins_when_it_is_asked_for(tmp_path: Path) -> None:
    world = World()
    world.corrected(3)
    course = world.course(tmp_path, triggers={"feedback": 0})
    steps(course)
    assert course.folder.load().stage == "idle"
    course.asked = True
    steps(course)
    assert course.folder.load().stage == "canary"


def test_a_paused_loop_begins_and_promotes_nothing_but_still_rolls_back(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    course.folder.pause(True)
    world.voted(40, candidate=True, champion=False)
    steps(course)
    assert course.folder.load().stage == "canary"
    world.voted(200, candidate=False, champion=True)
    steps(course)
    assert verdicts(tmp_path)[-1] == "rolled_back"
    world.corrected(9, "bob")
    steps(course)
    assert course.folder.load().stage == "idle"


def test_a_promotion_by_hand_is_written_down(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    target = by_hand.promote(course.folder, world)
    steps(course)
    assert course.folder.load().champion.target == world.deployed.target == target
    assert course.folder.decisions()[-1].sentence == "Somebody promoted the candidate by hand."
    assert by_hand.roll_back(course.folder, world) == "tiny"
    steps(course)
    assert course.folder.load().champion.target == world.deployed.target == "tiny"
    assert course.folder.decisions()[-1].verdict == "adopted"


def test_a_rollback_by_hand_ends_the_canary(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    by_hand.roll_back(course.folder, world)
    steps(course)
    assert verdicts(tmp_path) == ["passed", "rolled_back"]
    assert course.folder.load().stage == "idle"
    with pytest.raises(Conflict, match="no candidate"):
        by_hand.promote(course.folder, world)
    with pytest.raises(Conflict, match="nothing to go back to"):
        by_hand.roll_back(course.folder, world)


def test_a_canary_that_somebody_puts_in_the_candidates_place_is_named(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    world.deploy("tiny", "tinker://mine/sampler_weights/a", 20)
    steps(course)
    last = course.folder.decisions()[-1]
    assert last.verdict == "rolled_back"
    assert last.sentence == (
        "Somebody put tinker://mine/sampler_weights/a in the candidate's place as a canary by hand."
    )
    assert course.folder.load().stage == "idle"


def test_nothing_of_a_deleted_person_is_trained_on(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    world.corrected(3, "bob")
    world.feeds.deleted.append(Person("key", "bob"))
    steps(world.course(tmp_path))
    (trained,) = world.trained
    assert "ann asks" in trained["lines"]["sft"]
    assert "bob" not in str(trained)


def test_a_candidate_is_trained_again_without_a_person_whom_the_champion_has_learned_from(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    world.corrected(3, "bob")
    course = world.course(tmp_path)
    steps(course)
    world.voted(40, candidate=True, champion=False)
    steps(course)
    champion = course.folder.load().champion
    assert champion.cycle == 1
    assert "bob" in str(world.trained)
    world.feeds.deleted.append(Person("key", "bob"))
    by_hand.retrain(course.folder)
    world.trained.clear()
    world.began.clear()
    steps(course)
    (again,) = world.trained
    assert (again["start"], {*world.began}) == (None, {None}), "it begins where the loop began"
    assert "ann asks" in again["lines"]["sft"]
    assert "bob" not in str(again)
    assert world.deployed.canary == course.folder.load().candidate.target
    # The next cycle begins with the champion again, whose persons its candidate knows.
    by_hand.promote(course.folder, world)
    steps(course)
    world.corrected(5, "cid")
    steps(course)
    assert world.trained[1]["start"] == course.folder.load().champion.state == "tinker://assistant-0002/weights/s"
    assert world.began[-1] == "tinker://assistant-0002/sampler_weights/s"


def test_a_retrain_that_is_asked_for_while_another_cycle_begins_is_the_next_one(tmp_path: Path, monkeypatch) -> None:
    world = World(broken=["it is worse"])
    course = world.course(tmp_path)
    world.corrected(5)
    save = LoopFolder.save

    def asked(self: LoopFolder, state) -> None:
        if state.stage == "collecting" and state.cycle == 1:
            by_hand.retrain(self)
        save(self, state)

    monkeypatch.setattr(LoopFolder, "save", asked)
    steps(course)
    steps(course)
    assert verdicts(tmp_path) == ["rejected", "rejected"]
    assert course.folder.load().from_start
    assert not course.folder.to_retrain
    steps(course)
    assert len(world.trained) == 2, "once"


def test_a_person_who_is_deleted_in_mid_cycle_is_left_out(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    world.corrected(3, "bob")
    course = world.course(tmp_path)
    asyncio.run(course.step())
    asyncio.run(course.step())
    assert course.folder.load().stage == "training"
    world.feeds.deleted.append(Person("key", "bob"))
    steps(course)
    assert verdicts(tmp_path) == ["void", "passed"]
    assert all("bob" not in str(one) for one in world.trained)
    assert "bob" not in "".join(file.read_text() for file in tmp_path.glob("cycles/*/*.jsonl"))


@pytest.mark.parametrize(
    "more", [{"consent": False}, {"side": True}, {"fate": "mixed"}, {"fate": "no_consent"}, {"fate": "unfinished"}]
)
def test_what_must_not_be_learned_is_not(tmp_path: Path, more: dict) -> None:
    world = World()
    world.corrected(3)
    for n in range(3):
        turn = world.feeds.turn(f"secret {n}", "no", **more)
        world.feeds.say(turn.id, "demonstration", "never this")
        world.feeds.say(turn.id, "thumb", value=False)
    steps(world.course(tmp_path))
    assert "never this" not in str(world.trained)
    assert "secret" not in str(world.trained)
    assert not {"chatcmpl-4"} & {*world.marked[0][1]}


def test_the_golden_set_is_never_trained_on(tmp_path: Path) -> None:
    world = World()
    world.corrected(4)
    golden = frozenset({prompt_key([{"role": "user", "content": "ann asks 2"}])})
    steps(world.course(tmp_path, golden=golden))
    assert "ann asks 1" in str(world.trained)
    assert "ann asks 2" not in str(world.trained)


def test_retracted_and_overridden_words_teach_nothing(tmp_path: Path) -> None:
    world = World()
    world.corrected(4)
    last = world.feeds.feedback[-1]
    world.feeds.say(last.target_id, "demonstration", "yes 3", id=last.id, retracted=True)
    first = world.feeds.feedback[0]
    world.feeds.say(first.target_id, "demonstration", "a second thought", overrides=first.id)
    steps(world.course(tmp_path))
    lines = world.trained[0]["lines"]["sft"]
    assert "yes 3" not in lines
    assert "yes 0" not in lines
    assert "a second thought" in lines


def test_two_loops_do_not_share_a_folder(tmp_path: Path) -> None:
    with LoopFolder(tmp_path).locked(), pytest.raises(Conflict, match="Another process"):
        LoopFolder(tmp_path).locked().__enter__()


def test_a_deployment_whose_state_is_unknown_is_refused(tmp_path: Path) -> None:
    world = World()
    world.deploy("tinker://abc/sampler_weights/final")
    with pytest.raises(Conflict, match="`start` in loop"):
        world.course(tmp_path)
    course = world.course(tmp_path, start="tinker://abc/weights/final")
    assert course.folder.load().champion.state == "tinker://abc/weights/final"


def test_mixed_episodes_and_one_persons_many_votes_do_not_decide(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    version = world.deployed.version
    for n in range(60):
        for arm in ("main", "canary"):
            turn = world.feeds.turn("hello", "hi", arm=arm, version=version, episode_id=f"mixed-{n}")
            world.feeds.say(turn.id, "thumb", value=arm == "canary")
    steps(course)
    assert course.folder.load().stage == "canary"
    numbers = course.folder.why()["numbers"]
    assert (numbers["mixed_episodes"], numbers["candidate_episodes"]) == (60, 0)


def test_episodes_of_two_keys_that_have_one_id_are_two(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    version = world.deployed.version
    for key, arm in (("one", "main"), ("other", "canary")):
        person = Person(key, "ann")
        turn = world.feeds.turn("hello", "hi", arm=arm, version=version, episode_id="chat-1", person=person)
        world.feeds.say(turn.id, "thumb", value=True)
    steps(course, 1)
    numbers = course.folder.why()["numbers"]
    assert (numbers["mixed_episodes"], numbers["candidate_episodes"], numbers["champion_episodes"]) == (0, 1, 1)


def test_chats_that_the_canary_found_open_do_not_count(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path)
    for version in (world.deployed.version - 1, world.deployed.version):
        turn = world.feeds.turn("hello", "hi", arm="main", version=version, episode_id="open")
        world.feeds.say(turn.id, "thumb", value=True)
    steps(course, 1)
    numbers = course.folder.why()["numbers"]
    assert (numbers["mixed_episodes"], numbers["champion_episodes"]) == (0, 0)


def test_chats_from_before_the_cycle_do_not_count_when_they_go_on(tmp_path: Path) -> None:
    world = World()
    begun = world.feeds.turn("hello", "hi", arm="main", version=1, episode_id="long ago")
    course = to_canary(world, tmp_path)
    version = world.deployed.version
    assert begun.number <= course.folder.load().turns_seen
    for episode in ("long ago", "new"):
        turn = world.feeds.turn("and now?", "well", arm="main", version=version, episode_id=episode)
        world.feeds.say(turn.id, "thumb", value=True)
    steps(course, 1)
    assert course.folder.why()["numbers"]["champion_episodes"] == 1
    # The next process reads them anew.
    again = world.course(tmp_path)
    steps(again, 1)
    assert again.folder.why()["numbers"]["champion_episodes"] == 1


def test_weights_made_elsewhere_stand_before_the_gate_like_any(tmp_path: Path) -> None:
    world = World()
    course = world.course(tmp_path, triggers={"feedback": 0})
    by_hand.propose(course.folder, "tinker://mine/sampler_weights/a", "tinker://mine/weights/a")
    with pytest.raises(Conflict, match="proposed already"):
        by_hand.propose(course.folder, "tinker://mine/sampler_weights/a", "tinker://mine/weights/a")
    steps(course)
    assert world.deployed.canary == "tinker://mine/sampler_weights/a"
    world.voted(40, candidate=False, champion=True)
    steps(course)
    assert verdicts(tmp_path) == ["passed", "rolled_back"]
    assert world.deployed.target == "tiny"
    with pytest.raises(Conflict, match="has not made"):
        by_hand.propose(course.folder, "tinker://mine/sampler_weights/a", "tinker://other/weights/a")


def test_a_training_that_is_refused_ends_its_cycle_and_not_the_loop(tmp_path: Path) -> None:
    world = World(refuses="the weights are gone")
    world.corrected(5)
    course = world.course(tmp_path)
    steps(course)
    assert verdicts(tmp_path) == ["void"]
    assert "the weights are gone" in course.folder.decisions()[0].sentence
    world.refuses = ""
    world.corrected(5, "bob")
    steps(course)
    assert verdicts(tmp_path) == ["void", "passed"]


def test_a_deployment_whose_clients_name_no_user_has_a_canary_too(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path, canary={"percent": 10, "least_episodes": 20})
    version = world.deployed.version
    for n in range(200):
        arm = "canary" if n % 10 == 0 else "main"
        turn = world.feeds.turn("hello", "hi", arm=arm, version=version, person=Person("key", ""))
        world.feeds.say(turn.id, "thumb", value=n % 40 < 25)
    steps(course)
    numbers = course.folder.why()["numbers"]
    assert (numbers["candidate_episodes"], numbers["champion_persons"]) == (20, 180)
    assert world.deployed.canary_percent == 50


def test_one_persons_many_episodes_promote_nothing(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path, canary={"least_episodes": 5, "most_episodes": 100})
    for arm, user in (("canary", "ann"), ("main", "bob")):
        for _ in range(50):
            who = Person("key", user)
            turn = world.feeds.turn("hello", "hi", arm=arm, version=world.deployed.version, person=who)
            world.feeds.say(turn.id, "thumb", value=arm == "canary")
    steps(course)
    assert verdicts(tmp_path) == ["passed", "rolled_back"]
    assert "no gain was shown at the last look" in course.folder.decisions()[-1].sentence


@pytest.mark.parametrize(("ups", "verdict"), [(30, "promoted"), (16, "rolled_back")])
def test_when_its_days_are_over_a_last_look_decides(tmp_path: Path, ups: int, verdict: str) -> None:
    """Forty episodes of either arm, of which 15 of the champion's were liked: too few to end a trial early."""
    world, clock = World(), [1e9]
    course = to_canary(world, tmp_path, now=lambda: clock[0], canary={"least_episodes": 5, "most_days": 2})
    for arm, liked in (("canary", ups), ("main", 15)):
        for n in range(40):
            who = Person("key", f"{arm} {n}")
            turn = world.feeds.turn("hello", "hi", arm=arm, version=world.deployed.version, person=who)
            world.feeds.say(turn.id, "thumb", value=n < liked)
    steps(course)
    assert course.folder.load().stage == "canary"
    clock[0] += 3 * 86_400
    steps(course)
    assert verdicts(tmp_path)[-1] == verdict
    assert course.folder.decisions()[-1].sentence.startswith("In 2 days: After 40 episodes")


def test_where_no_harm_is_enough_a_trial_that_cannot_tell_promotes_nothing(tmp_path: Path) -> None:
    world = World()
    rules = {"promote_on": "no_harm", "least_episodes": 5, "most_episodes": 80}
    course = to_canary(world, tmp_path, canary=rules)
    for arm in ("canary", "main"):
        for n in range(40):
            who = Person("key", f"{arm} {n}")
            turn = world.feeds.turn("hello", "hi", arm=arm, version=world.deployed.version, person=who)
            world.feeds.say(turn.id, "thumb", value=n % 4 > 0)
    steps(course)
    assert verdicts(tmp_path) == ["passed", "rolled_back"]
    assert "a loss of 0.05 was not ruled out" in course.folder.decisions()[-1].sentence
