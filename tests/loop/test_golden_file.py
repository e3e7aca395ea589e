"""The loop's golden file: its prompts are known however they are told, and as the file has them now."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loreloop.learn.loop.golden_file import GoldenFile
from loreloop.learn.loop.reward.events import prompt_key
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
    course.work = course.work.__class__(**{**vars(course.work), "golden": GoldenFile(file).keys})
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


def test_a_file_that_is_wrong_from_the_beginning_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "golden.jsonl"
    file.write_text("{")
    with pytest.raises(BadRequest):
        GoldenFile(file)
    assert GoldenFile(None).keys() == frozenset()
