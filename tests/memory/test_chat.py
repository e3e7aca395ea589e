"""MemoryChat with the `openai` package's own client, against a server that is written down here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loreloop.memory.chat import PREFACE, MemoryChat, NotRemembered
from loreloop.memory.file_store import FileStore
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.memory import Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.protocol.errors import BadRequest, Conflict
from tests.memory.conversations import count

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


class Server:
    """Answers what it was told to, in order, and keeps what it was sent."""

    def __init__(self, *answers: dict[str, Any] | int) -> None:
        self.answers, self.sent = list(answers), list[dict[str, Any]]()
        self.before_answer: Callable[[], object] = lambda: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.sent.append(body)
        answer = self.answers.pop(0)
        self.before_answer()
        if isinstance(answer, int):
            return httpx.Response(answer, json={"error": {"message": "no"}})
        if body.get("stream"):
            return httpx.Response(200, text=streamed(answer), headers={"content-type": "text/event-stream"})
        return httpx.Response(200, json=whole(answer))

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.sent[-1]["messages"])


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **answer}}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def streamed(answer: dict[str, Any]) -> str:
    """A word an event; a tool call in two pieces; "BROKEN" breaks the stream."""
    deltas: list[dict[str, Any]] = [{"content": f"{word} "} for word in (answer.get("content") or "").split()]
    for number, call in enumerate(answer.get("tool_calls", ())):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        first = {"index": number, "id": call["id"], "function": {"name": name, "arguments": arguments[:4]}}
        deltas.append({"tool_calls": [first]})
        deltas.append({"tool_calls": [{"index": number, "function": {"arguments": arguments[4:]}}]})
    lines = []
    for delta in deltas:
        if delta.get("content") == "BROKEN ":
            return "".join(lines) + 'data: {"error": {"message": "broke"}}\n\n'
        event = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        lines.append(f"data: {json.dumps({**event, 'choices': [{'index': 0, 'delta': delta}]})}\n\n")
    return "".join(lines) + f"data: {json.dumps({**event, 'choices': []})}\n\ndata: [DONE]\n\n"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def chat_with(server: Server, store: FileStore, id: str = "ann", **more: Any) -> MemoryChat:
    transport = httpx.Client(transport=httpx.MockTransport(server))
    client = openai.OpenAI(base_url="http://any.example/v1", api_key="k", http_client=transport, max_retries=0)
    parts = Parts(count, SurfaceImportance(), ExtractiveRefill(count))
    return MemoryChat(client, "m", id, store, parts, **{"budget": 300, **more})


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def texts(chat: MemoryChat) -> list[str]:
    return [segment.text for segment in chat.memory.state.segments]


def test_the_model_sees_the_memory_in_place_of_the_past(store: FileStore) -> None:
    server = Server({"content": "Noted."}, {"content": "4711."})
    chat = chat_with(server, store)
    chat.send([user("My locker code is 4711.")], temperature=0.5)
    assert server.messages == [user("My locker code is 4711.")]
    assert server.sent[0]["temperature"] == 0.5
    instructions = {"role": "system", "content": "Be brief."}
    answer = chat.send([instructions, user("What is my code?")])
    assert answer.choices[0].message.content == "4711."
    memory = "user: My locker code is 4711.\nassistant: Noted.\n"
    assert server.messages == [
        {"role": "system", "content": f"Be brief.\n\n{PREFACE}{memory}"},
        user("What is my code?"),
    ]
    assert texts(chat) == ["My locker code is 4711.", "Noted.", "What is my code?", "4711."]


def test_a_long_conversation_stays_within_the_budget_and_goes_on_later(store: FileStore) -> None:
    server = Server(*[{"content": f"I see, number {n}."} for n in range(61)])
    chat = chat_with(server, store)
    for number in range(60):
        chat.send([user(f"My friend number {number} is called Ann{number}.")])
        past = server.messages[0]["content"].removeprefix(PREFACE) if number else ""
        assert count(past) <= 300
    again = chat_with(server, store)
    assert again.memory.state == chat.memory.state
    again.send([user("And now?")])
    assert again.memory.state.n_turns == 122


def test_a_stream_is_remembered_once(store: FileStore) -> None:
    server = Server({"content": "It is Odin."})
    chat = chat_with(server, store)
    assert len(list(chat.stream([user("Name my cat Odin.")]))) == 4
    assert texts(chat) == ["Name my cat Odin.", "It is Odin."]
    assert chat_with(server, store).memory.state.n_turns == 2


@pytest.mark.parametrize("how", ["closed", "Ctrl-C"])
def test_a_stream_that_is_left_keeps_what_was_heard(store: FileStore, how: str) -> None:
    chat = chat_with(Server({"content": "One two three."}), store)
    stream = chat.stream([user("Count.")])
    next(stream)
    next(stream)
    if how == "closed":
        stream.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt())
    assert texts(chat) == ["Count.", "One two"]


@pytest.mark.parametrize("how", ["refused", "broken", "not begun", "no message"])
def test_what_fails_changes_nothing(store: FileStore, how: str) -> None:
    server = Server({"content": "Hello."}, 500 if how == "refused" else {"content": "One BROKEN"}, {"content": "Two."})
    chat = chat_with(server, store)
    chat.send([user("Hi.")])
    before, stored = chat.memory.state, store.load("ann")
    if how == "refused":
        with pytest.raises(openai.InternalServerError):
            chat.send([user("Lost?")])
    elif how == "broken":
        with pytest.raises(openai.APIError):
            list(chat.stream([user("Lost?")]))
    elif how == "not begun":
        chat.stream([user("Lost?")]).close()
    else:
        for wrong in ([], [{"role": "robot", "content": "x"}], [{"role": "user", "content": [{"type": "smell"}]}]):
            with pytest.raises(BadRequest):
                chat.send(wrong)
    assert chat.memory.state is before
    assert store.load("ann") == stored


@pytest.mark.parametrize("streaming", [False, True])
def test_tools_and_their_results_pass(store: FileStore, streaming: bool) -> None:
    server = Server(
        {"content": "Hi."}, {"content": None, "tool_calls": [CALL]}, {"content": "Rain."}, {"content": "5."}
    )
    chat = chat_with(server, store)

    def say(*messages: dict[str, Any]) -> None:
        if streaming:
            list(chat.stream(list(messages), tools=[]))
        else:
            chat.send(list(messages), tools=[])

    say(user("Hello."))
    say(user("Weather in Oslo?"))
    past = server.messages[0]
    result = {"role": "tool", "tool_call_id": "c1", "content": "rain, 7 degrees"}
    say(result)
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert server.messages == [past, user("Weather in Oslo?"), call, result]
    say(user("Thanks."))
    assert [m["role"] for m in server.messages] == ["system", "user"]
    assert "tool: rain, 7 degrees" in server.messages[0]["content"]
    assert 'calls weather {"city": "Oslo"}' in server.messages[0]["content"]
    assert chat.memory.state.n_turns == 8
    with pytest.raises(BadRequest, match="no call"):
        chat.send([result])


def test_an_old_image_is_its_caption_or_a_marker(store: FileStore) -> None:
    server = Server({"content": "Nice."}, {"content": "Yes."})
    chat = chat_with(server, store, caption_of=lambda url: "Odin the cat" if url == "data:cat" else "")
    images = [{"type": "image_url", "image_url": {"url": url}} for url in ("data:cat", "data:other")]
    seen = {"role": "user", "content": [{"type": "text", "text": "Look."}, *images]}
    chat.send([seen])
    assert server.messages == [seen]
    chat.send([user("Nice?")])
    assert "Look.\n [image: Odin the cat]\n [image]" in server.messages[0]["content"]
    assert "data:" not in server.messages[0]["content"]


def test_two_chats_on_one_memory(store: FileStore) -> None:
    server = Server({"content": "One."}, {"content": "Two."}, {"content": "Three."})
    first, second = chat_with(server, store), chat_with(server, store)
    other = chat_with(server, store, id="bob")
    first.send([user("From the first.")])
    with pytest.raises(Conflict, match="another chat"):
        second.send([user("From the second.")])
    assert len(server.sent) == 1
    second = chat_with(server, store)
    server.before_answer = lambda: store.save("ann", b"{}", after=second.revision)
    before = second.memory.state
    with pytest.raises(NotRemembered) as caught:
        second.send([user("Again.")])
    assert caught.value.answer["content"] == "Two."
    assert second.memory.state is before
    server.before_answer = lambda: None
    other.send([user("Mine.")])
    assert texts(other) == ["Mine.", "Three."]


def test_forgetting_is_saved_and_a_foreign_budget_refused(store: FileStore) -> None:
    server = Server({"content": "Noted."})
    chat = chat_with(server, store)
    chat.send([user("My locker code is 4711.")])
    assert chat.forget(pattern="locker code").turns == (0,)
    assert texts(chat_with(server, store)) == ["Noted."]
    with pytest.raises(BadRequest, match="budget of 300"):
        chat_with(server, store, budget=200)
    with pytest.raises(BadRequest, match="one answer"):
        chat.send([user("Hi.")], n=2)


def test_a_turn_is_pinned_and_dated_and_what_cannot_be_is_refused_before_it_is_sent(store: FileStore) -> None:
    server = Server({"content": "So you said yesterday."}, {"content": "Noted."})
    chat = chat_with(server, store)
    chat.send([{"role": "user", "content": "I was in Oslo yesterday."}], pin=True, time=1682942400.0)
    list(chat.stream([{"role": "user", "content": "Today I am well."}], time=1682942400.0 + 86400))
    found = chat.memory.state.segments
    assert [segment.head for segment in found[:3]] == [
        *("user (1 May 2023): ", "assistant (1 May 2023): ", "user (2 May 2023): ")
    ]
    assert [segment.pinned for segment in found] == [True, False, False, False]
    before = chat.memory.state
    with pytest.raises(BadRequest, match="lies before"):
        chat.send([{"role": "user", "content": "Hello."}], time=5.0)
    with pytest.raises(BadRequest, match="pin less"):
        chat.send([{"role": "user", "content": "word " * 5000}], pin=True)
    assert chat.memory.state is before
    assert len(server.sent) == 2
