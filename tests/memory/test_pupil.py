"""An adapter that learns on a real server: it imitates, is reinforced, and judges the same over both doors."""

from pathlib import Path

import httpx
import pytest
import tinker

from loreloop.cli.memory_parts import parts_of
from loreloop.cli.server import RunningServer
from loreloop.memory.asked import verdict_over
from loreloop.memory.learned import NO, YES, LearnedImportance, question_of
from loreloop.memory.learning.groups import Tried
from loreloop.memory.learning.lessons import Example
from loreloop.memory.learning.pupil import Pupil
from loreloop.text.tokenizer import TextTokenizer
from tests.memory.conversations import count
from tests.sdk.clients import trainer

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

RATE = 1e-2
FACT, TALK = question_of("user: My gym is Torvet 12."), question_of("user: Well, the rain again.")


def pupil_of(server: RunningServer, folder: Path) -> Pupil:
    return Pupil(trainer(server), TextTokenizer(folder))


def test_lessons_part_facts_from_talk(server: RunningServer, tiny_folder: Path) -> None:
    pupil = pupil_of(server, tiny_folder)
    before = pupil.odds([FACT, TALK])
    losses = [pupil.imitate([Example(FACT, YES), Example(TALK, NO)], RATE) for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]
    fact, talk = pupil.odds([FACT, TALK])
    assert fact > talk
    assert fact > before[0]


def test_what_is_reinforced_becomes_likelier_and_its_opposite_less(server: RunningServer, tiny_folder: Path) -> None:
    pupil = pupil_of(server, tiny_folder)
    pupil.imitate([Example(FACT, YES), Example(FACT, NO)], RATE)
    (group,) = pupil.answers([FACT], 4, [3])
    assert all(0 < len(answer.tokens) == len(answer.logprobs) <= 3 for answer in group)
    liked, disliked = group[0], next(answer for answer in group if answer.tokens != group[0].tokens)

    def now(tokens: tuple[int, ...]) -> float:
        ids = [*pupil.codec.encode(FACT), *tokens]
        logprobs = pupil.sampler.compute_logprobs(tinker.ModelInput.from_ints(ids)).result()
        return sum(value or 0.0 for value in logprobs[-len(tokens) :])

    before = now(liked.tokens), now(disliked.tokens)
    assert before[0] == pytest.approx(sum(liked.logprobs), abs=1e-3)
    pupil.reinforce([Tried(FACT, liked, 1.0), Tried(FACT, disliked, -1.0)], RATE)
    assert now(liked.tokens) > before[0]
    assert now(disliked.tokens) < before[1]
    pupil.reinforce([], RATE)


def test_a_saved_head_gives_the_same_verdict_by_the_openai_door(server: RunningServer, tiny_folder: Path) -> None:
    pupil = pupil_of(server, tiny_folder)
    pupil.imitate([Example(FACT, YES), Example(TALK, NO)], RATE)
    path = pupil.save("head")
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=60) as http:
        parts = parts_of(count, f"learned:{path}", "extractive", http)
        assert isinstance(parts.importance, LearnedImportance)
        verdicts = [parts.importance.verdict(question) for question in (FACT, TALK)]
        assert verdicts == pytest.approx(pupil.odds([FACT, TALK]), abs=1e-3)
        base = verdict_over(lambda body: http.post("/completions", json=body).json(), "tiny")
        assert base(FACT) != pytest.approx(verdicts[0], abs=1e-3)
