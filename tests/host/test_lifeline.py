"""The first process gathers the others, whoever else may connect."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from loreloop.host.lifeline import GREETING_SECONDS, Lifelines, hold
from loreloop.protocol.errors import ServerError


def nobody(*_: object) -> None:
    """Not wanted here."""


def stranger(lines: Lifelines, said: bytes) -> socket.socket:
    connection = socket.create_connection((lines.address.host, lines.address.port), timeout=5)
    connection.sendall(said)
    return connection


@pytest.mark.timed
def test_what_strangers_say_or_do_not_say_ends_and_holds_up_nothing() -> None:
    lines = Lifelines("127.0.0.1", "secret")
    greetings = ["1 é".encode(), "² secret".encode(), b"7 secret", b"\xff\xfe", b"", b"", b"", b""]
    strangers = [stranger(lines, said) for said in greetings]
    rank = threading.Timer(0.1, lambda: held.append(hold(lines.address, 1, nobody)))
    held: list[socket.socket] = []
    began = time.monotonic()
    rank.start()
    lines.gather({1: "rank 1"}, 30.0, nobody)
    rank.join()
    assert time.monotonic() - began < GREETING_SECONDS
    assert len(held) == 1
    for connection in (*strangers, *held):
        connection.close()


def test_a_rank_that_does_not_come_is_named() -> None:
    lines = Lifelines("127.0.0.1", "secret")
    with stranger(lines, b"2 wrong"), pytest.raises(ServerError, match=r"within 0\.3 s from rank 2 over"):
        lines.gather({2: "rank 2"}, 0.3, nobody)
