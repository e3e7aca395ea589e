"""Clients that never finish what they began are let go of; those that take their time within the bounds are not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from loreloop.http.connection import BoundedConnection


class Hasty(BoundedConnection):
    head_seconds, body_seconds, body_bytes, read_seconds = 0.4, 0.4, 1000, 0.6


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def slow(request: Request) -> Response:
    """A long poll: it is the server that takes its time."""
    await request.body()
    await asyncio.sleep(1.2)
    return PlainTextResponse("at last")


async def dripping(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for number in range(6):
            await asyncio.sleep(0.2)
            yield b"%d" % number

    return StreamingResponse(events())


async def lazy(request: Request) -> Response:
    """The server reads the body later than it comes."""
    await asyncio.sleep(1.0)
    return PlainTextResponse(str(len(await request.body())))


sent: list[int] = []


async def endless(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            sent.append(1)
            await asyncio.sleep(0)
            yield bytes(1 << 20)

    return StreamingResponse(pieces())


ROUTES = [Route(f"/{f.__name__}", f, methods=["GET", "POST"]) for f in (echo, slow, dripping, lazy, endless)]


def served(scene: Callable[[int], Awaitable[None]]) -> None:
    """Plays against a web server on a port of this machine."""

    async def run() -> None:
        settings = uvicorn.Config(
            Starlette(routes=ROUTES),
            http=Hasty,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(settings)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(256)
            serving = asyncio.create_task(server._serve([listening]))
            try:
                await asyncio.wait_for(scene(listening.getsockname()[1]), 20)
            finally:
                server.should_exit = True
                await serving

    asyncio.run(run())


async def heard(port: int, *parts: bytes, pause: float = 0.0) -> tuple[bytes, float]:
    """What the server says until it hangs up, and after how many seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    started = loop.time()
    reading = asyncio.ensure_future(reader.read())
    for part in parts:
        if not reading.done():
            writer.write(part)
            await asyncio.sleep(pause)
    answer = await asyncio.wait_for(reading, 10)
    writer.close()
    return answer, loop.time() - started


UNFINISHED = {
    "nothing": b"",
    "blank lines": b"\r\n\r\n",
    "a head": b"GET /echo HTTP/1.1\r\nhost: x\r\n",
    "a line": b"GET /ec",
    "a body": b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf",
    "chunks": b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal",
    "a second head": b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\nGET /echo HTTP/1.1\r\n",
}


@pytest.mark.timed
@pytest.mark.parametrize("begun", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_what_is_never_finished_is_let_go_of(begun: bytes) -> None:
    async def scene(port: int) -> None:
        answer, seconds = await heard(port, begun)
        assert 0.3 < seconds < 3
        assert b"408" in answer
        assert b"did not come" in answer or b"came at under" in answer

    served(scene)


def test_sixty_of_them_do_not_keep_others_out() -> None:
    async def scene(port: int) -> None:
        waiting = [asyncio.ensure_future(heard(port, begun)) for begun in UNFINISHED.values() for _ in range(9)]
        await asyncio.sleep(0.1)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/echo", content=b"12345")).text == "5"
        assert not any(each.done() for each in waiting)
        assert all(b"408" in answer for answer, _ in await asyncio.gather(*waiting))

    served(scene)


def test_one_byte_at_a_time_is_no_way_around_it() -> None:
    async def scene(port: int) -> None:
        head = [bytes([byte]) for byte in b"GET /echo HTTP/1.1\r\nx: " + b"y" * 50]
        body = [b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n", *[b"z"] * 50]
        for parts in (head, body):
            answer, _ = await heard(port, *parts, pause=0.05)
            assert b"408" in answer

    served(scene)


def test_a_body_that_keeps_coming_may_take_longer_than_the_bound() -> None:
    async def scene(port: int) -> None:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(8):
                yield bytes(800)
                await asyncio.sleep(0.15)

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/echo", content=parts())).text == "6400"
            assert (await client.post("/lazy", content=bytes(4 << 20))).text == str(4 << 20)

    served(scene)


def test_long_polls_streams_and_kept_connections_are_not_cut() -> None:
    async def scene(port: int) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/slow", content=b"x")).text == "at last"
            await asyncio.sleep(0.8)
            assert (await client.get("/dripping")).text == "012345"

    served(scene)


def test_who_does_not_read_is_let_go_of() -> None:
    async def scene(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.4)
        stuck = len(sent)
        await asyncio.sleep(1.0)
        assert stuck
        assert len(sent) <= stuck + 1, "the stream has ended with its connection"
        assert len(asyncio.all_tasks()) <= 3  # the scene's, the server's two

    served(scene)
