"""What the surface says of a passage depends on the memory as it is now, not on those that were looked at before."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.open_questions import OPEN
from loreloop.memory.state import Segment
from loreloop.memory.turns import Turn
from tests.memory.conversations import memory_of, small_talk

NEW = Segment(99, "user: ", "My gym is in Oslo, room 7.", 9, (99,), "user")
SEGMENTS = [
    Segment(number, "user: ", text, 5, (number,), "user")
    for number, text in enumerate(("My gym is in Bergen.", "Oslo, Oslo.", "room 7", "", "It rains.", "room 7"))
]


@given(st.lists(st.lists(st.sampled_from(SEGMENTS), max_size=8), max_size=6))
@settings(deadline=None)
def test_memories_seen_before_leave_no_trace(memories: list[list[Segment]]) -> None:
    used = SurfaceImportance()
    for memory in memories:
        assert used.worth(NEW, memory) == SurfaceImportance().worth(NEW, memory)


def test_words_that_stand_already_are_worth_less_the_oftener_they_do() -> None:
    def worth(*numbers: int) -> float:
        memory = [replace(SEGMENTS[number]) for number in numbers]
        return SurfaceImportance().worth(NEW, memory)

    assert worth(*(0, 1, 2) * 3) < worth(*(0, 1, 2) * 2) < worth()
    assert worth(3, 4) == worth()


@pytest.mark.parametrize("piece", ["“", '"', "“ab", "my ", "my a-", "a'", ". ", "x", "\n"])
def test_a_text_that_is_made_to_hurt_is_judged_quickly(piece: str) -> None:
    text = piece * (40_000 // len(piece))
    started = time.process_time()
    SurfaceImportance().worth(replace(NEW, text=text), ())
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("answer", "role", "is_open"),
    [
        ("I do not know yet; I will come back to it.", "assistant", True),
        ("Let me look into that.", "assistant", True),
        ("It is form 12.", "assistant", False),
        ("I don't know yet.", "user", False),
        ("Sure. First fill in form 12. Then send it. Wait. You cannot say more by phone.", "assistant", False),
    ],
)
def test_a_question_that_is_put_off_is_worth_more(answer: str, role: str, is_open: bool) -> None:
    memory = memory_of(1000)
    memory.append(Turn("user", "Which form do I need for claim 4711?"))
    before = memory.state.segments[0].worth
    memory.append(Turn(role, answer))
    assert memory.state.segments[0].worth == (OPEN if is_open else 1) * before


def test_a_question_that_is_put_off_outlives_small_talk() -> None:
    memory = memory_of(300)
    memory.append(Turn("user", "Which form do I need for claim 4711?"))
    memory.append(Turn("assistant", "I am not sure; I will get back to you."))
    for number in range(200):
        memory.append(small_talk(number))
    assert "claim 4711?" in memory.text
