"""The loop's golden file: its prompts are known however they are told, and as the file has them now."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.cycle_files import trained_prompts
from loreloop.learn.loop.gate import NEARNESS, Gated, OfflineGate, Sides
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.learn.loop.task_files import GoldenFile, without
from loreloop.protocol.episodes import Turn
from loreloop.protocol.errors import BadRequest, Unavailable
from tests.loop.test_course import steps
from tests.loop.world import World


def told(*texts: object) -> str:
    return "".join(
        json.dumps({"messages": [{"role": "user", "content": text}], "answer": "1"}) + "\n" for text in texts
    )


def written(file: Path, text: str) -> None:
    """Written a second later than before, since a file's clock may be coarse."""
    before = file.stat().st_mtime if file.exists() else 1e9
    file.write_text(text)
    os.utime(file, (before + 1, before + 1))


TEXT = {"type": "text", "text": "what is 1?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
OTHER = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AB=="}}


def key(content: object) -> str:
    return prompt_key([{"role": "user", "content": content}])


def test_a_text_is_the_same_prompt_in_whatever_form() -> None:
    assert key("what is 1?") == key([TEXT]) == key((TEXT,)) == key([{"type": "input_text", "text": "what is 1?"}])
    assert key("what\nis") == key([{"type": "text", "text": "what"}, {"type": "text", "text": "is"}])
    assert key("") == key(None) == key([])


def test_other_pictures_are_other_prompts() -> None:
    assert len({key("what is 1?"), key([TEXT, IMAGE]), key([TEXT, OTHER]), key([IMAGE]), key("what is 2?")}) == 5


def test_a_golden_prompt_is_not_trained_on_however_it_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "golden.jsonl"
    written(file, told("ann asks 2"))
    world = World()
    world.corrected(4)
    turn = world.feeds.turns[2]
    parts = [{"type": "text", "text": "ann asks 2"}]
    world.feeds.turn("", "no", messages=({"role": "user", "content": parts},))
    world.feeds.say(world.feeds.turns[-1].id, "demonstration", "never this")
    course = world.course(tmp_path / "loop")
    course.work = replace(course.work, golden=GoldenFile(file).keys)
    steps(course)
    assert turn.id not in world.marked[0][1]
    assert "ann asks 1" in str(world.trained)
    assert "ann asks 2" not in str(world.trained)


def test_a_change_of_the_file_is_seen_and_trouble_with_it_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "golden.jsonl"
    written(file, told("a"))
    golden = GoldenFile(file)
    assert golden.holds([{"role": "user", "content": "a"}])
    written(file, told("a", "b"))
    assert golden.keys() == {key("a"), key("b")}
    written(file, "{")
    with pytest.raises(Unavailable, match="mend it, and the loop goes on"):
        golden.keys()
    file.unlink()
    with pytest.raises(Unavailable, match="No such file"):
        golden.keys()
    written(file, told("c"))
    assert golden.keys() == {key("c")}


def test_a_broken_file_has_the_gate_wait_and_not_end_its_cycle(tmp_path: Path) -> None:
    file = tmp_path / "golden.jsonl"
    written(file, told("a"))
    world, golden = World(), GoldenFile(file)
    world.corrected(5)
    course = world.course(tmp_path / "loop")

    async def look(sides: Sides, turns: Sequence[Turn], prompts: Sequence[Turn]) -> Gated:
        return Gated({"golden": len(golden.tasks())})

    course.work = replace(course.work, look=look)
    steps(course, 3)
    assert course.folder.load().stage == "gate"
    written(file, "{")
    with pytest.raises(Unavailable, match="mend it, and the loop goes on"):
        steps(course)
    assert (course.folder.load().stage, course.folder.decisions()) == ("gate", [])
    written(file, told("a", "b"))
    steps(course)
    assert course.folder.load().stage == "canary"
    assert course.folder.decisions()[0].numbers == {"golden": 2}


def test_a_broken_suite_has_the_gate_wait_too(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("{")
    suite = {"name": "sums", "file": "sums.jsonl", "grader": NEARNESS}
    loaded = Loaded(config_of({"deployment": "a", "gate": {"suites": [suite]}}), tmp_path, tmp_path)
    with pytest.raises(Unavailable, match=r"The file of the suite sums .* cannot be read any more"):
        asyncio.run(OfflineGate(None, loaded).look(Sides("new", "old"), [], []))  # type: ignore[arg-type]


def test_prompts_that_were_trained_on_before_they_became_golden_measure_nothing(tmp_path: Path) -> None:
    world = World()
    world.corrected(5)
    course = world.course(tmp_path / "loop")
    steps(course)
    file = tmp_path / "golden.jsonl"
    written(file, told("ann asks 2", "never asked"))
    learned = trained_prompts(tmp_path / "loop")
    assert len(learned) == 5
    assert [one.item["messages"][0]["content"] for one in without(GoldenFile(file).tasks(), learned)] == ["never asked"]
    # The next cycle drops whose turns they were, and keeps what was learned.
    world.corrected(5, "bob")
    world.voted(40, candidate=True, champion=False)
    steps(course)
    steps(course)
    assert learned < trained_prompts(tmp_path / "loop")


def test_a_file_that_is_wrong_from_the_beginning_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "golden.jsonl"
    file.write_text("{")
    with pytest.raises(BadRequest):
        GoldenFile(file)
    assert GoldenFile(None).keys() == frozenset()
