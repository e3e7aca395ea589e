"""A memory between a server's requests: new turns told from old ones, images, another model's count, bytes and back."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.kept import (
    KeptMemory,
    Note,
    asked_of,
    changed_by_hand,
    check_notes,
    closed,
    counted_anew,
    from_bytes,
    gone_back,
    last_time_of,
    prompt_turns,
    to_bytes,
    with_answer,
)
from loreloop.memory.memory import Memory, Parts
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
    return KeptMemory(state=MemoryState(budget), counted_by="base")


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
    assert asked_of(gone_back(kept, said[:3]), said[:3]).new == said[2:3]


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


def asked_again(kept: KeptMemory, *turns: Turn, answer: Turn) -> KeptMemory:
    """As the server does with a request."""
    kept = gone_back(kept, turns)
    return with_answer(kept, asked_of(kept, turns), (answer,), PARTS, cut=False)


def test_a_question_whose_answer_was_lost_is_asked_again_and_stands_once() -> None:
    first = told(begun(), user("One?"), answer=assistant("It is 1."))
    lost = told(first, user("Two?"), answer=assistant("It is 2."))
    said = (user("One?"), assistant("It is 1."), user("Two?"))
    again = asked_again(lost, *said, answer=assistant("It is two."))
    assert texts(again) == ["One?", "It is 1.", "Two?", "It is two."]
    assert (again.state.n_turns, again.state.tokens) == (4, first.state.tokens + 2 * first.state.tokens // 2)
    goes_on = (*said, assistant("It is two."), user("Three?"))
    assert asked_of(again, goes_on).new == goes_on[-1:]
    alone = asked_again(first, user("One?"), answer=assistant("It is one."))
    assert texts(alone) == ["One?", "It is one."], "the whole conversation, so far, is that one question"


def test_who_lacks_answers_or_has_them_in_another_form_adds_only_what_is_new() -> None:
    kept = begun(500)
    for number in range(4):
        kept = told(kept, user(f"Question {number}?"), answer=assistant(f"It is {number}."))
    said = [user("Question 0?"), assistant("It is 0."), user("Question 1?"), assistant("It is")]
    new = user("Four?")
    for behind in (
        (user("Question 2?"), user("Question 3?"), new),
        (user("Question 2?"), assistant("It is 2."), user("Question 3?"), new),
        (user("Question 2?"), assistant("cut sh"), user("Question 3?"), assistant(""), new),
        (new,),
    ):
        found = asked_of(kept, (*said, *behind))
        assert found.new == (new,)
        assert gone_back(kept, (*said, *behind)) is kept


def test_new_messages_alone_may_say_again_what_was_said_before() -> None:
    kept = told(begun(), user("Next."), answer=assistant("First."))
    kept = told(kept, user("Go on."), answer=assistant("Second."))
    for text in ("Next.", "Go on."):
        assert gone_back(kept, (user(text),)) is kept
        assert asked_of(kept, (user(text),)).new == (user(text),)


def test_a_tools_result_whose_answer_was_lost_is_sent_again() -> None:
    waiting = told(begun(), user("Look.", CAT), answer=assistant("", CALL))
    result = Turn("tool", "It sleeps.", call_id="c1")
    lost = told(waiting, result, answer=assistant("Asleep."))
    for turns in ((user("Look.", CAT), assistant("", CALL), result), (result,)):
        back = gone_back(lost, turns)
        assert back.open == waiting.open
        again = asked_again(lost, *turns, answer=assistant("It is asleep."))
        assert texts(again) == ["Look.\n[image]", 'calls look {"at": "cat"}', "It sleeps.", "It is asleep."]


@given(st.lists(st.sampled_from(["heard", "again", "more", "dropped", "partly"]), max_size=14))
def test_whatever_a_client_loses_its_messages_stand_once_and_in_order(fates: list[str]) -> None:
    kept, history, every = begun(100_000), [], []
    for number, fate in enumerate(fates):
        question, answer = user(f"Question {number}?"), assistant(f"Answer {number}.")
        history.append(question)
        every.append(question.content)
        kept = asked_again(kept, *history, answer=answer)
        if fate == "again":
            kept = asked_again(kept, *history, answer=answer)
        if fate in ("heard", "again"):
            history.append(answer)
        elif fate == "partly":
            history.append(assistant(f"Ans {number}"))
        elif fate == "dropped" and any(turn.role == "assistant" for turn in history):
            history.pop()  # without any answer in it, a conversation cannot be told from new messages alone
        assert [segment.text for segment in kept.state.segments if segment.role == "user"] == every
        # Of a request that is asked again one answer stands.
        assert kept.state.n_turns == 2 * len(every)


def test_what_was_taken_out_by_hand_does_not_come_back() -> None:
    waiting = told(begun(), user("My code is 4711."), answer=assistant("", CALL))
    done = told(waiting, Turn("tool", "ok", call_id="c1"), answer=assistant("Fine."))
    memory = Memory(done.state, PARTS)
    memory.forget(pattern="code")
    kept = changed_by_hand(done, memory.state)
    assert b"4711" not in to_bytes(kept)
    assert "4711" not in str(gone_back(kept, (Turn("tool", "ok", call_id="c1"),)))


def test_an_old_kept_memory_is_read_and_a_newer_one_refused() -> None:
    kept = told(begun(), user("Hi."), answer=assistant("Hello."))
    new = json.loads(to_bytes(kept))
    marks = [new["exchanges"][0]["question"], new["exchanges"][0]["answer"]]
    old = {"state": new["state"], "counted_by": "base", "open": [], "marks": marks}
    read = from_bytes(json.dumps(old).encode())
    assert (read.state, counted_anew(read, PARTS, "base").version) == (kept.state, 2)
    said = (user("Hi."), assistant("Hello."), user("Go on."))
    assert asked_of(read, said).new == said[2:]
    assert asked_of(read, (user("Hi."),)).new == (user("Hi."),), "whether more was said before, nobody knows"
    with pytest.raises(BadRequest, match="version 9"):
        from_bytes(json.dumps(new | {"version": 9}).encode())


def test_times_and_pins_outlive_an_open_exchange() -> None:
    notes = [Note(86400.0 * 365, pinned=True)]
    kept = begun(300)
    kept = with_answer(
        kept, asked_of(kept, (user("I went home yesterday."),)), (assistant("", CALL),), PARTS, cut=False, notes=notes
    )
    assert last_time_of(kept) == notes[0].time
    kept = from_bytes(to_bytes(kept))
    past = closed(kept, PARTS)
    assert (past.state.segments[0].head, past.state.segments[0].pinned) == ("user (1 Jan 1971): ", True)
    earlier = asked_of(kept, (user("Hello."),))
    with pytest.raises(BadRequest, match="lies before"):
        check_notes(past, earlier, PARTS, [Note(5.0)])


@pytest.mark.parametrize(
    "pairs",
    [["Go on./OK.", "Why?/So.", "Go on./OK."], ["Go on./OK."] * 2, ["Go on./OK."] * 5, ["Go on./OK.", "Go on./O"]],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_what_was_asked_and_answered_alike_before_can_be_asked_again(pairs: list[str], is_cut: bool) -> None:
    kept, history = begun(1000), list[Turn]()
    for number, pair in enumerate(pairs, 1):
        question, answer = pair.split("/")
        history.append(user(question))
        asked = asked_of(kept, history)
        kept = with_answer(kept, asked, (assistant(answer),), PARTS, cut=is_cut and number == len(pairs))
        history.append(assistant(answer))
    said = [turn.content for turn in history]
    assert texts(kept) == said
    assert texts(asked_again(kept, *history[:-1], answer=assistant("Sure."))) == [*said[:-1], "Sure."]
    goes_on = asked_again(kept, *history, user("Go on."), answer=assistant("Sure."))
    assert texts(goes_on) == [*said, "Go on.", "Sure."]


def test_an_answer_to_the_assistants_question_is_one_when_it_is_asked_again_too() -> None:
    kept = told(begun(), user("Hi."), answer=assistant("Where do you live?"))
    lost = told(kept, user("In Oslo."), answer=assistant("Nice."))
    said = (user("Hi."), assistant("Where do you live?"), user("In Oslo."))
    again = asked_again(lost, *said, answer=assistant("Nice."))
    assert again.state.segments[2].answers
    assert again.state.segments[2].worth == lost.state.segments[2].worth


def test_a_kept_memory_whose_lines_were_not_indented_is_counted_anew() -> None:
    letters = Parts(len, SurfaceImportance(), ExtractiveRefill(len))
    text = "Milk.\nEggs 12.\nTea."
    asked = asked_of(begun(400), (user(text),))
    kept = with_answer(begun(400), asked, (assistant("Noted."),), letters, cut=False)
    new = json.loads(to_bytes(kept))
    new["state"]["segments"][0]["tokens"] = len(f"user: {text}\n")
    old = {"state": new["state"], "counted_by": "base", "open": [], "marks": ["a", "b"]}
    read = from_bytes(json.dumps(old).encode())
    assert counted_anew(read, letters, "base").state.segments == kept.state.segments
    assert counted_anew(kept, letters, "base") is kept
    assert from_bytes(to_bytes(read)) == read, "it is counted when a model is there, not before"
