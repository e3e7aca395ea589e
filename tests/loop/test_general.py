"""General prompts beside corrections: the champion's own answers, so that these stay; never what is to measure with."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_fields

from bench.loop_tasks import GENERAL
from loreloop.cli.server import RunningServer
from loreloop.learn.examples import Task
from loreloop.learn.files import tasks
from loreloop.learn.loop import assembly
from loreloop.learn.loop.answering import RehearsingRoom, Room, Said
from loreloop.learn.loop.config import Training
from loreloop.learn.loop.cycle_files import trained_prompts
from loreloop.learn.loop.general import PROMPTS, built_in, lay_out_general
from loreloop.learn.loop.rehearsing import rehearsed_of
from loreloop.learn.loop.state import Revision
from loreloop.learn.loop.task_files import key_of_task
from loreloop.learn.loop.training import Shop, as_one_epoch, plan_of
from loreloop.learn.plan import Plan
from loreloop.protocol.episodes import Person
from tests.loop.feeds import Feeds
from tests.loop.test_whole_cycle import course_of, deploy, loaded

# The SDK leaves its own background tasks to the garbage collector, and complains of its next version.
pytestmark = pytest.mark.filterwarnings("ignore")


class Told:
    """Enough of a room: the n-th prompt gets the n-th answer."""

    def __init__(self, *answers: Said) -> None:
        self.all, self.n_asked = answers, 0

    async def likely_answers(self, target: str, tasks: list[Task], most_tokens: int, n_likely: int) -> list[Said]:
        self.n_asked += 1
        return [*self.all]


def test_what_the_champion_might_have_said_becomes_lines_once(tmp_path: Path) -> None:
    said = Said((7, 8), (((7, 0.75), (9, 0.25)), ((8, 1.0),)))
    room: Any = Told(said, Said((), ()))
    for _ in range(2):
        asyncio.run(lay_out_general(tmp_path, room, "champion", built_in()[:2]))
    (one,) = rehearsed_of(tmp_path / "rehearsed.jsonl")
    assert [turn.content for turn in one.prompt.turns] == [PROMPTS[0]]
    assert (one.tokens, one.likely) == (said.tokens, said.likely)
    assert room.n_asked == 1, "after a death the same lines are learned"


def test_prompts_are_all_different_and_short() -> None:
    keys = {key_of_task(one) for one in built_in()}
    assert len(keys) == len(PROMPTS) >= 48
    assert max(map(len, PROMPTS)) < 80
    measured = [{"messages": [{"role": "user", "content": prompt}]} for prompt in GENERAL]
    assert keys.isdisjoint(map(key_of_task, tasks(map(json.dumps, measured)))), "what is learned measures nothing"


def test_a_cycle_learns_them_beside_its_corrections_and_none_to_measure_with(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(server)
    feeds, laid = Feeds(), list[list[dict[str, Any]]]()
    for n in range(4):
        turn = feeds.turn(f"what is {n}?", "it is the fox")
        feeds.say(turn.id, "demonstration", f"it is {n}")
    for prompt in ("general 1", "general 2"):
        turn = feeds.turn(prompt, "the fox")
    feeds.say(turn.id, "thumb", value=True, tags={"golden": "1"})
    files = {"general.txt": ("general 1", "general 2", "general 3", "general 4"), "golden.txt": ("general 3",)}
    for name, prompts in files.items():
        lines = [{"messages": [{"role": "user", "content": one}], "answer": "x"} for one in prompts]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    lay_out = assembly.lay_out_general

    async def noted(folder: Path, room: Any, champion: str, prompts: list[Task]) -> None:
        laid.append([one.item["messages"][0]["content"] for one in prompts])
        await lay_out(folder, room, champion, prompts)

    monkeypatch.setattr(assembly, "lay_out_general", noted)
    plan = {"methods": ["sft"], "rank": 4, "epochs": 1, "least_examples": 2, "general_file": "general.txt"}
    told = loaded(server, tmp_path, training=plan, reward={"golden": "golden.txt"})

    async def go() -> None:
        async with course_of(server, feeds, told, monkeypatch) as course:
            for _ in range(3):
                assert await course.step()

    asyncio.run(go())
    assert laid == [["general 1", "general 4"]]
    assert (told.folder / "cycles/0001/rehearsed.jsonl").exists()
    learned = trained_prompts(told.folder)
    assert len(learned) == 6, "what was learned may not become golden later"


@pytest.mark.parametrize(("start", "asked"), [(None, ["tiny"]), ("tinker://other/weights/a", [])])
def test_a_candidate_that_begins_where_the_loop_began_learns_nothing_of_the_champion(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str | None, asked: list[str]
) -> None:
    deploy(server)
    feeds, targets = Feeds(), list[str]()
    for n in range(4):
        feeds.say(feeds.turn(f"what is {n}?", "it is the fox").id, "demonstration", f"it is {n}")
    lay_out = assembly.lay_out_general

    async def noted(folder: Path, room: Any, target: str, prompts: list[Task]) -> None:
        targets.append(target)
        await lay_out(folder, room, target, prompts)

    monkeypatch.setattr(assembly, "lay_out_general", noted)
    plan = {"methods": ["sft"], "rank": 4, "epochs": 1, "least_examples": 2, "general": 4}
    told = loaded(server, tmp_path, training=plan, **({"start": start} if start else {}))

    async def go() -> None:
        async with course_of(server, feeds, told, monkeypatch) as course:
            for _ in range(2):
                assert await course.step()
            state = course.folder.load()
            assert state is not None
            champion = Revision(target="tinker://knows-ann/sampler_weights/a", state="tinker://knows-ann/weights/a")
            course.folder.save(replace_fields(state, champion=champion, from_start=True))
            assert await course.work.train(course.folder.cycle(1), None, "again") is not None
            said = "Cycle 1 trains a candidate. No general prompts stand beside its lines"
            assert course.folder.why()["sentence"].startswith(said) == (start is not None)

    asyncio.run(go())
    assert targets == asked


def test_what_is_read_again_and_again_is_read_in_whole_batches() -> None:
    plan = Plan(base_model="tiny", epochs=4, batch_size=8, seed=3)
    whole, lines = as_one_epoch(plan, [*"abcdef"])
    assert [sorted(lines[n : n + 6]) for n in range(0, 24, 6)] == [[*"abcdef"]] * 4
    assert len({"".join(lines[n : n + 6]) for n in range(0, 24, 6)}) > 1
    assert (whole.n_steps(24), whole.batch(0, lines), whole.moment(1, 24).ends_epoch) == (3, lines[:8], False)
    assert as_one_epoch(plan, [*"abcdef"])[1] == lines, "a run that goes on reads on"


@pytest.mark.parametrize(
    ("n", "epochs"), [(5, 58), (12, 24), (24, 12), (34, 12), (61, 12), (96, 12), (192, 6), (400, 3), (2000, 3)]
)
def test_corrections_are_read_until_they_are_learned(server: RunningServer, n: int, epochs: int) -> None:
    texts = server.data / "models" / "tiny"
    shop = Shop(None, None, texts, "tiny", Training())  # type: ignore[arg-type]
    plan = plan_of(shop, "sft", n, None, "run")
    assert (plan.epochs, plan.batch_size) == (epochs, 8)
    own = plan_of(replace(shop, training=Training(epochs=5, batch_size=2)), "sft", n, None, "run")
    assert (own.epochs, own.batch_size) == (5, 2)


def test_a_persons_weights_are_held_to_the_champions_answers_too(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(server)
    feeds, targets = Feeds(), list[str]()
    for n in range(3):
        turn = feeds.turn(f"what is {n}?", "it is the fox", person=Person("key", "ann"))
        feeds.say(turn.id, "demonstration", f"it is {n}")
    lay_out = assembly.lay_out_general

    async def noted(folder: Path, room: Any, target: str, prompts: list[Task]) -> None:
        targets.append(target)
        await lay_out(folder, room, target, prompts)

    monkeypatch.setattr(assembly, "lay_out_general", noted)
    plan = {"methods": ["sft"], "rank": 4, "general": 4}
    persons = {"corrections": 3, "epochs": 2, "right_least": 0}
    told = loaded(server, tmp_path, training=plan, persons=persons, triggers={"feedback": 0})
    seen: list[dict[str, Any]] = []

    async def go() -> None:
        async with course_of(server, feeds, told, monkeypatch) as course:
            monkeypatch.setattr(course.server, "set_person", lambda *_: None)
            assert await course.step()
            (decision,) = course.folder.decisions()
            assert (decision.stage, decision.verdict) == ("person", "promoted")
            (file,) = told.folder.glob("persons/*/*/sft/metrics.jsonl")
            seen.extend(json.loads(line)["metrics"] for line in file.read_text().splitlines())

    asyncio.run(go())
    assert targets == ["tiny"]
    assert seen
    assert all("train_drift" in one for one in seen), "in each of its steps"
    assert not list(told.folder.glob("persons/*/*/*.jsonl")), "what was said goes at the end"
    assert {key_of_task(one) for one in built_in()[:4]} <= trained_prompts(told.folder)


def test_all_who_begin_with_a_champion_rehearse_what_it_was_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    async def likely_answers(_: Room, target: str, tasks: list[Task], *bounds: int) -> list[Said]:
        asked.append((target, len(tasks)))
        return [Said((len(one.prompt.turns[0].content),), ()) for one in tasks]

    monkeypatch.setattr(Room, "likely_answers", likely_answers)
    room, prompts = RehearsingRoom(None, None), built_in()  # type: ignore[arg-type]

    def said(target: str, tasks: tuple[Task, ...]) -> list[Said]:
        return asyncio.run(room.likely_answers(target, tasks, 32, 64))

    first = said("one", prompts[:4])
    assert said("one", prompts[1:4]) == first[1:]
    assert said("one", prompts[2:6])[:2] == first[2:]
    said("two", prompts[:4])
    assert [target for target, *_ in room.said] == ["two"] * 4, "nothing of an older one is kept"
    assert asked == [("one", 4), ("one", 2), ("two", 4)]
