"""The learned head's verdict moves a passage's worth; what it reads stays within the memory's bound."""

import math
from typing import Any

import pytest

from loreloop.memory.asked import sampler_over, verdict_over
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.learned import YES, LearnedImportance, log_odds, question_of
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState, Segment, passage
from loreloop.memory.turns import Turn
from loreloop.protocol.errors import BadRequest
from tests.memory.conversations import count, small_talk

LINE = "My cat is called Odin."
FACT = Segment(0, "user: ", LINE, count(passage("user: ", LINE)), (0,), "user")
SURFACE = SurfaceImportance().worth(FACT, [])


@pytest.mark.parametrize(
    ("probability", "factor"), [(0.5, 1.0), (0.75, 3.0), (0.25, 1 / 3), (1.0, 4.0), (0.0001, 0.25)]
)
def test_the_odds_of_yes_scale_the_worth(probability: float, factor: float) -> None:
    questions: list[str] = []

    def verdict(question: str) -> float:
        questions.append(question)
        return log_odds(math.log(probability))

    head = LearnedImportance(count, verdict)
    assert head.worth(FACT, [], 1000) == pytest.approx(factor * SURFACE)
    assert questions == [question_of("user: My cat is called Odin.")]
    assert head.tokens_spent == count(questions[0] + YES)
    assert head.worth(FACT, [], head.tokens_spent - 1) == SURFACE
    assert (len(questions), head.tokens_spent) == (1, 0)


def test_a_thousand_appends_stay_within_the_bound() -> None:
    spent = 0

    def verdict(question: str) -> float:
        nonlocal spent
        spent += count(question + YES)
        return 0.5

    memory = Memory(MemoryState(400), Parts(count, LearnedImportance(count, verdict), ExtractiveRefill(count)))
    for number in range(1000):
        long = " It was a long day." * (50 if number % 97 == 0 else 0)
        memory.append(small_talk(number) if number % 3 else Turn("user", f"I met Ann{number} on May 3.{long}"))
    assert memory.state.costs.model == spent
    assert memory.state.costs.appended < spent <= 4 * memory.state.costs.appended + 2 * 400


def test_turns_of_one_word_are_judged_until_the_bound_is_reached() -> None:
    """A question costs more than four times such a turn."""
    spent: list[int] = []

    def verdict(question: str) -> float:
        spent.append(count(question + YES))
        return 1.0

    memory = Memory(MemoryState(40), Parts(count, LearnedImportance(count, verdict), ExtractiveRefill(count)))
    for number in range(500):
        memory.append(Turn("user", f"{number}"))
        costs = memory.state.costs
        assert costs.model == sum(spent) <= 4 * costs.appended + 2 * 40
    assert len(spent) > 0


def test_of_a_very_long_turn_the_beginning_is_judged() -> None:
    line = "user: " + "All work and no play. " * 5000
    assert question_of(line) == f"{line[:2000]}\nRemember?"


class Server:
    def __init__(self, answer: Any) -> None:
        self.answer, self.bodies = answer, list[Any]()

    def __call__(self, body: Any) -> Any:
        self.bodies.append(body)
        return self.answer


def test_a_verdict_is_the_log_probability_of_the_prompts_last_word_and_asked_once() -> None:
    server = Server(
        {"choices": [{"logprobs": {"token_logprobs": [None, -3.0, math.log(0.75)], "text_offset": [0, 6, 16]}}]}
    )
    verdict = verdict_over(server, "tinker://head")
    assert verdict("a line\nRemember?") == verdict("a line\nRemember?") == pytest.approx(math.log(3))
    (body,) = server.bodies
    assert (body["prompt"], body["max_tokens"], body["echo"]) == ("a line\nRemember? yes", 0, True)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"text": "x", "logprobs": None}]}])
def test_a_server_without_log_probabilities_is_refused(answer: Any) -> None:
    with pytest.raises(BadRequest, match="log-probabilities"):
        verdict_over(Server(answer), "gpt")("a line")


def test_a_refill_is_asked_for_one_greedy_line() -> None:
    server = Server({"choices": [{"text": " cat Odin"}]})
    assert sampler_over(server, "tinker://refill")("[…] = user: ", 7) == " cat Odin"
    (body,) = server.bodies
    assert (body["prompt"], body["max_tokens"], body["temperature"], body["stop"]) == ("[…] = user:", 7, 0, "\n")
    with pytest.raises(BadRequest, match="no text"):
        sampler_over(Server({}), "tinker://refill")("", 7)
