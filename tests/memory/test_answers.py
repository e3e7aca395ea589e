"""The score is the one of LoCoMo's paper, the sample is fixed, and each contender's context reaches the model."""

import pytest

from loreloop.memory.evaluation.answers import (
    Asker,
    answer_row,
    answer_table,
    ceiling,
    contenders_for,
    oracle,
    same_for_all,
    sampled,
)
from loreloop.memory.evaluation.cases import Conversation, Question
from loreloop.memory.evaluation.f1 import score
from loreloop.memory.evaluation.porter import stem
from loreloop.memory.turns import Turn
from tests.memory.conversations import count, small_talk


@pytest.mark.parametrize(
    ("kind", "label", "answer", "wanted"),
    [
        ("single-hop", "The red bicycles", "a red bicycle", 1.0),
        ("single-hop", "an apple and a pear", "Apples, pears!", 1.0),
        ("single-hop", "7 May 2023", "on 8 May 2023", 4 / 7),
        ("single-hop", "swimming, painting", "swimming", 2 / 3),
        ("single-hop", "Odin Odin", "Odin", 2 / 3),
        ("temporal", "June", "", 0.0),
        ("multi-hop", "swimming, painting", "swimming", 0.5),
        ("multi-hop", "swimming, oil painting", "she paints, she swims", (2 / 3 + 0.5) / 2),
        ("open-domain", "likely no; she hates it", "likely no", 1.0),
        ("adversarial", "", "It is Not Mentioned in the lines.", 1.0),
        ("adversarial", "", "No information available", 1.0),
        ("adversarial", "", "Odin", 0.0),
    ],
)
def test_the_score_of_an_answer(kind: str, label: str, answer: str, wanted: float) -> None:
    assert score(Question(kind, answer=label), answer) == pytest.approx(wanted)


WORDS = """
    caresses ponies cats feed agreed plastered bled motoring sing conflated troubled sized hopping tanned
    falling hissing fizzed failing filing happy sky relational conditional rational valenci digitizer
    conformabli radicalli differentli vileli vietnamization predication operator feudalism decisiveness
    hopefulness callousness formaliti sensitiviti sensibiliti triplicate formative formalize electriciti
    electrical hopeful goodness revival allowance inference airliner gyroscopic adjustable defensible irritant
    replacement adjustment dependent adoption homologou communism activate angulariti homologous effective
    bowdlerize probate rate cease controll roll generalizations oscillators
"""
STEMS = """
    caress poni cat feed agre plaster bled motor sing conflat troubl size hop tan fall hiss fizz fail file
    happi sky relat condit ration valenc digit conform radic differ vile vietnam predic oper feudal decis hope
    callous formal sensit sensibl triplic form formal electr electr hope good reviv allow infer airlin
    gyroscop adjust defens irrit replac adjust depend adopt homolog commun activ angular homolog effect
    bowdler probat rate ceas control roll gener oscil
"""


def test_stems_are_those_of_the_paper() -> None:
    """Words of the paper's own examples, step by step, and some that take several steps."""
    assert [stem(word) for word in WORDS.split()] == STEMS.split()


TALK = Conversation(
    "c",
    tuple(Turn("user", f"My cat {n} is called Odin{n}.") if n % 10 == 0 else small_talk(n) for n in range(100)),
    (
        *(Question("single-hop", f"What is cat {n} called?", f"Odin{n}", (n,)) for n in range(0, 100, 10)),
        *(Question("adversarial", f"What is dog {n} called?") for n in range(3)),
    ),
)


def test_the_sample_is_fixed_and_takes_from_each_category_in_turn() -> None:
    places = sampled([TALK], 8)
    kinds = [TALK.questions[place].kind for _, place in places]
    assert (kinds.count("single-hop"), kinds.count("adversarial")) == (5, 3)
    assert places == sampled([TALK], 8) != sampled([TALK], 8, seed=1)
    assert len(sampled([TALK, TALK])) == len(set(sampled([TALK, TALK]))) == 26


def reader(prompt: str, most: int) -> str:
    """A model that finds the line of the cat that is asked for."""
    context, _, question = prompt.partition("Question: ")
    if not question:
        return "nothing to note"  # it is asked to write a baseline's memory
    number = question.split()[3]
    return f"Odin{number}" if f"Odin{number}" in context and "cat" in question else "not mentioned"


def test_a_row_scores_what_the_model_said_of_each_context() -> None:
    asker = Asker(reader, window=100_000)
    name, full = ceiling([TALK], asker.window, count)
    best = answer_row(name, full, [TALK], 0, count, asker)
    assert name == "full context"
    assert best.f1.mean == 1.0
    none = answer_row("no context", same_for_all(lambda *_: []), [TALK], 0, count, asker)
    assert (none.kinds["single-hop"].mean, none.kinds["adversarial"].mean, none.tokens) == (0.0, 1.0, 0.0)
    rows = {
        name: answer_row(name, contexts, [TALK], 150, count, asker) for name, contexts in contenders_for(reader).items()
    }
    assert all(row.tokens <= 150 for row in rows.values())
    assert rows["memory"].f1.mean == rows["memory and retrieval"].f1.mean == 1.0
    assert rows["recency window"].kinds["single-hop"].mean == 0.0
    assert "| memory | 150 |" in answer_table([best, *rows.values()])
    assert "| full context | – |" in answer_table([best])


def test_an_oracle_shows_the_evidence_and_its_neighbours() -> None:
    name, contexts = ceiling([TALK], 500, count)
    assert "oracle" in name
    assert contexts is oracle
    assert [segment.id for segment in oracle(TALK, 0, count)(TALK.questions[1])] == [9, 10, 11]
    assert [segment.id for segment in oracle(TALK, 0, count)(TALK.questions[0])] == [0, 1]
