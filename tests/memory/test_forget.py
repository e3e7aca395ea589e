"""What is forgotten or superseded is gone, with all that was made from it."""

import pytest

from loreloop.memory.turns import Turn
from loreloop.protocol.errors import BadRequest, NotFound
from tests.memory.conversations import memory_of, small_talk


def test_forgetting_a_turn_removes_it_and_says_so() -> None:
    memory = memory_of(500)
    for number, text in enumerate(["My locker code is 4711.", "I live in Bergen.", "My cat is called Odin."]):
        memory.append(Turn("user", text))
        assert memory.state.segments[-1].turns == (number,)
    gone = memory.forget(turn=1)
    assert gone.turns == (1,)
    assert [segment.text for segment in gone.segments] == ["I live in Bergen."]
    assert "Bergen" not in memory.text
    assert memory.forget(turn=1).segments == ()


def test_a_pattern_finds_what_has_lost_its_function_words() -> None:
    memory = memory_of(120)
    memory.append(Turn("user", "The code of my locker is 4711, and it has been so for years."))
    for number in range(40):
        memory.append(small_talk(number))
    assert memory.state.segments[0].form == "condensed"
    assert "4711" in memory.text
    assert memory.forget(pattern="the code of my locker").turns == (0,)
    assert "4711" not in memory.text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, BadRequest),
        ({"turn": 0, "pattern": "cat"}, BadRequest),
        ({"turn": 9}, NotFound),
        ({"turn": -1}, NotFound),
        ({"pattern": "of the"}, BadRequest),
    ],
)
def test_a_call_that_names_nothing_changes_nothing(arguments: dict[str, object], error: type[Exception]) -> None:
    memory = memory_of(100)
    memory.append(Turn("user", "My cat is called Odin."))
    before = memory.state
    with pytest.raises(error):
        memory.forget(**arguments)  # type: ignore[arg-type]
    assert memory.state is before


@pytest.mark.parametrize(
    ("old", "new", "gone"),
    [
        ("My gym is in Oslo.", "My gym is now in Bergen.", "Oslo"),
        ("My manager at work is Kim.", "My manager at work changed: it is Lee.", "Kim"),
        ("My locker code is 4711.", "Please forget my locker code.", "4711"),
    ],
)
def test_an_update_takes_the_old_value_out(old: str, new: str, gone: str) -> None:
    memory = memory_of(500)
    memory.append(Turn("user", old + " The weather is fine."))
    memory.append(Turn("user", new))
    assert gone not in memory.text
    assert "weather" in memory.text
    assert new in memory.text


@pytest.mark.parametrize(
    "new", ["Now the train to Bergen is late.", "Is my gym now in Bergen?", "My gym is in Bergen."]
)
def test_what_only_sounds_alike_takes_nothing_out(new: str) -> None:
    memory = memory_of(500)
    memory.append(Turn("user", "My gym is in Oslo."))
    memory.append(Turn("user", new))
    assert "Oslo" in memory.text


def test_another_speakers_change_is_not_mine() -> None:
    memory = memory_of(500)
    memory.append(Turn("user", "My gym is in Oslo.", speaker="Ann"))
    memory.append(Turn("user", "My gym is now in Bergen.", speaker="Bob"))
    assert "Oslo" in memory.text


@pytest.mark.parametrize(
    ("consequence", "stays"),
    [
        ("Because my gym is there I take tram 31.", False),
        ("My gym is far, so I take tram 31.", False),
        ("I take tram 31 to my gym in Oslo.", False),
        ("I take tram 31 to my office in Oslo.", True),
        ("I take tram 31 to my gym.", True),
        ("I met Ann at my gym in Oslo, tram 31 was late.", True),
        ("Because my office is there I take tram 31.", True),
        ("Is my gym in Oslo on tram 31?", True),
    ],
)
@pytest.mark.parametrize("small_talk_between", [0, 60])
def test_what_follows_from_a_changed_fact_goes_with_it(consequence: str, stays: bool, small_talk_between: int) -> None:
    """Condensed meanwhile or not."""
    memory = memory_of(300)
    memory.append(Turn("user", "My gym is in Oslo."))
    memory.append(Turn("user", consequence))
    for number in range(small_talk_between):
        memory.append(small_talk(number))
    assert "31" in memory.text
    memory.append(Turn("user", "My gym is now in Bergen."))
    assert ("31" in memory.text) == stays
    assert "Bergen" in memory.text
