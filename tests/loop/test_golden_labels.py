"""Labels to measure with: neither they nor their prompts become lines to learn from."""

from __future__ import annotations

import pytest

from loreloop.learn.loop.collecting import Rules, collect
from loreloop.learn.loop.config import Persons
from loreloop.learn.loop.persons import due
from tests.loop.feeds import Feeds


@pytest.mark.parametrize("level", ["inference", "episode"])
def test_a_prompt_with_a_label_to_measure_with_is_held_out(level: str) -> None:
    feeds = Feeds()
    measured, again, other = feeds.turn("a?", "1"), feeds.turn("a?", "2"), feeds.turn("b?", "3")
    for turn in (measured, again, other):
        feeds.say(turn.id, "thumb", True, who="ann")
    assert len(collect(feeds.turns, feeds.feedback, Rules()).lines["kto"]) == 3
    target = measured.id if level == "inference" else measured.episode_id
    label = feeds.say(target, "score", 1.0, who="reviewer", level=level, tags={"golden": "1"})
    found = collect(feeds.turns, feeds.feedback, Rules())
    assert {used.turn for method in found.used.values() for used in method} == {other.id}
    feeds.say(target, "score", 1.0, id=label.id, who="reviewer", level=level, tags={"golden": "1"}, retracted=True)
    assert len(collect(feeds.turns, feeds.feedback, Rules()).lines["kto"]) == 3


def test_nobodys_own_weights_learn_it_either() -> None:
    feeds = Feeds()
    corrected = [feeds.turn(asked, "no") for asked in ("a?", "b?")]
    for turn in corrected:
        feeds.say(turn.id, "demonstration", "yes", who="ann")
    feeds.say(corrected[0].id, "thumb", False, who="reviewer", tags={"golden": "1"})
    (found,) = due(feeds.turns, feeds.feedback, Rules(), Persons(corrections=1), {})
    assert [used.turn for used in found.used] == [corrected[1].id]
