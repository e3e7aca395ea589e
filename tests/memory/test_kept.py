"""A memory between a server's requests: new turns told from old ones, images, another model's count, bytes and back."""

import msgspec
import pytest

from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.kept import (
    KeptMemory,
    asked_of,
    closed,
    counted_anew,
    from_bytes,
    prompt_turns,
    to_bytes,
    with_answer,
)
from loreloop.memory.memory import Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import MadeCall, Picture, Turn
from tests.memory.conversations import count

PARTS = Parts(count, SurfaceImportance(), ExtractiveRefill(count))
CALL = MadeCall("c1", "look", '{"at": "cat"}')
CAT, DOG = Picture("data:cat"), Picture("data:dog")


def user(text: str, *pictures: Picture) -> Turn:
    return Turn("user", text, parts=(text, *pictures) if pictures else ())


def assistant(text: str = "", *calls: MadeCall) -> Turn:
    return Turn("assistant", text, calls=calls)


def begun(budget: int = 300) -> KeptMemory:
    return KeptMemory(MemoryState(budget), "base")


def told(kept: KeptMemory, *turns: Turn, answer: Turn, cut: bool = False) -> KeptMemory:
    return with_answer(kept, asked_of(kept, turns), (answer,), PARTS, cut=cut)


def texts(kept: KeptMemory) -> list[str]:
    return [segment.text for segment in kept.state.segments]


def test_an_old_image_is_a_marker_and_a_new_one_is_sent() -> None:
    kept = told(begun(), user("Look.", CAT), answer=assistant("A cat."))
    assert texts(kept) == ["Look.\n[image]", "A cat."]
    asked = asked_of(kept, (user("And this?", DOG),))
    sent = prompt_turns(kept, asked)
    assert [picture for turn in sent for picture in turn.pictures] == [DOG]
    assert "[image]" in sent[0].content
    whole = asked_of(kept, (user("Look.", CAT), assistant("A cat."), user("And this?", DOG)))
    assert whole.new == asked.new


def test_an_image_stands_in_an_open_exchange_for_who_sends_it_again() -> None:
    kept = told(begun(), user("Look.", CAT), answer=assistant("", CALL))
    assert (texts(kept), len(kept.open)) == ([], 2)
    result = Turn("tool", "It sleeps.", call_id="c1")
    alone = asked_of(kept, (result,))
    assert [turn.content for turn in prompt_turns(kept, alone)] == ["Look.\n[image]", "", "It sleeps."]
    whole = asked_of(kept, (user("Look.", CAT), assistant("", CALL), result))
    assert [turn.pictures for turn in prompt_turns(kept, whole)] == [[CAT], [], []]
    assert whole.new == alone.new
    after = told(kept, result, answer=assistant("Asleep."))
    assert after.open == ()
    assert texts(after) == ["Look.\n[image]", 'calls look {"at": "cat"}', "It sleeps.", "Asleep."]


def test_thoughts_are_not_kept_and_how_arguments_are_written_does_not_matter() -> None:
    thinking = Turn("assistant", "Fine.", thinking="hm", calls=(CALL,))
    kept = told(begun(), user("How?"), answer=thinking)
    assert kept.open[-1].thinking is None
    again = assistant(" Fine.", MadeCall("c1", "look", '{"at":"cat"}'))
    result = Turn("tool", "ok", call_id="c1")
    assert asked_of(kept, (user("How?"), again, result)).new == (result,)


def test_an_answer_that_two_turns_share_is_told_by_its_question() -> None:
    first = told(begun(), user("One?"), answer=assistant("Yes."))
    kept = told(first, user("Two?"), answer=assistant("Yes."))
    said = (user("One?"), assistant("Yes."), user("Two?"), assistant("Yes."), user("Three?"))
    assert asked_of(kept, said).new == said[4:]
    assert asked_of(first, said[:3]).new == said[2:3]
    with pytest.raises(BadRequest, match="not among them"):
        asked_of(kept, said[:3])


def test_a_result_needs_its_call() -> None:
    kept = told(begun(), user("Look."), answer=assistant("", CALL))
    for turns in ((Turn("tool", "x", call_id="c2"),), (user("Wait."), Turn("tool", "x", call_id="c1"))):
        with pytest.raises(BadRequest, match="answers no call"):
            asked_of(kept, turns)
    assert texts(closed(kept, PARTS)) == ["Look.", 'calls look {"at": "cat"}']


def test_another_tokenizer_counts_anew_within_the_same_budget() -> None:
    kept = begun(200)
    for number in range(30):
        kept = told(kept, user(f"My friend number {number} is called Ann{number}."), answer=assistant("I see."))
    assert 150 < kept.state.tokens <= 200
    letters = Parts(len, SurfaceImportance(), ExtractiveRefill(len))
    other = counted_anew(kept, letters, "other")
    assert other.counted_by == "other"
    assert 0 < other.state.tokens <= 200 == other.state.budget
    assert other.state.tokens == sum(len(f"{s.head}{s.text}\n") for s in other.state.segments)


def test_a_kept_memory_comes_back_whole_or_is_refused() -> None:
    kept = told(told(begun(), user("Hi."), answer=assistant("Hello.")), user("Look.", CAT), answer=assistant("", CALL))
    assert from_bytes(to_bytes(kept)) == kept
    state = msgspec.structs.replace(kept.state, budget=1)
    for broken in (b"", b"{}", to_bytes(kept)[:-9], to_bytes(msgspec.structs.replace(kept, state=state))):
        with pytest.raises(BadRequest, match="begin anew"):
            from_bytes(broken)


def test_several_instructions_are_one_system_turn_with_the_memory_behind_them() -> None:
    kept = told(begun(), user("Hi."), answer=assistant("Hello."))
    sent = prompt_turns(kept, asked_of(kept, (Turn("system", "A"), Turn("system", "B"), user("x"))))
    assert [turn.role for turn in sent] == ["system", "user"]
    assert sent[0].content.startswith("A\n\nB\n\n")
    assert sent[0].content.endswith("user: Hi.\nassistant: Hello.\n")
    bare = begun()
    assert prompt_turns(bare, asked_of(bare, (user("x"),))) == (user("x"),)


def test_calls_that_the_server_made_are_not_looked_for_in_what_a_client_sends_again() -> None:
    first = told(begun(), user("Hi."), answer=assistant("Hello."))
    own = MadeCall("own", "ask", "{}")
    made = (assistant("", CALL), Turn("tool", "It sleeps.", call_id="c1"))
    said = (user("Hi."), assistant("Hello."), user("And the cat?"))
    asked = asked_of(first, said)

    over = with_answer(first, asked, (*made, assistant("Asleep.")), PARTS, cut=False)
    assert asked_of(over, (*said, assistant("Asleep."), user("Good."))).new == (user("Good."),)

    waiting = with_answer(first, asked, (*made, assistant("", own)), PARTS, cut=False)
    result = Turn("tool", "yes", call_id="own")
    for turns in ((result,), (*said, assistant("", own), result)):
        goes_on = asked_of(waiting, turns)
        assert (goes_on.exchange, goes_on.new) == (waiting.open, (result,))
