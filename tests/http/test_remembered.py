"""A memory on the server in the place of the past, through every dialect: what the model is sent, and what is kept."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import func, select

from loreloop.host.dispatcher import Dispatcher
from loreloop.http.generation import remembered
from loreloop.http.generation.agent_loop import Tools
from loreloop.http.openai import agent_completions
from loreloop.mcp.toolbox import Bounds, Toolbox, ToolCaller
from loreloop.memory.chat import PREFACE
from loreloop.protocol.sampling import SampleOp
from loreloop.store.rows import ToolCallRecord
from loreloop.store.schema import MEMORIES
from loreloop.text.tools.tool_calls import Tool
from tests.http.scripted import CHAT, LIMIT, MESSAGES, RESPONSES, ROUTES, TOOLS, Script, play_script
from tests.http.site import Site, play
from tests.http.test_broken_streams import breaking
from tests.http.test_leaving import TOKEN_SECONDS, Line
from tests.http.test_told_calls import CALL, texts

ANN = {"id": "ann", "budget_tokens": 400}
EACH = pytest.mark.parametrize("route", ROUTES)
STREAMING = pytest.mark.parametrize("stream", [False, True])


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def say(
    script: Script, route: str, answer: str, *messages: dict[str, Any], stream: bool = False, **fields: Any
) -> dict[str, Any]:
    """The answer; of a stream the event, or the response, that tells of the memory."""
    sent = {"memory": ANN, "tools": None, ("input" if route == RESPONSES else "messages"): list(messages)} | fields
    if not stream:
        return await script.whole(route, answer, **sent)
    events = [event.get("response", event) for event in await script.events(route, answer, **sent)]
    (told,) = [event for event in events if event.get("memory") and event.get("object") != "response.created"]
    return told


async def refused(script: Script, status_code: int, route: str, *messages: dict[str, Any], **fields: Any) -> str:
    n_heard = len(script.speaker.heard)
    sent = {"memory": ANN, "tools": None, ("input" if route == RESPONSES else "messages"): list(messages)} | fields
    answer = await script.ask(route, "never", status_code, **sent)
    assert len(script.speaker.heard) == n_heard
    return str(answer.json()["error"]["message"])


async def shown(site: Site, id: str = "ann", **query: str) -> dict[str, Any]:
    answer = await site.client.get(f"http://site/loop/v1/memories/{id}", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def lines(site: Site, id: str = "ann", **query: str) -> list[str]:
    return [segment["text"] for segment in (await shown(site, id, **query))["segments"]]


@STREAMING
@EACH
def test_the_model_is_sent_the_memory_in_the_place_of_the_past(route: str, stream: bool) -> None:
    async def scene(script: Script) -> None:
        first = await say(script, route, "Noted, Ann.", user("My code is 4711."), stream=stream)
        assert PREFACE not in script.prompt()
        kept = await shown(script.site)
        assert first["memory"] == {name: kept[name] for name in first["memory"] if name != "remembered"} | {
            "remembered": True
        }
        assert (kept["turns"], kept["budget_tokens"]) == (2, 400)
        assert 0 < kept["tokens"] == script.n_tokens(kept["text"])
        await say(script, route, "It is 4711.", user("What is it?"), stream=stream)
        past = f"{PREFACE}user: My code is 4711.\nassistant: Noted, Ann.\n"
        assert script.prompt().count(past) == 1
        assert script.prompt().count("My code") == 1
        assert script.prompt().index(past) < script.prompt().index("What is it?")
        assert await lines(script.site) == [
            *("user: My code is 4711.", "assistant: Noted, Ann.", "user: What is it?", "assistant: It is 4711.")
        ]

    play_script(scene)


@EACH
def test_instructions_stand_before_the_memory_and_are_not_remembered(route: str) -> None:
    instructions = {CHAT: {}, RESPONSES: {"instructions": "Be brief."}, MESSAGES: {"system": "Be brief."}}[route]
    before = [{"role": "system", "content": "Be brief."}] if route == CHAT else []

    async def scene(script: Script) -> None:
        for number in range(3):
            await say(script, route, f"Answer {number}.", *before, user(f"Question {number}?"), **instructions)
        assert f"Be brief.\n\n{PREFACE}user: Question 0?\nassistant: Answer 0.\n" in script.prompt()
        assert script.prompt().count("Be brief.") == 1
        assert "Be brief." not in (await shown(script.site))["text"]

    play_script(scene)


def test_as_long_as_turns_fit_a_prompt_begins_as_the_one_before() -> None:
    """The engine's cache of prefixes goes by this."""

    async def scene(script: Script) -> None:
        past = ""
        for number in range(8):
            await say(script, CHAT, f"Answer {number}.", user(f"Question {number}?"))
            assert script.prompt().startswith(past)
            text = (await shown(script.site))["text"]
            past = script.prompt()[: script.prompt().index(PREFACE)] + PREFACE + text if number else ""

    play_script(scene)


def test_a_long_conversation_stays_within_its_budget() -> None:
    async def scene(script: Script) -> None:
        for number in range(40):
            told = await say(script, CHAT, f"I see, {number}.", user(f"My friend number {number} is Ann{number}."))
            assert told["memory"]["tokens"] <= 400
        assert told["memory"]["turns"] == 80
        assert script.n_tokens(script.prompt()) < 600

    play_script(scene)


@EACH
def test_who_sends_the_whole_conversation_has_it_remembered_once(route: str) -> None:
    async def scene(script: Script) -> None:
        said = [user("One?"), assistant("It is 1."), user("Two?")]
        await say(script, route, "It is 2.", *said)  # a memory that begins takes what came before
        said += [assistant("It is 2.\n"), user("Three?")]
        await say(script, route, "It is 3.", *said)
        assert script.prompt().count("One?") == script.prompt().count("Two?") == 1
        before = await shown(script.site)
        assert before["text"].splitlines() == [
            *("user: One?", "assistant: It is 1.", "user: Two?", "assistant: It is 2."),
            *("user: Three?", "assistant: It is 3."),
        ]
        again = await refused(script, 400, route, user("Never said."), assistant("Nor this."), user("Four?"))
        assert "does not know" in again
        assert await shown(script.site) == before

    play_script(scene)


@STREAMING
@EACH
def test_tools_are_called_and_their_results_remembered(route: str, stream: bool) -> None:
    async def scene(script: Script) -> None:
        await say(script, route, "Hello.", user("Hi."))
        asked = {("input" if route == RESPONSES else "messages"): [user("Fox?")], "memory": ANN, "stream": stream}
        called = (await script.ask(route, CALL, **asked)).text
        kept = await shown(script.site)
        assert kept["turns"] == 4
        assert [turn["role"] for turn in kept["open"]] == ["user", "assistant"]
        assert "Fox?" not in kept["text"]
        ((call_id, _, _),) = [call.values() for turn in kept["open"] for call in turn["calls"]]
        assert f'"{call_id}"' in called, "the client answers this call by the id that it was told"
        result = {
            CHAT: {"role": "tool", "tool_call_id": call_id, "content": "brown"},
            RESPONSES: {"type": "function_call_output", "call_id": call_id, "output": "brown"},
            MESSAGES: user([{"type": "tool_result", "tool_use_id": call_id, "content": "brown"}]),  # type: ignore[arg-type]
        }[route]
        await say(script, route, "It is brown.", result, tools=TOOLS[route], stream=stream)
        prompt = script.prompt()
        at = [prompt.index(text) for text in ("assistant: Hello.", "Fox?", "the quick brown fox", "brown")]
        assert at[:3] == sorted(at[:3])
        assert prompt.count("Fox?") == 1
        text = (await shown(script.site))["text"]
        assert text.splitlines()[2:] == [
            "user: Fox?",
            'assistant: calls f {"x": ["the quick brown fox", "jumps over the lazy dog"]}',
            *("tool: brown", "assistant: It is brown."),
        ]
        other = json.loads(json.dumps(result).replace(call_id, "never"))
        assert "answers no call" in await refused(script, 400, route, other)

    play_script(scene)


def test_an_exchange_that_is_given_up_is_past() -> None:
    async def scene(script: Script) -> None:
        await say(script, CHAT, CALL, user("Fox?"), tools=TOOLS[CHAT])
        await say(script, CHAT, "Fine.", user("Never mind."))
        assert "user: Fox?\nassistant: calls f" in script.prompt()
        assert (await lines(script.site))[0] == "user: Fox?"
        assert len(await lines(script.site)) == 4

    play_script(scene)


@EACH
def test_of_a_stream_that_is_left_what_was_shown_is_remembered(route: str) -> None:
    field = "input" if route == RESPONSES else "messages"

    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=TOKEN_SECONDS)
        key = site.new_key("infer")
        site.new_key = lambda *_: key  # type: ignore[method-assign]
        body = {field: [user("11")], LIMIT[route]: 4000, "memory": ANN}
        line = Line(site, route, body | {"stream": True})
        await line.until(lambda: line.body.count(b"delta") > 20)
        await line.hang_up()
        async with site.client_with(key) as client:
            kept = (await client.get("http://site/loop/v1/memories/ann")).json()
            events = [json.loads(part.split(b"data: ")[1]) for part in line.body.split(b"\n\n") if b"data: {" in part]
            heard = texts(route, events).split()
            remembered = kept["segments"][1]["text"].split()[1:]
            assert len(heard) > 5
            assert remembered[: len(heard)] == heard
            assert len(remembered) <= len(heard) + 1  # what was on its way
            # A client may have got less than we sent, and sends back what it got.
            said = [user("11"), assistant(" ".join(heard[:3])), user("12")]
            asked = body | {"model": "fake", field: said, LIMIT[route]: 2}
            assert (await client.post(f"http://site{route}", json=asked)).json()["memory"]["turns"] == 4

    play(scene, engine=False)


@EACH
def test_a_stream_that_breaks_and_an_answer_that_nobody_waits_for_change_nothing(
    route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = "input" if route == RESPONSES else "messages"

    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=TOKEN_SECONDS)
        body = {field: [user("11")], LIMIT[route]: 4000, "memory": ANN}
        waiting = Line(site, route, body)
        await waiting.until(lambda: bool(site.services.dispatcher.tickets))
        await waiting.hang_up()
        monkeypatch.setattr(Dispatcher, "stream", breaking(RuntimeError("a bug")))
        broken = Line(site, route, body | {"stream": True})
        await asyncio.wait_for(broken.task, 10)
        assert b"its log says why" in broken.body
        with site.office.store.engine.connect() as connection:
            assert connection.execute(select(func.count()).select_from(MEMORIES)).scalar() == 0
        assert not site.services.remembering

    play(scene, engine=False)


class Served(Tools):
    """One registered tool, which answers at once."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Toolbox]:  # type: ignore[override]
        yield Answering({}, (Tool("server__f", "", {"type": "object"}),), self.bounds, self.caller, deadline=1e12)


class Answering(Toolbox):
    async def call(self, name: str, arguments: str) -> str:
        return "brown"

    def holds(self, name: str) -> bool:
        return name == "server__f"


@STREAMING
def test_what_the_server_called_itself_is_remembered(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def record(call: ToolCallRecord) -> None:
        pass

    served = Served((), Bounds(max_calls=1), ToolCaller("k", "r", record))
    call = '<tool_call>\n{"name": "server__f", "arguments": {"x": 1}}\n</tool_call>'

    async def scene(script: Script) -> None:
        monkeypatch.setattr(agent_completions, "tools_of", lambda *_: served)
        asked = {"tools": [{"type": "mcp", "server_label": "server"}], "agent_loop": {"max_calls": 1}}
        second = script.text.tokenizer.encode("It is brown.")
        draw = script.speaker.draw

        def answers(op: SampleOp, index: int, position: int) -> int:
            return draw(op, index, position) if len(script.speaker.heard) == 1 else [*second, 0][position]

        script.speaker.draw = answers  # type: ignore[method-assign]
        told = await say(script, CHAT, call, user("Fox?"), stream=stream, **asked)
        assert told["memory"]["turns"] == 4
        assert (await lines(script.site)) == [
            *("user: Fox?", 'assistant: calls server__f {"x": 1}', "tool: brown", "assistant: It is brown.")
        ]

    play_script(scene)


@STREAMING
def test_calls_that_a_loop_leaves_to_its_caller_are_remembered_as_told(stream: bool) -> None:
    async def scene(script: Script) -> None:
        asked = {"tools": TOOLS[CHAT], "memory": ANN, "agent_loop": {}, "stream": stream}
        told = (await script.ask(CHAT, CALL, messages=[user("Fox?")], **asked)).text
        ((call_id, _, _),) = [c.values() for turn in (await shown(script.site))["open"] for c in turn["calls"]]
        assert f'"{call_id}"' in told
        result = {"role": "tool", "tool_call_id": call_id, "content": "brown"}
        await say(script, CHAT, "It is brown.", result, tools=TOOLS[CHAT], agent_loop={}, stream=stream)
        assert (await lines(script.site))[-2:] == ["tool: brown", "assistant: It is brown."]

    play_script(scene)


def test_nothing_is_counted_or_edited_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*arguments, **named)

        return call

    for name in ("asked_of", "closed", "from_bytes", "with_answer", "to_bytes"):
        monkeypatch.setattr(remembered, name, noted(getattr(remembered, name)))

    async def scene(script: Script) -> None:
        for _ in range(2):
            await say(script, CHAT, "Noted.", user("Hi."))
        assert len(threads) == 9
        assert threading.get_ident() not in threads

    play_script(scene)
