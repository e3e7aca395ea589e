"""Answers that cannot be finished: a stream ends with an event that says so, a body stays unfinished, nothing begins
twice, and the log stays quiet about clients that leave."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loreloop.engine.fake import FakeEngine
from loreloop.host.dispatcher import STOPPING, Dispatcher
from loreloop.http import sse
from loreloop.protocol.errors import Unavailable
from loreloop.protocol.link import Token
from tests.http.site import Site, new_model, play, sample
from tests.http.test_leaving import LONG, ROUTES, TOKEN_SECONDS, Line


def breaking(error: Exception):  # type: ignore[no-untyped-def]
    """A stream of the dispatcher that fails when its second token would come."""

    async def stream(self: Dispatcher, request_id: str) -> AsyncIterator[Token]:
        async for item in self.tickets[request_id].stream():
            assert isinstance(item, Token)
            yield item
            raise error

    return stream


@pytest.mark.parametrize(("path", "body"), ROUTES.items())
@pytest.mark.parametrize("error", [RuntimeError("a bug"), Unavailable("send it again in a moment")])
def test_a_stream_that_fails_ends_with_an_event(
    path: str, body: dict[str, Any], error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(site: Site) -> None:
        monkeypatch.setattr(Dispatcher, "stream", breaking(error))
        line = Line(site, path, body | {"stream": True})
        await asyncio.wait_for(line.task, 10)
        assert line.statuses == [200], "one answer begins once"
        last = json.loads(line.body.rstrip().rpartition(b"data: ")[2])
        said = "send it again in a moment" if isinstance(error, Unavailable) else "its log says why"
        assert said in last["error"]["message"]
        assert not site.services.dispatcher.tickets

    play(scene)
    assert ("a bug" in caplog.text) == isinstance(error, RuntimeError)


def test_clients_raise_what_the_last_event_says() -> None:
    said, kind = sse.broken_off("it broke"), {"content-type": "text/event-stream"}
    web = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=said, headers=kind)))
    talker = openai.OpenAI(base_url="http://site/v1", api_key="x", http_client=web)
    turn: Any = {"role": "user", "content": "11"}
    with pytest.raises(openai.APIError, match="it broke"):
        list(talker.chat.completions.create(model="fake", messages=[turn], stream=True))
    with pytest.raises(openai.APIError, match="it broke"):
        list(talker.responses.create(model="fake", input="11", stream=True))
    web2 = httpx2.Client(
        transport=httpx2.MockTransport(lambda request: httpx2.Response(200, content=said, headers=kind))
    )
    claude = anthropic.Anthropic(base_url="http://site", api_key="x", http_client=web2)
    with pytest.raises(anthropic.APIError, match="it broke"):
        list(claude.messages.create(model="fake", messages=[turn], max_tokens=3, stream=True))


def test_another_body_that_fails_stays_unfinished(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"half of it"
        raise RuntimeError("a bug")

    async def route(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="application/octet-stream")

    async def scene(site: Site) -> None:
        site.app.router.routes.insert(0, Route("/half", route, methods=["POST"]))
        line = Line(site, "/half", {})
        await asyncio.wait_for(line.task, 10)
        assert (line.statuses, line.body, line.ended) == ([200], b"half of it", False)

    play(scene, engine=False)
    assert "a bug" in caplog.text


@pytest.mark.parametrize("n_turns", range(6))
@pytest.mark.parametrize("error", [None, RuntimeError("a bug")])
def test_a_stream_that_ends_as_its_client_leaves_is_nothing_to_log(n_turns: int, error: Exception | None) -> None:
    """The client leaves after each number of turns of the event loop, also between the end and anybody's hearing it."""

    async def events() -> AsyncIterator[bytes]:
        if error:
            raise error
        return
        yield b""

    async def run() -> list[dict[str, Any]]:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        left = asyncio.Event()

        async def receive() -> dict[str, str]:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            pass

        stream = sse.EventStream(events(), {}, lambda: None)
        serving = asyncio.ensure_future(stream({"type": "http"}, receive, send))
        for _ in range(n_turns):
            await asyncio.sleep(0)
        serving.cancel()
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.exception()
        del serving, stream
        gc.collect()  # what was never asked for its error says so now
        await asyncio.sleep(0)
        return complaints

    assert asyncio.run(run()) == []


@pytest.mark.timed
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ROUTES.items())
def test_who_waits_while_the_server_stops_hears_so(path: str, body: dict[str, Any], stream: bool) -> None:
    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=TOKEN_SECONDS)
        line = Line(site, path, body | {"stream": stream})
        await line.until(lambda: bool(site.services.dispatcher.tickets))
        await asyncio.sleep(3 * TOKEN_SECONDS)
        site.services.dispatcher.stop()
        await asyncio.wait_for(line.task, 1)
        assert line.statuses == ([200] if stream else [503])
        assert STOPPING.encode() in line.body
        late = await site.client.post(f"http://site{path}", json=LONG | body)
        assert (late.status_code, late.headers["retry-after"], late.headers["connection"]) == (503, "1", "close")

    play(scene, engine=False)


@pytest.mark.timed
def test_polls_are_answered_when_the_server_stops(caplog: pytest.LogCaptureFixture) -> None:
    """A sample is asked for again; a training operation is there at the next start, so its poll hears "not yet"."""

    async def scene(site: Site) -> None:
        made = await site.ok("/create_model", new_model(await site.session()))
        sampled = await site.ok("/asample", sample(await site.sampler()))
        polls = [asyncio.ensure_future(site.post("/retrieve_future", asked)) for asked in (made, sampled)]
        await asyncio.sleep(0.1)
        site.services.dispatcher.stop()
        assert [(await asyncio.wait_for(poll, 1)).status_code for poll in polls] == [408, 503]

    async def with_an_engine_that_answers_nothing(site: Site) -> None:
        site.services.dispatcher.engines["fake"].info.set_result(FakeEngine().info)
        await scene(site)

    play(with_an_engine_that_answers_nothing, engine=False)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
