"""Frames cross the socket whole; its end is heard on both sides."""

import asyncio
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.host.link import EngineConnection, EngineLink, frame
from loreloop.protocol.link import (
    Batch,
    BatchDone,
    FromEngine,
    OpEnd,
    Queues,
    Restored,
    SampleEnd,
    Shutdown,
    Submit,
    Token,
    Tokens,
)
from loreloop.protocol.training import Done, Failure
from tests.scheduler.ops import create, forward_backward

MESSAGES: list[FromEngine] = [
    BatchDone(Batch(3, ("a", "b")), (OpEnd("a", Done()), OpEnd("b", Failure("user", "wrong")))),
    Tokens("r", (Token(0, 5, -0.5),)),
    SampleEnd("r", Failure("user", "cancelled")),
    Queues(1, 2, 3),
]


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, Path]]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder) / "link.sock"
        server.bind(str(path))
        server.listen()
        yield server, path


async def read(data: bytes, piece_bytes: int) -> list[FromEngine]:
    """What a connection hears when its bytes come in pieces and then end."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)

    def talk() -> None:
        for at in range(0, len(data), piece_bytes):
            theirs.sendall(data[at : at + piece_bytes])
        theirs.close()

    talking = threading.Thread(target=talk)
    talking.start()
    heard = [message async for message in EngineConnection(reader, writer).messages()]
    talking.join()
    await writer.wait_closed()
    return heard


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(MESSAGES), max_size=5), st.integers(1, 50), st.integers(0, 20))
def test_messages_survive_any_cutting_and_a_torn_last_one_is_the_end(
    messages: list[FromEngine], piece_bytes: int, n_torn: int
) -> None:
    torn = frame(MESSAGES[0])[:n_torn]
    data = b"".join(map(frame, messages)) + torn
    assert asyncio.run(read(data, piece_bytes)) == messages


def test_an_engine_hears_and_says_what_it_should(listening: tuple[socket.socket, Path]) -> None:
    server, path = listening
    link = EngineLink(path)
    other, _ = server.accept()
    other.sendall(frame(Submit(forward_backward("m", 1, 100_000))) + frame(Restored()))
    heard = [link.inbox.get(), link.inbox.get()]
    assert heard == [Submit(forward_backward("m", 1, 100_000)), Restored()]
    for message in MESSAGES:
        link.send(message)
    link.close()  # only when everything has been said
    expected = b"".join(map(frame, MESSAGES))
    assert other.recv(len(expected), socket.MSG_WAITALL) == expected
    other.close()
    assert link.inbox.get(timeout=5) is None


def test_who_closes_a_link_hangs_up(listening: tuple[socket.socket, Path]) -> None:
    server, path = listening
    link = EngineLink(path)
    with server.accept()[0] as other:
        other.settimeout(0.5)
        link.close()
        assert other.recv(1) == b""


@pytest.mark.parametrize("last_words", [b"", b"\x00\x00", frame(Shutdown())[:-1], b"\x00\x00\x00\x02{}"])
def test_an_engine_hears_the_end_of_the_stream_once(listening: tuple[socket.socket, Path], last_words: bytes) -> None:
    server, path = listening
    link = EngineLink(path)
    other, _ = server.accept()
    other.sendall(frame(Submit(create("m"))) + last_words)
    other.close()
    assert link.inbox.get(timeout=5) == Submit(create("m"))
    assert link.inbox.get(timeout=5) is None
    link.close()
