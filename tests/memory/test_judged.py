"""A model's judgement moves a passage's worth, within a bound on what the model reads and writes."""

import pytest

from loreloop.memory.importance import Importance, SurfaceImportance
from loreloop.memory.judged import ScoredImportance, SurprisalImportance
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState, Segment, passage
from loreloop.memory.turns import Turn
from tests.memory.conversations import count, small_talk


def segment(text: str) -> Segment:
    return Segment(0, "user: ", text, count(passage("user: ", text)), (0,), "user")


FACT, BEFORE = segment("My cat is called Odin."), segment("Hello there.")
SURFACE = SurfaceImportance().worth(FACT, [BEFORE])


@pytest.mark.parametrize(("nats", "factor"), [(3.5, 1.0), (7.0, 2.0), (1.75, 0.5), (0.0, 0.25), (100.0, 4.0)])
def test_surprisal_per_token_scales_the_worth(nats: float, factor: float) -> None:
    read: list[str] = []

    def surprisal(context: str, text: str) -> float:
        read.append(context + text)
        return nats * count(text)

    judge = SurprisalImportance(count, surprisal)
    assert judge.worth(FACT, [BEFORE], 100) == pytest.approx(factor * SURFACE)
    assert read == ["user: Hello there.\nuser: My cat is called Odin.\n"]
    assert judge.tokens_spent == count(read[0])
    judge.worth(FACT, [BEFORE], FACT.tokens)
    assert read[1] == "user: My cat is called Odin.\n"
    assert judge.worth(FACT, [BEFORE], FACT.tokens - 1) == SURFACE
    assert (len(read), judge.tokens_spent) == (2, 0)


@pytest.mark.parametrize(("answer", "factor"), [("9", 4.0), ("0", 0.25), (" 9", 4.0), ("", 1.0), ("well", 1.0)])
def test_a_mark_scales_the_worth(answer: str, factor: float) -> None:
    prompts: list[str] = []

    def sampler(prompt: str, _max_tokens: int) -> str:
        prompts.append(prompt)
        return answer

    judge = ScoredImportance(count, sampler)
    assert judge.worth(FACT, [], 1000) == pytest.approx(factor * SurfaceImportance().worth(FACT, []))
    assert judge.tokens_spent == count(prompts[0]) + count(answer)
    assert judge.worth(FACT, [], 20) == SurfaceImportance().worth(FACT, [])
    assert (len(prompts), judge.tokens_spent) == (1, 0)


def test_a_higher_mark_keeps_what_the_surface_would_drop() -> None:
    def likes_the_garden(prompt: str, _max_tokens: int) -> str:
        return "9" if "the garden" in prompt else "0"

    def kept(importance: Importance) -> int:
        memory = Memory(MemoryState(300), Parts(count, importance, ExtractiveRefill(count)))
        for number in range(60):
            memory.append(small_talk(number))
        return sum("garden" in one.text for one in memory.state.segments)

    assert kept(ScoredImportance(count, likes_the_garden)) > kept(SurfaceImportance())


@pytest.mark.parametrize("kind", ["surprisal", "mark"])
def test_a_thousand_appends_stay_within_the_bound(kind: str) -> None:
    spent = 0

    def surprisal(context: str, text: str) -> float:
        nonlocal spent
        spent += count(context) + count(text)
        return 3.0 * count(text)

    def sampler(prompt: str, _max_tokens: int) -> str:
        nonlocal spent
        spent += count(prompt) + 1
        return "7"

    importance = SurprisalImportance(count, surprisal) if kind == "surprisal" else ScoredImportance(count, sampler)
    memory = Memory(MemoryState(400), Parts(count, importance, ExtractiveRefill(count)))
    for number in range(1000):
        long = " It was a long day." * (50 if number % 97 == 0 else 0)
        memory.append(small_talk(number) if number % 3 else Turn("user", f"I met Ann{number} on May 3.{long}"))
    costs = memory.state.costs
    assert costs.model == spent
    assert costs.appended < spent <= 4 * costs.appended + 2 * 400
