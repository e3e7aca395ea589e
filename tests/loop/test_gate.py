"""The offline gate by itself: what rejects a candidate, and that a reviewer's right answers stand in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from loreloop.learn.examples import Task
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.gate import Gated, OfflineGate, Sides, refuses
from loreloop.learn.loop.golden_prompts import labelled_prompts
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.learn.loop.reward.form import FORM_NAMES, form_of
from loreloop.learn.rewards.reward import Answer
from loreloop.protocol.episodes import Person
from tests.loop.feeds import Feeds

GOLDEN = {"golden": "1"}
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Said:
    """Enough of a room: what a target answers to a prompt."""

    text: Callable[[str, str], str]

    async def answers(self, target: str, tasks: Sequence[Task], most_tokens: int) -> list[Answer]:
        return [Answer(self.text(target, task.item["messages"][-1]["content"])) for task in tasks]

    async def divergence(self, candidate: str, champion: str, turns: Sequence[object]) -> None:
        return None


def gated(folder: Path, text: Callable[[str, str], str], labelled: list[Task], **gate: float) -> Gated:
    config = config_of({"deployment": "assistant", "gate": {"prompts": 0, **gate}})
    room = Said(text)
    look = OfflineGate(room, Loaded(config, folder, folder)).look  # type: ignore[arg-type]
    return asyncio.run(look(Sides("new", "old"), [], [], labelled))


def corrected(n: int) -> Feeds:
    """Turns of which a reviewer has written the right answers."""
    feeds = Feeds()
    for k in range(n):
        turn = feeds.turn(f"what is {k}?", "no idea", person=Person("key", f"user {k}"))
        feeds.say(turn.id, "demonstration", f"it is {k} {k} {k}", who="reviewer", tags=GOLDEN)
    return feeds


def labelled_of(feeds: Feeds, deleted: frozenset[str] = NOBODY) -> list[Task]:
    return labelled_prompts(feeds.turns, feeds.feedback, deleted)


def test_what_a_reviewer_wrote_is_held_against_the_candidate(tmp_path: Path) -> None:
    labelled = labelled_of(corrected(40))
    assert labelled[3].item["answer"] == "it is 3 3 3"

    def right(asked: str) -> str:
        number = asked.split()[-1].rstrip("?")
        return f"it is {number} {number} {number}"

    worse = gated(tmp_path, lambda target, asked: "what?" if target == "new" else right(asked), labelled)
    assert (worse.numbers["golden_losses"], worse.numbers["golden_win_rate"]) == (40, 0.0)
    assert "wins 0.00 of the 40 golden prompts" in worse.broken[0]
    better = gated(tmp_path, lambda target, asked: "what?" if target == "old" else right(asked), labelled)
    assert (better.numbers["golden_wins"], better.broken) == (40, [])
    assert "golden_wins" not in gated(tmp_path, lambda target, asked: "", []).numbers


def test_candidates_that_are_just_equal_are_not_rejected_by_chance(tmp_path: Path) -> None:
    labelled = labelled_of(corrected(30))
    rng = random.Random(0)
    found = [gated(tmp_path, lambda target, asked: "it is" * rng.randint(0, 9), labelled) for _ in range(30)]
    assert sum(bool(one.broken) for one in found) <= 2
    assert sum(one.numbers["golden_win_rate"] < 0.5 for one in found) > 5, "which a rule by the rate alone rejects"


def test_of_several_right_answers_the_newest_that_stands_is_taken() -> None:
    feeds = corrected(3)
    again = feeds.turn("what is 1?", "still no idea", person=Person("key", "other"))
    feeds.say(again.id, "demonstration", "one", who="another", tags=GOLDEN)
    first = feeds.feedback[0]
    feeds.say(first.target_id, "demonstration", "x", id=first.id, who="reviewer", tags=GOLDEN, retracted=True)
    assert [one.item["answer"] for one in labelled_of(feeds)] == ["it is 2 2 2", "one"]


def test_thumbs_and_what_users_corrected_are_no_golden_prompts() -> None:
    feeds = Feeds()
    for metric, value, tags in (("thumb", True, GOLDEN), ("score", 1.0, GOLDEN), ("demonstration", "yes", {})):
        feeds.say(feeds.turn(f"{metric}?", "no").id, metric, value, who="reviewer", tags=tags)
    assert labelled_of(feeds) == []


@pytest.mark.parametrize(
    "more",
    [{"consent": False}, {"fate": "used", "candidate": "c"}, {"fate": "trainable", "candidate": "c"}, {"side": True}],
)
def test_what_may_not_be_read_or_was_trained_on_is_no_golden_prompt(more: dict) -> None:
    feeds = corrected(2)
    secret = feeds.turn("secret?", "no", **more)
    feeds.say(secret.id, "demonstration", "never this", who="reviewer", tags=GOLDEN)
    assert len(labelled_of(feeds)) == 2
    assert len(labelled_of(feeds, frozenset({"key\nuser 1"}))) == 1


def test_a_prompt_that_the_loop_has_learned_is_golden_no_more_whatever_became_of_its_turn() -> None:
    """The turn that was learned from may have expired, and its episode may be mixed: its prompt is known all the
    same."""
    feeds = corrected(3)
    learned = frozenset({prompt_key(feeds.turns[1].messages)})
    found = labelled_prompts(feeds.turns, feeds.feedback, NOBODY, learned)
    assert [one.item["answer"] for one in found] == ["it is 0 0 0", "it is 2 2 2"]
    feeds.turns[0] = msgspec.structs.replace(feeds.turns[0], fate="mixed", candidate="c-1")
    found = labelled_prompts(feeds.turns, feeds.feedback, NOBODY, learned)
    assert [one.item["answer"] for one in found] == ["it is 2 2 2"]


def test_refusals_are_known_by_one_rule() -> None:
    said = ("I can't do that.", "I’m sorry, no.", "I am sorry, but no.", "As an AI, I do not.", "I cannot say.")
    assert all(refuses(Answer(text)) for text in said)
    assert not any(refuses(Answer(text)) for text in ("It is 4.", "Sorry is a word of five letters.", ""))
    assert [form_of("", text)[FORM_NAMES.index("refusals")] for text in (*said, "It is 4.")] == [1.0] * 5 + [0.0]
