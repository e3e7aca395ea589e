"""What the surface says of a passage depends on the memory as it is now, not on those that were looked at before."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.state import Segment

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
