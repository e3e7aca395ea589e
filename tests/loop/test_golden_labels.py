"""Labels to measure with: neither they nor their prompts become lines to learn from."""

from __future__ import annotations

import pytest

from loreloop.learn.loop.collecting import Rules, collect
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
