"""Whose a memory is, what is refused, two writers at once, and the routes that show and change it."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from loreloop.protocol.sampling import SampleOp
from loreloop.store.schema import MEMORIES
from tests.http.scripted import CHAT, LIMIT, MESSAGES, RESPONSES, Script, play_script
from tests.http.site import Site, play
from tests.http.test_leaving import TOKEN_SECONDS, Line
from tests.http.test_remembered import ANN, EACH, STREAMING, assistant, lines, refused, say, shown, user

AT = "http://site/loop/v1/memories"


def during(script: Script, happens: Callable[[], Any]) -> None:
    """Has it happen once while the next answer is drawn, in the engine's thread."""
    draw, loop = script.speaker.draw, asyncio.get_running_loop()

    def drawn(op: SampleOp, index: int, position: int) -> int:
        if position == 0:
            script.speaker.draw = draw  # type: ignore[method-assign]
            asyncio.run_coroutine_threadsafe(happens(), loop).result(10)
        return draw(op, index, position)

    script.speaker.draw = drawn  # type: ignore[method-assign]


@STREAMING
@EACH
def test_a_memory_that_changes_while_the_model_answers_stays_as_it_was_changed(route: str, stream: bool) -> None:
    async def scene(script: Script) -> None:
        await say(script, route, "Noted.", user("My code is 4711."))

        async def forget() -> None:
            assert (await script.site.client.post(f"{AT}/ann/forget", json={"pattern": "code"})).status_code == 200

        during(script, forget)
        told = await say(script, route, "It is 4711.", user("What is it?"), stream=stream)
        warning = (told["delta"] if route == MESSAGES and stream else told)["warning"]
        assert told["memory"]["remembered"] is False
        assert "this turn is not in memory 'ann'" in warning
        assert "another writer was here" in warning
        assert await lines(script.site) == ["assistant: Noted."]
        told = await say(script, route, "I forgot.", user("What is it?"), stream=stream)
        assert told["memory"]["remembered"] is True

    play_script(scene)


@STREAMING
@EACH
def test_of_two_requests_on_one_memory_the_second_is_told_so_at_once(route: str, stream: bool) -> None:
    field = "input" if route == RESPONSES else "messages"

    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=TOKEN_SECONDS)
        body = {"model": "fake", "seed": 1, LIMIT[route]: 20, field: [user("11")], "memory": ANN, "stream": stream}
        first = asyncio.ensure_future(site.client.post(f"http://site{route}", json=body))
        while not site.services.dispatcher.tickets:
            await asyncio.sleep(0.005)
        second = await site.client.post(f"http://site{route}", json=body)
        assert second.status_code == 409
        assert "Another request is on memory 'ann'" in second.json()["error"]["message"]
        other = body | {"memory": ANN | {"id": "bob"}, LIMIT[route]: 1}
        assert (await site.client.post(f"http://site{route}", json=other)).status_code == 200
        assert not first.done()
        assert (await first).status_code == 200
        assert (await shown(site))["turns"] == 2
        assert (await site.client.post(f"http://site{route}", json=body)).status_code == 200

    play(scene, engine=False)


class Hasty(Line):
    """Asks again when it hears that its turn is remembered, before it reads on."""

    again: int | None = None

    def __init__(self, site: Site, path: str, body: dict[str, Any]) -> None:
        super().__init__(site, path, body)
        self.site, self.path, self.body_sent = site, path, body
        self.field = "input" if path == RESPONSES else "messages"

    async def send(self, message: dict[str, Any]) -> None:
        await super().send(message)
        if self.again is None and b'"remembered":' in self.body:
            self.again = 0
            body = {"model": "fake", "seed": 1} | self.body_sent | {"stream": False, self.field: [user("12")]}
            self.again = (await self.site.client.post(f"http://site{self.path}", json=body)).status_code


@EACH
def test_who_is_told_that_a_turn_is_remembered_can_ask_at_once(route: str) -> None:
    field = "input" if route == RESPONSES else "messages"

    async def scene(site: Site) -> None:
        await site.start_engine()
        key = site.new_key("admin")
        site.new_key, site.client = lambda *_: key, site.client_with(key)  # type: ignore[method-assign]
        hasty = Hasty(site, route, {LIMIT[route]: 5, field: [user("11")], "memory": ANN, "stream": True})
        await asyncio.wait_for(hasty.task, 10)
        assert hasty.again == 200
        assert (await shown(site))["turns"] == 4
        assert not site.services.remembering

    play(scene, engine=False)


def test_ids_belong_to_a_key_and_a_user() -> None:
    async def scene(script: Script) -> None:
        site = script.site
        await say(script, CHAT, "One.", user("From nobody."))
        await say(script, RESPONSES, "Two.", user("From Bob."), user="bob")
        await say(script, MESSAGES, "Three.", user("Also from Bob."), metadata={"user_id": "bob"})
        assert await lines(site) == ["user: From nobody.", "assistant: One."]
        assert await lines(site, user="bob") == [
            *("user: From Bob.", "assistant: Two.", "user: Also from Bob.", "assistant: Three.")
        ]
        async with site.client_with(site.new_key("infer")) as stranger:
            for method, path, body in (
                ("GET", "/ann", None),
                ("DELETE", "/ann", None),
                ("POST", "/ann/forget", {"turn": 0}),
                ("POST", "/ann/resize", {"budget_tokens": 900}),
            ):
                answer = await stranger.request(method, AT + path, json=body)
                assert answer.status_code == 404, path
                assert "There is no memory 'ann' of this key" in answer.text
            assert (await stranger.get(AT)).json() == {"memories": [], "total": 0}
            body = {"model": "fake", "messages": [user("Mine.")], "memory": ANN, "max_tokens": 4}
            assert (await stranger.post(f"http://site{CHAT}", json=body)).json()["memory"]["turns"] == 2
        assert (await shown(site))["turns"] == 2

    play_script(scene)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"memory": {"id": "", "budget_tokens": 400}}, "regex"),
    ({"memory": {"id": "a/b", "budget_tokens": 400}}, "regex"),
    ({"memory": {"id": "x" * 201, "budget_tokens": 400}}, "regex"),
    ({"memory": {"id": 7}}, "str"),
    ({"memory": {"id": "new", "budget_tokens": 0}}, ">= 1"),
    ({"memory": {"id": "new", "budget_tokens": 1 << 20}}, "window has 131072"),
    ({"memory": {"id": "new"}}, "say how large it is"),
    ({"memory": {"id": "new", "budget_tokens": 9, "color": 1}}, "color"),
    ({"memory": ANN | {"budget_tokens": 300}}, "begun with a budget of 400 tokens, and 300"),
]


@EACH
def test_what_cannot_be_is_refused_and_changes_nothing(route: str) -> None:
    async def scene(script: Script) -> None:
        await say(script, route, "Noted.", user("My code is 4711."))
        before = await shown(script.site)
        for fields, said in BAD:
            assert said in await refused(script, 400, route, user("x"), **fields), fields
        long = {"metadata": {"user_id": "u" * 201}} if route == MESSAGES else {"user": "u" * 201}
        assert "200" in await refused(script, 400, route, user("x"), **long)
        if route == MESSAGES:
            for user_id in (17, False, ["ann"]):
                metadata = {"metadata": {"user_id": user_id}}
                assert "named by a text" in await refused(script, 400, route, user("x"), **metadata)
        assert "adds no turn" in await refused(script, 400, route, user("My code is 4711."), assistant("Noted."))
        if route == CHAT:
            assert "one answer" in await refused(script, 400, route, user("x"), n=2)
            content = [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]
            await refused(script, 400, route, {"role": "user", "content": content})
        if route == RESPONSES:
            other = {"previous_response_id": "resp_1", "memory": None}
            assert "not here" in await refused(script, 400, route, user("x"), **other)
        assert await shown(script.site) == before
        assert (await script.site.client.get(AT)).json()["total"] == 1

    play_script(scene)


def test_an_earlier_answer_and_a_memory_are_not_both_the_past() -> None:
    async def scene(script: Script) -> None:
        first = await say(script, RESPONSES, "Noted.", user("Hi."), memory=None)
        both = {"previous_response_id": first["id"]}
        assert "send one of them" in await refused(script, 400, RESPONSES, user("x"), **both)

    play_script(scene)


@EACH
def test_a_client_without_the_field_names_its_memory_in_a_header_or_metadata(route: str) -> None:
    async def scene(script: Script) -> None:
        headers = script.site.client.headers
        headers["x-loreloop-memory"] = "ann; budget=400"
        told = await say(script, route, "One.", user("Hi."), memory=None)
        assert told["memory"]["turns"] == 2
        headers["x-loreloop-memory"] = " ann ; pin"
        assert (await say(script, route, "Two.", user("Ho."), memory=None))["memory"]["turns"] == 4
        assert "twice and differently" in await refused(script, 400, route, user("x"))
        assert [s["pinned"] for s in (await shown(script.site))["segments"]] == [False, False, True, False]
        for wrong in (
            "ann;budget=many",
            f"ann;budget={'9' * 5000}",
            "an n",
            "ann;bud get=400",
            "ann;time=-5",
            "ann;x=1",
        ):
            headers["x-loreloop-memory"] = wrong
            assert "is not so" in await refused(script, 400, route, user("x"), memory=None)
        del headers["x-loreloop-memory"]
        if route != CHAT:
            named = {"memory": None, "metadata": {"loreloop_memory": "ann;budget=400"}}
            assert (await say(script, route, "Three.", user("Hi."), **named))["memory"]["turns"] == 6

    play_script(scene)


def test_memories_are_listed_shown_resized_and_deleted() -> None:
    async def scene(script: Script) -> None:
        client = script.site.client
        for id in ("ann", "bob", "cy"):
            for number in range(6):
                await say(script, CHAT, "Noted.", user(f"My friend {number} is Ann{number}."), memory=ANN | {"id": id})
        page = (await client.get(AT, params={"limit": 2})).json()
        assert ([row["id"] for row in page["memories"]], page["total"]) == (["cy", "bob"], 3)
        rest = (await client.get(AT, params={"limit": 2, "offset": 2})).json()["memories"]
        assert [row["id"] for row in rest] == ["ann"]
        for wrong in ({"limit": "0"}, {"offset": "-1"}, {"offset": "x"}):
            assert (await client.get(AT, params=wrong)).status_code == 400
        before = await shown(script.site)
        smaller = await client.post(f"{AT}/ann/resize", json={"budget_tokens": 60})
        assert smaller.json()["budget_tokens"] == 60
        after = await shown(script.site)
        assert 0 < after["tokens"] <= 60 < before["tokens"]
        assert (await client.post(f"{AT}/ann/resize", json={"budget_tokens": 0})).status_code == 400
        gone = (await client.post(f"{AT}/bob/forget", json={"pattern": "friend 3"})).json()
        assert gone["forgotten"]["turns"] == [6]
        assert "Ann3" not in (await shown(script.site, "bob"))["text"]
        for wrong in ({}, {"turn": 1, "pattern": "x"}, {"pattern": "the"}, {"words": "x"}):
            assert (await client.post(f"{AT}/bob/forget", json=wrong)).status_code == 400
        assert (await client.post(f"{AT}/bob/forget", json={"turn": 99})).status_code == 404
        assert (await client.delete(f"{AT}/ann")).json() == {"id": "ann", "deleted": True}
        assert (await client.delete(f"{AT}/ann")).status_code == 404
        assert (await client.get(f"{AT}/ann")).status_code == 404
        told = await say(script, CHAT, "Hello.", user("Hi."))
        assert told["memory"]["turns"] == 2

    play_script(scene)


def test_an_open_exchange_is_forgotten_too() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 4711}}\n</tool_call>'

    async def scene(script: Script) -> None:
        await say(script, CHAT, "Hello.", user("Hi."))
        tools = [{"type": "function", "function": {"name": "f"}}]
        await say(script, CHAT, call, user("What does 4711 mean?"), tools=tools)
        gone = await script.site.client.post(f"{AT}/ann/forget", json={"pattern": "4711"})
        assert gone.json()["forgotten"]["turns"] == [2, 3]
        assert "4711" not in str(await shown(script.site))

    play_script(scene)


def test_what_the_database_gives_and_cannot_be_read_is_told_and_left_as_it_is() -> None:
    async def scene(script: Script) -> None:
        await say(script, CHAT, "Hello.", user("Hi."))
        await script.site.office.store.write(lambda connection: connection.execute(update(MEMORIES).values(data=b"{")))
        assert "cannot read" in await refused(script, 500, CHAT, user("x"))
        answer = await script.site.client.get(f"{AT}/ann")
        assert (answer.status_code, "delete it" in answer.text) == (500, True)
        assert (await script.site.client.delete(f"{AT}/ann")).status_code == 200
        await say(script, CHAT, "Hello.", user("Hi."))

    play_script(scene)


@pytest.mark.parametrize("route", [RESPONSES, MESSAGES])
def test_counting_counts_the_memory_and_keeps_nothing(route: str) -> None:
    field, place = ("input", "/input_tokens") if route == RESPONSES else ("messages", "/count_tokens")

    async def scene(script: Script) -> None:
        await say(script, route, "Noted, and it is a long answer.", user("My code is 4711."))
        body = {"model": "fake", field: [user("What is it?")], "memory": ANN}

        async def counted(body: dict[str, Any]) -> int:
            answer: httpx.Response = await script.site.client.post(f"http://site{route}{place}", json=body)
            return int(answer.json()["input_tokens"])

        n_counted = await counted(body)
        assert n_counted > await counted(body | {"memory": None}) + 10
        assert (await shown(script.site))["turns"] == 2
        told = await say(script, route, "4711.", user("What is it?"))
        assert told["usage"]["input_tokens"] + told["usage"].get("cache_read_input_tokens", 0) == n_counted

    play_script(scene)
