"""Whoever moves the deployment by hand is heeded at every moment of a cycle, also amid a step of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from loreloop.learn.loop import by_hand
from loreloop.learn.loop.running import Running, run
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.errors import Conflict
from tests.loop.test_course import steps, to_canary, verdicts
from tests.loop.world import World


def nothing() -> None:
    return


@dataclass
class Shared(World):
    """A world with somebody in it who acts at one moment of a step: while the gate looks, or right before the loop's
    change comes to the server."""

    at_gate: Callable[[], object] = field(default=nothing)
    at_change: Callable[[], object] = field(default=nothing)

    async def look(self, *asked):
        found = await super().look(*asked)
        acts, self.at_gate = self.at_gate, nothing
        acts()
        return found

    def deploy(self, *change, **more) -> None:
        acts, self.at_change = self.at_change, nothing
        acts()
        super().deploy(*change, **more)


def promoted_once(folder: Path) -> tuple[Shared, object]:
    """A loop that has promoted one candidate, with words enough for another."""
    world = Shared()
    course = to_canary(world, folder)
    world.voted(40, candidate=True, champion=False)
    steps(course)
    assert verdicts(folder) == ["passed", "promoted"]
    world.corrected(5, "bob")
    return world, course


@pytest.mark.parametrize("moment", ["at_gate", "at_change"])
def test_a_rollback_amid_the_gate_is_not_undone(tmp_path: Path, moment: str) -> None:
    world, course = promoted_once(tmp_path)
    setattr(world, moment, lambda: by_hand.roll_back(course.folder, world))
    steps(course)
    assert (world.deployed.target, world.deployed.canary) == ("tiny", None)
    assert course.folder.load().champion.target == "tiny"
    first, last = course.folder.decisions()[-2:]
    assert (first.verdict, first.sentence) == ("adopted", "Somebody rolled the champion back by hand.")
    assert (last.cycle, last.verdict) == (2, "void")
    assert last.sentence == "Somebody rolled the champion back by hand; so the cycle ends, and its candidate with it."
    assert not list(tmp_path.glob("cycles/*/*.jsonl")), "what persons said is not kept beyond its cycle"


@pytest.mark.parametrize("moment", ["at_gate", "at_change"])
def test_what_somebody_deploys_amid_the_gate_stays(tmp_path: Path, moment: str) -> None:
    world = Shared()
    world.corrected(5)
    course = world.course(tmp_path, start="tinker://mine/weights/a")
    setattr(world, moment, lambda: World.deploy(world, "tinker://mine/sampler_weights/a"))
    steps(course)
    assert (world.deployed.target, world.deployed.canary) == ("tinker://mine/sampler_weights/a", None)
    assert verdicts(tmp_path) == ["passed", "adopted", "void"]
    assert course.folder.load().champion.state == "tinker://mine/weights/a"


def test_a_candidate_that_is_deployed_by_hand_amid_its_gate_is_promoted(tmp_path: Path) -> None:
    world = Shared()
    world.corrected(5)
    course = world.course(tmp_path)
    candidate = "tinker://assistant-0001/sampler_weights/s"
    world.at_gate = lambda: World.deploy(world, candidate)
    steps(course)
    assert (world.deployed.target, world.deployed.canary) == (candidate, None)
    assert course.folder.load().champion.target == candidate
    assert verdicts(tmp_path) == ["passed", "promoted"]


def test_a_rollback_amid_a_promotion_is_not_undone(tmp_path: Path) -> None:
    world = Shared()
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=True, champion=False)
    world.at_change = lambda: World.deploy(world, "tiny")
    steps(course)
    assert (world.deployed.target, world.deployed.canary) == ("tiny", None)
    assert course.folder.load().champion.target == "tiny"
    assert verdicts(tmp_path) == ["passed", "promoted", "rolled_back"]
    assert course.folder.decisions()[-1].sentence == "Somebody rolled the candidate back by hand."


def test_a_promotion_amid_a_rollback_is_not_undone(tmp_path: Path) -> None:
    world = Shared()
    course = to_canary(world, tmp_path)
    candidate = course.folder.load().candidate
    world.voted(40, candidate=False, champion=True)
    world.at_change = lambda: World.deploy(world, candidate.target)
    steps(course)
    assert (world.deployed.target, world.deployed.canary) == (candidate.target, None)
    assert LoopFolder(tmp_path).load().champion == candidate
    assert verdicts(tmp_path) == ["passed", "rolled_back", "promoted"]


def test_a_change_that_concerns_no_weights_ends_no_cycle(tmp_path: Path) -> None:
    world = Shared()
    world.corrected(5)
    course = world.course(tmp_path)

    def recorded_otherwise() -> None:
        now = world.deployed
        world.deployed = type(now)(now.target, now.canary, now.canary_percent, now.version + 1)

    world.at_change = recorded_otherwise
    steps(course)
    assert course.folder.load().stage == "canary"
    assert verdicts(tmp_path) == ["passed"]


def test_a_refusal_of_another_kind_is_no_change_by_somebody(tmp_path: Path) -> None:
    world = Shared()
    world.corrected(5)
    course = world.course(tmp_path)

    def refused() -> None:
        raise Conflict("The deployment 'assistant' is not this key's to change; choose another name.")

    world.at_change = refused
    with pytest.raises(Conflict, match="not this key's"):
        steps(course)


@pytest.mark.parametrize("stage", ["idle", "gate"])
def test_a_canary_that_somebody_set_by_hand_is_left_alone(tmp_path: Path, stage: str) -> None:
    world = Shared()
    course = world.course(tmp_path)
    theirs = "tinker://theirs/sampler_weights/a"
    if stage == "idle":
        world.deploy("tiny", theirs, 20.0)
    else:
        world.at_gate = lambda: world.deploy("tiny", theirs, 20.0)
    world.corrected(5)
    steps(course)
    assert (world.deployed.canary, world.deployed.canary_percent) == (theirs, 20.0)
    assert (course.folder.load().stage, verdicts(tmp_path)) == ("gate", ["passed"])
    assert theirs in course.folder.why()["sentence"]
    world.deploy("tiny")
    steps(course)
    assert world.deployed.canary == course.folder.load().candidate.target
    assert course.folder.load().stage == "canary"


def test_a_canary_by_hand_whose_weights_are_promoted_ends_the_cycle_that_waited(tmp_path: Path) -> None:
    world = Shared()
    course = world.course(tmp_path, start="tinker://theirs/weights/a")
    world.deploy("tiny", "tinker://theirs/sampler_weights/a", 20.0)
    world.corrected(5)
    steps(course)
    world.deploy("tinker://theirs/sampler_weights/a")
    steps(course)
    assert verdicts(tmp_path) == ["passed", "adopted", "void"]
    assert course.folder.load().champion.target == "tinker://theirs/sampler_weights/a"


def test_a_canary_by_hand_behind_a_rollback_stays_when_the_loop_comes_back(tmp_path: Path) -> None:
    """The loop has decided and moved the deployment, and died before it could write down that this is done."""
    world = Shared()
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=False, champion=True)
    before = course.folder.load()
    steps(course)
    assert verdicts(tmp_path)[-1] == "rolled_back"
    course.folder.save(before)
    world.deploy("tiny", "tinker://theirs/sampler_weights/a", 20.0)
    steps(course, 1)
    assert world.deployed.canary == "tinker://theirs/sampler_weights/a"
    assert (course.folder.load().stage, verdicts(tmp_path)) == ("idle", ["passed", "rolled_back"])


def test_a_loop_that_runs_one_cycle_ends_with_what_it_decided_done(tmp_path: Path) -> None:
    """Somebody widens the canary in the moment in which the loop promotes it: the promotion is done a step later."""
    world = Shared()
    course = to_canary(world, tmp_path)
    world.voted(40, candidate=True, champion=False)

    def widened() -> None:
        world.deployed = replace(world.deployed, canary_percent=20.0, version=world.deployed.version + 1)

    world.at_change = widened
    asyncio.run(run(course, Running(cycles=1), first=0))
    champion = course.folder.load().champion
    assert champion.cycle == 1
    assert (world.deployed.target, world.deployed.canary) == (champion.target, None)
