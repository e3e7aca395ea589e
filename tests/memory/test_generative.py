"""A model's refill is taken only where it fits and loses nothing hard; asking it stays within its bound."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.memory.generative import FillInTheMiddle, Sampler
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.refill import ExtractiveRefill, Place
from loreloop.memory.state import MemoryState, Segment, passage
from loreloop.memory.turns import Turn
from tests.memory.conversations import count, small_talk

TEXT = "When I was in Oslo last year I met an old friend of mine, Kim, and we went to see the 3 museums that are there."
CHUNK = Segment(5, "user: ", TEXT, count(passage("user: ", TEXT)), (5,), "user", worth=1.0)
GOOD = "In Oslo met friend Kim, went see 3 museums"
ROOM = Place("user: My dog is called Odin.\n", "assistant: Nice.\n", (4, 6), allowance=1000)


class Fake:
    """A sampler that gives one answer, and keeps the prompts."""

    def __init__(self, answer: str) -> None:
        self.answer, self.prompts, self.spent = answer, list[str](), 0

    def __call__(self, prompt: str, max_tokens: int) -> str:
        self.prompts.append(prompt)
        answer = self.answer
        while count(answer) > max_tokens:
            answer = answer[:-1]
        self.spent += count(prompt) + count(answer)
        return answer


def test_what_the_model_wrote_stands_where_it_keeps_names_and_numbers() -> None:
    fake = Fake(f"\n{GOOD}\n")
    refill = FillInTheMiddle(count, fake)
    made = refill.refill(CHUNK, 24, ROOM)
    assert made is not None
    assert (made.text, made.form, made.rewrites) == (GOOD, "written", 1)
    assert made.tokens == count(passage(CHUNK.head, GOOD)) <= 24
    assert refill.tokens_spent == fake.spent > 0
    assert TEXT in fake.prompts[0]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "met friend Kim, saw 3 museums",
        "In Oslo met Kim, saw museums",
        f"{GOOD} with Lee",
        f"{GOOD}, all 17 of them",
    ],
)
def test_a_text_that_loses_or_invents_falls_back_to_the_chunks_own_words(answer: str) -> None:
    made = FillInTheMiddle(count, Fake(answer)).refill(CHUNK, 28, ROOM)
    assert made == ExtractiveRefill(count).refill(CHUNK, 28)
    assert made is not None
    assert made.form == "condensed"


def test_a_sampler_that_writes_too_much_is_not_believed() -> None:
    def endless(_prompt: str, _max_tokens: int) -> str:
        return f"{GOOD} and so on" * 9

    made = FillInTheMiddle(count, endless).refill(CHUNK, 28, ROOM)
    assert made == ExtractiveRefill(count).refill(CHUNK, 28)


def test_blind_the_model_sees_the_neighbours_only() -> None:
    fake = Fake(GOOD)
    FillInTheMiddle(count, fake, blind=True).refill(CHUNK, 24, ROOM)
    assert "Odin" in fake.prompts[0]
    assert "Kim" not in fake.prompts[0]


def test_foreign_words_widen_what_the_text_was_made_from() -> None:
    for answer, turns in ((GOOD, (5,)), (f"{GOOD} with dog", (4, 5, 6))):
        made = FillInTheMiddle(count, Fake(answer)).refill(CHUNK, 24, ROOM)
        assert made is not None
        assert (made.form, made.turns) == ("written", turns)


def test_without_an_allowance_no_model_is_asked() -> None:
    fake = Fake(GOOD)
    refill = FillInTheMiddle(count, fake)
    assert refill.refill(CHUNK, 24, Place(allowance=50)) == ExtractiveRefill(count).refill(CHUNK, 24)
    assert (fake.prompts, refill.tokens_spent) == ([], 0)


@given(st.text(max_size=80), st.integers(0, 40), st.sampled_from([TEXT, "a b", "x" * 200, "Kim " * 30]))
@settings(max_examples=200, deadline=None)
def test_whatever_is_written_fits(answer: str, budget: int, text: str) -> None:
    chunk = Segment(0, "user: ", text, count(passage("user: ", text)), (0,), "user")

    def sampler(_prompt: str, _max_tokens: int) -> str:
        return answer

    made = FillInTheMiddle(count, sampler).refill(chunk, budget, ROOM)
    assert made is None or made.tokens == count(passage(made.head, made.text)) <= budget


def asked_over(appends: int, sampler: Sampler) -> Memory:
    parts = Parts(count, SurfaceImportance(), FillInTheMiddle(count, sampler))
    memory = Memory(MemoryState(400), parts)
    for number in range(appends):
        fact = f"So when I was there I met an old friend called Ann{number}, and it was on May {number % 28 + 1}."
        memory.append(small_talk(number) if number % 3 else Turn("user", fact))
        assert memory.state.tokens <= 400
    return memory


def test_the_model_reads_and_writes_within_the_bound_over_a_thousand_appends() -> None:
    """The bound is that of the whole, 4 times the appended tokens and 2 budgets: stricter than of each append."""
    fake = Fake("they met")
    memory = asked_over(1000, fake)
    assert memory.state.costs.model == fake.spent
    assert 0 < fake.spent <= 4 * memory.state.costs.appended + 2 * 400


def test_a_memory_holds_what_the_model_wrote_and_forgets_it() -> None:
    def shortening(prompt: str, _max_tokens: int) -> str:
        return prompt.split("said: So when I was there I ")[-1].split(", and it was")[0].replace("an old ", "") + " May"

    def with_day(prompt: str, max_tokens: int) -> str:
        day = prompt.split("on May ")[-1].split(".")[0]
        return f"{shortening(prompt, max_tokens)} {day}"

    memory = asked_over(60, with_day)
    written = [segment for segment in memory.state.segments if segment.form == "written"]
    assert written
    gone = memory.forget(turn=written[0].turns[0])
    assert written[0] in gone.segments
    assert written[0].text not in memory.text
