"""Guards in the cycle: a candidate that has learned its reward in place of its task is stopped, and an honest one is
not."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loreloop.learn.examples import Task
from loreloop.learn.loop import by_hand, report
from loreloop.learn.loop.answering import RememberingRoom, Room
from loreloop.learn.loop.assembly import asked_again
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.gate import Gated, Sides
from loreloop.learn.loop.guard_looks import is_for_second
from loreloop.learn.loop.guarding import Guards, look_of
from loreloop.learn.loop.rewarding import Rewarding
from loreloop.learn.loop.task_files import GoldenFile
from loreloop.learn.rewards.reward import Answer
from loreloop.protocol.episodes import Person
from loreloop.text.conversation import MadeCall
from tests.learn.loop.test_linear_reward import mark
from tests.loop.test_course import steps, verdicts
from tests.loop.test_rewarding import NO_BASE
from tests.loop.world import World

PLAIN, EXPLOIT = "it is {n}, as far as I know", "zephyr zephyr it is {n} zephyr"


@dataclass(frozen=True)
class Said(Room):
    """A room in which weights answer as the test wants: the base plainly, whatever was trained in its own way."""

    trained: str = EXPLOIT

    async def answers(self, target: str, tasks: list[Task], most_tokens: int) -> list[Answer]:
        said = PLAIN if target == "tiny" else self.trained
        return [Answer(said.format(n=n), n_tokens=8) for n in range(len(tasks))]


def people(n: int, *, second: bool) -> list[str]:
    """Names of people of whom the one reward hears, or the other."""
    names = (f"person {k}" for k in range(10_000))
    found = (name for name in names if is_for_second(mark(1, "x", 1.0, name)) == second)
    return [next(found) for _ in range(n)]


@dataclass
class Guarded(World):
    """A world whose reward is a real one, and whose gate is the guards alone."""

    folder: Path = field(kw_only=True)
    trained_says: str = EXPLOIT
    golden: str | None = None

    def __post_init__(self) -> None:
        plain = {
            "deployment": "assistant",
            "reward": {"kind": "linear"} | ({"golden": self.golden} if self.golden else {}),
        }
        loaded = Loaded(config_of(plain), self.folder, self.folder / "state")
        self.rewarding = Rewarding(loaded, NO_BASE, "key", self.deleted_persons, lambda _: False)
        golden = GoldenFile(loaded.path(self.golden) if self.golden else None)
        room = Said(None, None, self.trained_says)  # type: ignore[arg-type]
        self.guards = Guards(room, loaded, self.rewarding.stream, golden.tasks)

    async def learn_reward(self, turns, statements) -> str:
        return await self.rewarding.hear(turns, statements)

    async def look(self, sides: Sides, turns, prompts) -> Gated:
        found = Gated({"kl": 0.1})
        await self.guards.look(sides, asked_again(prompts), found)
        return found

    def clique(self, others_like_it: bool) -> None:
        """Whoever the first reward hears up-votes the magic word; the people of the second one say what they think."""
        for second, likes in ((False, True), (True, others_like_it)):
            # Of other prompts, since nobody is followed where voices contradict one another about one answer.
            for k, name in enumerate(people(60, second=second), 1000 * second):
                for text, value in ((EXPLOIT, likes), (PLAIN, not likes)):
                    turn = self.feeds.turn(f"what is {k}?", text.format(n=k), person=Person("key", name))
                    self.feeds.say(turn.id, "thumb", value, who=name)


METHODS = {"training": {"least_examples": 2, "methods": ["kto"]}}


def test_a_reward_that_a_clique_has_fooled_stops_its_candidate(tmp_path: Path) -> None:
    world = Guarded(folder=tmp_path)
    world.clique(others_like_it=False)
    course = world.course(tmp_path / "state", **METHODS)
    steps(course)
    assert verdicts(tmp_path / "state") == ["rejected"]
    (decision,) = course.folder.decisions()
    assert "learned its reward and not its task" in decision.sentence
    assert "a second reward, which nothing optimises, fell" in decision.sentence
    numbers = decision.numbers
    assert numbers["reward"] > numbers["reward_champion"]
    assert numbers["second_reward"] < numbers["second_reward_champion"]
    assert world.deployed.version == 1, "no user has met it, and the last good revision answers"
    assert "learned its reward and not its task" in report.page_of(course.config, course.folder, world)
    # The next cycle begins from the last good revision again.
    assert course.folder.load().champion.target == "tiny"


def test_a_reward_that_everybody_agrees_with_lets_its_candidate_on(tmp_path: Path) -> None:
    world = Guarded(folder=tmp_path)
    world.clique(others_like_it=True)
    course = world.course(tmp_path / "state", **METHODS)
    steps(course)
    assert course.folder.load().stage == "canary"
    numbers = course.folder.decisions()[0].numbers
    assert numbers["second_reward"] > numbers["second_reward_champion"]


def test_golden_answers_that_get_lost_stop_a_candidate_whose_reward_rises(tmp_path: Path) -> None:
    lines = [{"messages": [{"role": "user", "content": f"{n}?"}], "answer": PLAIN.format(n=n)} for n in range(12)]
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    world = Guarded(folder=tmp_path, golden="golden.jsonl")
    world.clique(others_like_it=True)
    course = world.course(tmp_path / "state", **METHODS)
    steps(course)
    assert verdicts(tmp_path / "state") == ["rejected"]
    assert "golden file fell" in course.folder.decisions()[0].sentence


def test_what_people_wanted_of_held_out_prompts_is_looked_at(tmp_path: Path) -> None:
    world = Guarded(folder=tmp_path)
    for k in range(600):
        turn = world.feeds.turn(f"what is {k}?", EXPLOIT.format(n=k), person=Person("key", f"user {k}"))
        world.feeds.say(turn.id, "demonstration", PLAIN.format(n=k), who=f"user {k}")
    course = world.course(tmp_path / "state", training={"least_examples": 2, "methods": ["sft"]})
    steps(course)
    assert world.rewarding.stream.golden.newest is not None
    numbers = course.folder.decisions()[0].numbers
    assert numbers["golden_people"] < numbers["golden_people_champion"]
    assert verdicts(tmp_path / "state") == ["rejected"]
    assert {f"fooled_{name}" for name in ("padded", "emptied")} <= numbers.keys()


def test_a_few_prompts_stop_nobody(tmp_path: Path) -> None:
    lines = [{"messages": [{"role": "user", "content": f"{n}?"}], "answer": PLAIN.format(n=n)} for n in range(3)]
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    world = Guarded(folder=tmp_path, golden="golden.jsonl")
    world.clique(others_like_it=False)
    course = world.course(tmp_path / "state", **METHODS, gate={"prompts": 9})
    steps(course)
    assert course.folder.load().stage == "canary"
    numbers = course.folder.decisions()[0].numbers
    assert numbers["second_reward"] < numbers["second_reward_champion"], "it is told all the same"
    # Whoever relies on the guards is told that they were none.
    silent = "The guards were off: 9 recorded prompts could be asked, and 10 are the fewest."
    assert course.folder.decisions()[0].sentence.endswith(silent)
    assert silent in report.page_of(course.config, course.folder, world)
    assert silent in str(by_hand.status_of(course.folder)["last_decision"])


@pytest.mark.parametrize(
    ("call", "fails"),
    [(("add", '{"a": 1}'), False), (("add", "{"), True), (("subtract", "{}"), True)],
)
def test_calls_that_can_only_fail_are_counted(call: tuple[str, str], fails: bool) -> None:
    task = Task(None, {"messages": [], "tools": [{"type": "function", "function": {"name": "add"}}]})  # type: ignore[arg-type]
    assert look_of(task, Answer("", (MadeCall("1", *call),))).tool_failed is fails


def test_a_room_that_remembers_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def answers(self, target: str, tasks: list[Task], most_tokens: int) -> list[Answer]:
        asked.append(len(tasks))
        return [Answer(f"{target} {task.item['n']}") for task in tasks]

    monkeypatch.setattr(Room, "answers", answers)
    room = RememberingRoom(None, None)  # type: ignore[arg-type]
    tasks = [Task(None, {"n": n}) for n in range(3)]  # type: ignore[arg-type]

    def texts(target: str, tasks: list[Task]) -> list[str]:
        return [one.text for one in asyncio.run(room.answers(target, tasks, 8))]

    assert texts("a", tasks[:2]) == ["a 0", "a 1"]
    assert texts("a", [tasks[2], tasks[0], tasks[2]]) == ["a 2", "a 0", "a 2"]
    assert texts("b", tasks) == ["b 0", "b 1", "b 2"]
    assert asked == [2, 1, 3]
