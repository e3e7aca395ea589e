"""What a loop must not leave behind: names of deleted persons, half a team's weights, copies that guards looked at."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn.loop.cycle_files import trained_prompts, with_prompts
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.learn.loop.state import LoopFolder, Revision
from loreloop.learn.loop.sweeping import swept
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import BadRequest
from tests.loop.test_course import steps, to_canary
from tests.loop.test_guarded_training import Looked, lines, train
from tests.loop.test_persons import MORE, TEAM
from tests.loop.world import World

# The SDK leaves its own background tasks to the garbage collector, and complains of its next version.
pytestmark = pytest.mark.filterwarnings("ignore")


class Torn(World):
    """A server that fails for one member of a team, once or for good."""

    fails: BaseException | None = None
    for_good = False

    def set_person(self, user: str, target: str, key_id: str = "") -> None:
        if user == "bob" and self.fails is not None:
            error, self.fails = self.fails, self.fails if self.for_good else None
            raise error
        super().set_person(user, target, key_id)


class Dead(BaseException):
    """The process dies between two members."""


def team() -> Torn:
    world = Torn()
    world.corrected(2, "ann")
    world.corrected(2, "bob")
    return world


def test_a_death_between_members_of_a_team_leaves_nobody_without_its_weights(tmp_path: Path) -> None:
    world = team()
    world.fails = Dead()
    with pytest.raises(Dead):
        steps(world.course(tmp_path, **TEAM), 1)
    assert world.owns.keys() == {"ann"}
    # What she took back meanwhile leaves too few words for an adapter: nobody would be due any more.
    world.feeds.feedback = [one for one in world.feeds.feedback if one.number > 2]
    steps(world.course(tmp_path, **TEAM), 3)
    assert world.owns.keys() == {"ann", "bob"}
    assert len({*world.owns.values()}) == len(world.trained) == 1


@pytest.mark.parametrize("had_one", [False, True])
def test_a_team_whose_weights_the_server_takes_for_some_only_keeps_what_it_had(tmp_path: Path, had_one: bool) -> None:
    world = team()
    course = world.course(tmp_path, **TEAM)
    if had_one:
        steps(course, 1)
        world.corrected(3, "ann")
    before = dict(world.owns)
    world.fails, world.for_good = BadRequest("They do not fit."), True
    if had_one:
        world.fails = BadRequest("They do not fit.")
    steps(course, 1)
    assert world.owns == before
    assert course.folder.decisions()[-1].sentence == "The server did not take the adapter: They do not fit."


def test_a_paused_loop_forgets_whoever_is_deleted(tmp_path: Path) -> None:
    world = World()
    world.corrected(3, "ann")
    course = world.course(tmp_path, **MORE)
    steps(course, 1)
    assert "ann" in (tmp_path / "persons.json").read_text()
    course.folder.pause(True)
    world.feeds.deleted.append(Person("key", "ann"))
    steps(course, 1)
    assert "ann" not in (tmp_path / "persons.json").read_text()
    assert not list((tmp_path / "persons").glob("*"))


def test_a_loop_that_waits_knows_no_names_of_cycles_that_are_over(tmp_path: Path) -> None:
    world = World(broken=["it is worse"])
    world.corrected(5)
    course = world.course(tmp_path)
    steps(course)
    course.folder.pause(True)
    steps(course, 1)
    assert "ann" not in (tmp_path / "cycles/0001/data.json").read_text()


def test_a_canary_does_not_count_what_deleted_persons_said_of_others_turns(tmp_path: Path) -> None:
    world = World()
    course = to_canary(world, tmp_path, canary={"least_episodes": 5, "most_episodes": 100, "gain": 0.3})
    turn = world.feeds.turn("hello", "hi", arm="canary", version=world.deployed.version, person=Person("key", "eve"))
    world.feeds.say(turn.id, "thumb", value=False, who="bob")
    world.feeds.say(turn.id, "thumb", value=True, who="eve")
    steps(course, 1)
    assert course.folder.why()["numbers"]["candidate_satisfaction"] == 0.5
    # As the server has it: what he said goes out of the feed, without a retraction.
    world.feeds.deleted.append(Person("key", "bob"))
    world.feeds.feedback = [one for one in world.feeds.feedback if one.who != "bob"]
    steps(course, 1)
    assert course.folder.why()["numbers"]["candidate_satisfaction"] == 1.0


def test_prompts_that_an_older_version_has_not_noted_are_found_by_their_turns(tmp_path: Path) -> None:
    world = World(broken=["it is worse"])
    world.corrected(5)
    steps(world.course(tmp_path))
    file = tmp_path / "cycles/0001/data.json"
    data = msgspec.json.decode(file.read_bytes())
    for used in data["used"]["sft"]:
        del used["prompt"]
    file.write_bytes(msgspec.json.encode(data))
    assert not trained_prompts(tmp_path)
    asked: list[int] = []

    def turns():
        asked.append(1)
        return world.feeds.turns[1:]  # the first one has expired

    for _ in range(2):
        with_prompts(tmp_path, turns)
    assert trained_prompts(tmp_path) == {prompt_key(turn.messages) for turn in world.feeds.turns[1:]}
    assert len(asked) == 1, "what cannot be known is not asked for again"


def saved(server: RunningServer) -> set[str]:
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
        rest = tinker.RestClient(service.holder)
        return {one.tinker_path for one in asyncio.run(_all(rest)).checkpoints}


async def _all(rest: tinker.RestClient):
    return await rest.list_user_checkpoints(limit=500)


def test_copies_that_guards_have_looked_at_are_swept(server: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "assistant-0001"
    folder.mkdir()
    made = train(server, lines(folder, "sft"), Looked(bad=3))
    other = tmp_path / "assistant2-0001"
    other.mkdir()
    train(server, lines(other, "sft"), Looked())
    assert made is not None
    assert made.alarm
    assert any("/assistant2-0001-sft-seen" in path for path in saved(server))

    async def sweep() -> None:
        with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
            await swept(service, "assistant", {made.path})

    asyncio.run(sweep())
    left = {path for path in saved(server) if "/assistant-0001-sft-" in path}
    copies = {path for path in left if "-seen-" in path or "-good-" in path}
    assert copies == {made.path}, "the state behind it is not kept by this caller"
    assert any("/assistant2-0001-sft-seen" in path for path in saved(server)), "another deployment's stay"


def test_the_course_sweeps_all_but_what_answers_or_is_named_by_a_decision(tmp_path: Path) -> None:
    world, kept = World(broken=["it is worse"]), list[set[str]]()
    course = world.course(tmp_path)

    async def sweep(keep: set[str]) -> None:
        kept.append({*keep})

    course.work.__dict__["sweep"] = sweep
    for _ in range(2):
        world.corrected(5)
        steps(course)
    name = "tinker://assistant-000{}/{}/s"
    first, second = [[name.format(n, kind) for kind in ("sampler_weights", "weights")] for n in (1, 2)]
    assert kept[1] == {"tiny", *first}
    assert kept[2] == {"tiny", first[0]}, "the state of what was rejected is nothing's"
    assert kept[-1] == {"tiny", first[0], *second}
    assert len(LoopFolder(tmp_path).decisions()) == 2


def test_what_is_proposed_and_what_trainings_begin_at_is_never_swept(tmp_path: Path) -> None:
    world, kept = World(), set[str]()
    course = world.course(tmp_path)
    course.config = msgspec.structs.replace(course.config, start="tinker://start/weights/s")
    course.folder.propose(Revision(target="tinker://p/sampler_weights/s", state="tinker://p/weights/s"))

    async def sweep(keep: set[str]) -> None:
        kept.update(keep)

    course.work.__dict__["sweep"] = sweep
    asyncio.run(course._sweep(course.folder.load() or course.begin("tiny")))
    assert {"tinker://start/weights/s", "tinker://p/sampler_weights/s", "tinker://p/weights/s"} <= kept
