"""The learned reward of a loop: what it hears, what it must not hear, and what it forgets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loreloop.learn.examples import Task
from loreloop.learn.loop.collecting import prompt_key
from loreloop.learn.loop.rewarding import Both, LearnedReward
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.protocol.episodes import Person
from loreloop.text.conversation import Conversation
from tests.loop.feeds import Feeds

NOTHING: frozenset[str] = frozenset()


def short_is_liked(n: int = 60) -> Feeds:
    feeds = Feeds()
    for k in range(n):
        long = bool(k % 2)
        answer = "well, let me think about that for a good long while " * 4 if long else "yes"
        turn = feeds.turn(f"question {k}", answer, person=Person("key", f"user {k % 10}"))
        feeds.say(turn.id, "thumb", value=not long, who=f"user {k % 10}")
    return feeds


def rewarded(reward, text: str) -> float:
    task = Task(Conversation(()), {"messages": [{"role": "user", "content": "question"}]})
    return asyncio.run(reward(Answer(text), task)).value


def test_it_learns_what_is_liked_and_goes_on_where_it_was(tmp_path: Path) -> None:
    feeds, reward = short_is_liked(), LearnedReward(tmp_path)
    assert "60 events of 10 persons" in reward.hear(feeds.turns, feeds.feedback, (), NOTHING)
    long = "well, let me think about that for a good long while " * 4
    assert rewarded(reward, "yes") > rewarded(reward, long) + 0.5
    again = LearnedReward(tmp_path)
    assert rewarded(again, "yes") == pytest.approx(rewarded(reward, "yes"))
    assert "60 events" in again.hear(feeds.turns, feeds.feedback, (), NOTHING), "nothing is heard twice"


def test_it_forgets_deleted_persons_and_never_hears_the_golden_set(tmp_path: Path) -> None:
    feeds, reward = short_is_liked(), LearnedReward(tmp_path)
    golden = frozenset({prompt_key(feeds.turns[0].messages)})
    assert "59 events" in reward.hear(feeds.turns, feeds.feedback, (), golden)
    reward.hear(feeds.turns, feeds.feedback, [Person("key", "user 3")], golden)
    assert not {one.person for one in reward.model.learned} & {"user 3", "key/user 3"}


def test_a_grader_is_added(tmp_path: Path) -> None:
    async def right(answer: Answer, task: Task) -> Score:
        return Score(1.0 if "7" in answer.text else 0.0)

    reward = Both(LearnedReward(tmp_path), right)
    assert rewarded(reward, "7") == pytest.approx(rewarded(reward, "8") + 1.0)
