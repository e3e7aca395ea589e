"""A ticket: waiters wake at the end, streams show every token once, a resumed request goes on behind them."""

import asyncio

import msgspec
import numpy as np

from loreloop.host.tickets import Ticket
from loreloop.protocol.link import Token
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.training import Failure, ImageChunk, all_ids
from tests.scheduler.ops import sample

END = SampleResult(())


def ticket(*, stream: bool = True, n: int = 1) -> Ticket:
    return Ticket(sample("r", n=n, stream=stream), "fake", None)


def tokens(*ids: int, index: int = 0) -> tuple[Token, ...]:
    return tuple(Token(index, token, -token / 2) for token in ids)


async def shown(ticket: Ticket) -> list[object]:
    return [item.token if isinstance(item, Token) else item async for item in ticket.stream()]


def test_who_waits_wakes_at_the_end() -> None:
    async def run() -> None:
        mine = ticket()
        waiting = [asyncio.create_task(mine.wait(5)) for _ in range(3)]
        mine.add(tokens(1))
        await asyncio.sleep(0)
        mine.end(END, 1.0)
        assert await asyncio.gather(*waiting) == [END] * 3
        assert await mine.wait(0) is END

    asyncio.run(run())


def test_who_waits_too_long_hears_nothing() -> None:
    assert asyncio.run(ticket().wait(0.01)) is None


def test_the_first_end_counts() -> None:
    async def run() -> None:
        mine = ticket()
        mine.end(END, 1.0)
        mine.end(Failure("user", "cancelled"), 2.0)
        assert (await mine.wait(0), mine.ended) == (END, 1.0)

    asyncio.run(run())


def test_streams_show_every_token_from_the_first_one_whenever_they_begin() -> None:
    async def run() -> None:
        mine = ticket()
        early = asyncio.create_task(shown(mine))
        for at in range(1, 6):
            mine.add(tokens(at, 10 * at))
            await asyncio.sleep(0)
        late = asyncio.create_task(shown(mine))
        await asyncio.sleep(0)
        mine.add(tokens(6))
        mine.end(END, 1.0)
        everything = [1, 10, 2, 20, 3, 30, 4, 40, 5, 50, 6, END]
        assert await early == await late == await shown(mine) == everything

    asyncio.run(run())


def test_a_resumed_stream_carries_what_was_shown_of_each_sample() -> None:
    mine = ticket(n=2)
    mine.tokens += [*tokens(4, 5), *tokens(6, index=1), *tokens(7)]
    first, second = mine.resumed().resume
    assert np.frombuffer(first.tokens, "<i4").tolist() == [4, 5, 7]
    assert np.frombuffer(first.logprobs, "<f4").tolist() == [-2.0, -2.5, -3.5]
    assert np.frombuffer(second.tokens, "<i4").tolist() == [6]


def test_what_was_never_shown_is_asked_for_again_as_it_was() -> None:
    mine = ticket(stream=False)
    assert mine.resumed() is mine.op


def test_images_are_let_go_at_the_end_but_not_their_lengths() -> None:
    mine = ticket()
    mine.op = msgspec.structs.replace(mine.op, prompt=(ImageChunk(b"many bytes", "png", 4),))
    mine.end(END, 1.0)
    assert mine.op.prompt == (ImageChunk(b"", "png", 4),)
    assert all_ids(mine.op.prompt) == np.full(4, -1, "<i4").tobytes()
