"""Replicas at the dispatcher: who is given which sample, and what becomes of it when its engine ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import numpy as np
import pytest

from loreloop.config import Config, EngineConfig
from loreloop.engine.fake import FakeEngine, drawn_token
from loreloop.host import dispatcher
from loreloop.host.dispatcher import MAX_SAMPLE_DEATHS
from loreloop.host.link import frame
from loreloop.http.generation.requests import unfailing
from loreloop.protocol.errors import Unavailable
from loreloop.protocol.link import (
    CancelSample,
    DropModel,
    DropRevision,
    FromEngine,
    Hello,
    Leaving,
    Restore,
    Restored,
    Sample,
    SampleEnd,
    Submit,
    ToEngine,
    Token,
    Tokens,
)
from loreloop.protocol.sampling import PromptScores, SampleOp, SampleResult
from loreloop.protocol.token_ids import pack_ids, unpack_ids
from loreloop.protocol.training import Failure, ImageChunk, TextChunk
from tests.host.office import Office, end, office
from tests.host.test_kills import streamed
from tests.scheduler.ops import create, sample

TWO = Config(engine=EngineConfig(replicas=2))


class Engine:
    """One whose every word a test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def at(cls, place: Office, replica: int) -> Engine:
        """Connected, and welcomed."""
        engine = cls(*await asyncio.open_unix_connection(str(place.socket)))
        engine.say(Hello("fake", FakeEngine().info, replica))
        while not isinstance(await engine.hear(), Restored):
            pass
        return engine

    def say(self, message: FromEngine) -> None:
        self.writer.write(frame(message))

    async def hear(self) -> ToEngine:
        length = int.from_bytes(await asyncio.wait_for(self.reader.readexactly(4), 5), "big")
        return msgspec.msgpack.decode(await self.reader.readexactly(length), type=ToEngine)

    async def samples(self, n: int) -> list[str]:
        """The request ids of the next messages."""
        messages = [await self.hear() for _ in range(n)]
        assert all(isinstance(message, Sample) for message in messages)
        return [message.op.request_id for message in messages if isinstance(message, Sample)]

    async def silent(self) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.reader.readexactly(1), 0.05)
            return False
        return True

    def die(self) -> None:
        self.writer.close()


def play(scene: Callable[[Office], Awaitable[None]], config: Config = TWO) -> None:
    async def run() -> None:
        async with office(config) as place:
            await scene(place)

    asyncio.run(run())


def other_prompt(op: SampleOp, number: int) -> SampleOp:
    return msgspec.structs.replace(op, prompt=(TextChunk(pack_ids(np.arange(number, number + 20))),))


def ask(place: Office, *request_ids: str, stream: bool = False) -> None:
    """Samples of prompts that have nothing in common."""
    for request_id in request_ids:
        op = other_prompt(sample(request_id, stream=stream), 100 * int(request_id[1:]))
        assert place.dispatcher.sample(op, "fake")


def test_strangers_go_to_replicas_by_turns_and_training_to_the_other_engine() -> None:
    async def scene(place: Office) -> None:
        trainer, one, two = [await Engine.at(place, number) for number in range(3)]
        ask(place, "r1", "r2", "r3", "r4")
        assert await one.samples(2) == ["r1", "r3"]
        assert await two.samples(2) == ["r2", "r4"]
        made = create(place.run())
        await place.submit(made)
        assert await trainer.hear() == Submit(made)
        await place.dispatcher.drop_model(made.model_id)
        assert await trainer.hear() == DropModel(made.model_id)
        place.dispatcher.drop_revision("gone")
        assert [await engine.hear() for engine in (trainer, one, two)] == [DropRevision("gone")] * 3
        assert [await engine.silent() for engine in (trainer, one, two)] == [True] * 3

    play(scene)


def test_a_conversation_stays_where_it_was() -> None:
    async def scene(place: Office) -> None:
        one, two = [await Engine.at(place, number) for number in (1, 2)]
        ask(place, "r1")
        assert await one.samples(1) == ["r1"]
        chunks = TextChunk(pack_ids(np.arange(100, 120))), TextChunk(pack_ids(np.arange(50)))
        later = msgspec.structs.replace(sample("r2"), prompt=chunks)
        assert place.dispatcher.sample(later, "fake")
        assert await one.samples(1) == ["r2"]
        assert await two.silent()

    play(scene)


def test_samples_of_a_dead_replica_go_to_the_other_behind_what_was_shown() -> None:
    async def scene(place: Office) -> None:
        one, two = [await Engine.at(place, number) for number in (1, 2)]
        ask(place, "r1", "r2", stream=True)
        assert (await one.samples(1), await two.samples(1)) == (["r1"], ["r2"])
        one.say(Tokens("r1", (Token(0, 7, -0.5), Token(0, 8, -0.5))))
        stream = place.dispatcher.stream("r1")
        assert [(await anext(stream)).token for _ in range(2)] == [7, 8]  # type: ignore[union-attr]
        one.die()
        again = await two.hear()
        assert isinstance(again, Sample)
        assert unpack_ids(again.op.resume[0].tokens).tolist() == [7, 8]
        two.say(Tokens("r1", (Token(0, 9, -0.5),)))
        two.say(SampleEnd("r1", SampleResult(())))
        assert [item async for item in stream] == [Token(0, 9, -0.5), SampleResult(())]
        assert await two.silent(), "r2 was in its hands already"

    play(scene)


def test_what_a_replica_says_of_samples_that_it_has_lost_is_not_heard() -> None:
    async def scene(place: Office) -> None:
        one = await Engine.at(place, 1)
        two = await Engine.at(place, 2)
        ask(place, "r1", stream=True)
        assert await one.samples(1) == ["r1"]
        two.say(Tokens("r1", (Token(0, 7, -0.5),)))
        two.say(SampleEnd("r1", Failure("server", "no")))
        assert await place.dispatcher.sample_result("r1", 0.05) is None
        one.say(SampleEnd("r1", SampleResult(())))
        assert await place.dispatcher.sample_result("r1", 5) == SampleResult(())

    play(scene)


def test_without_replicas_the_training_engine_draws_what_has_killed_nobody() -> None:
    async def scene(place: Office) -> None:
        trainer, one = [await Engine.at(place, number) for number in (0, 1)]
        ask(place, "r1")
        assert await one.samples(1) == ["r1"]
        one.die()
        while place.dispatcher.engines["fake"].replicas[0].connection:
            await asyncio.sleep(0.01)
        ask(place, "r2")
        assert await trainer.samples(1) == ["r2"]
        assert await trainer.silent(), "r1 may be what killed a replica"
        two = await Engine.at(place, 2)
        assert await two.samples(1) == ["r1"]

    play(scene)


def test_a_sample_that_waits_for_a_replica_fails_in_time_and_says_to_try_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "REPLICA_SECONDS", 0.3)

    async def scene(place: Office) -> None:
        trainer, one = [await Engine.at(place, number) for number in (0, 1)]
        ask(place, "r1", "r2", stream=True)
        assert await one.samples(2) == ["r1", "r2"]
        one.die()
        again = await Engine.at(place, 1)
        assert await again.samples(2) == ["r1", "r2"]
        await asyncio.sleep(0.5)
        assert await place.dispatcher.sample_result("r1", 0) is None, "it was given again in time"
        again.say(SampleEnd("r1", SampleResult(())))
        assert await place.dispatcher.sample_result("r1", 5) == SampleResult(())
        again.die()
        assert [item async for item in place.dispatcher.stream("r2")] == [dispatcher.NO_REPLICA]
        with pytest.raises(Unavailable, match="send it again later"):
            unfailing(await place.dispatcher.sample_result("r2", 5))
        assert await trainer.silent()

    play(scene)


@pytest.mark.parametrize("n_outside", [1, 3])
def test_what_a_sampler_outside_could_not_draw_goes_to_others_and_at_last_fails(n_outside: int) -> None:
    async def scene(place: Office) -> None:
        trainer = await Engine.at(place, 0)
        outside = [await Engine.at(place, number) for number in range(1, n_outside + 1)]
        ask(place, "r1", stream=True)
        failure = Failure("server", "not now", passing=True)
        for number, engine in enumerate(outside):
            again = await engine.hear()
            assert isinstance(again, Sample)
            assert len(again.op.resume) == min(number, 1)
            engine.say(Tokens("r1", (Token(0, 7, -0.5),)))
            engine.say(SampleEnd("r1", failure))
        if n_outside < MAX_SAMPLE_DEATHS:
            assert await trainer.samples(1) == ["r1"]
            trainer.say(SampleEnd("r1", SampleResult(())))
            assert await place.dispatcher.sample_result("r1", 5) == SampleResult(())
        else:
            assert await place.dispatcher.sample_result("r1", 5) == failure
            assert await trainer.silent()
        assert not any(engine.n_samples for engine in place.dispatcher.engines["fake"].all)

    urls = tuple(f"http://there{number}" for number in range(n_outside))
    play(scene, Config(engine=EngineConfig(samplers=urls)))


def test_a_killer_is_given_up_and_never_meets_the_training_engine() -> None:
    async def scene(place: Office) -> None:
        trainer = await Engine.at(place, 0)
        victims = [await Engine.at(place, 1), await Engine.at(place, 2)]
        ask(place, "r1")
        for number in range(MAX_SAMPLE_DEATHS):
            victim = victims[number % 2]
            assert await victim.samples(1) == ["r1"]
            victim.die()
            if number < MAX_SAMPLE_DEATHS - 1:
                victims[number % 2] = await Engine.at(place, number % 2 + 1)
        result = await place.dispatcher.sample_result("r1", 5)
        assert isinstance(result, Failure)
        assert f"died {MAX_SAMPLE_DEATHS} times" in result.message
        assert await trainer.silent()
        assert [engine.n_samples for engine in place.dispatcher.engines["fake"].all] == [0, 0, 0]

    play(scene)


def test_a_replica_that_leaves_is_given_nothing_and_blames_nobody() -> None:
    async def scene(place: Office) -> None:
        one, two = [await Engine.at(place, number) for number in (1, 2)]
        ask(place, "r1")
        assert await one.samples(1) == ["r1"]
        one.say(Leaving())
        while not place.dispatcher.engines["fake"].replicas[0].leaving:
            await asyncio.sleep(0.01)
        ask(place, "r2", "r3")
        assert await two.samples(2) == ["r2", "r3"]
        one.die()
        assert await two.samples(1) == ["r1"]
        assert place.dispatcher.tickets["r1"].n_deaths == 0
        assert place.dispatcher.engines["fake"].replicas[0].counts.n_deaths == 0

    play(scene)


def test_one_that_comes_before_the_end_of_the_last_was_noticed_takes_over_its_samples() -> None:
    async def scene(place: Office) -> None:
        last = await Engine.at(place, 1)
        ask(place, "r1")
        assert await last.samples(1) == ["r1"]
        now = await Engine.at(place, 1)
        assert await now.samples(1) == ["r1"]
        last.say(SampleEnd("r1", Failure("server", "too late")))
        assert await place.dispatcher.sample_result("r1", 0.05) is None
        now.say(SampleEnd("r1", SampleResult(())))
        assert await place.dispatcher.sample_result("r1", 5) == SampleResult(())

    play(scene)


def test_what_a_sampler_outside_cannot_draw_is_left_to_our_engines() -> None:
    async def scene(place: Office) -> None:
        trainer, outside = [await Engine.at(place, number) for number in (0, 1)]
        plain = sample("r1")
        with_grammar = msgspec.structs.replace(plain.params, grammar='root ::= "a"')
        more = [
            msgspec.structs.replace(plain, request_id="r2", params=with_grammar),
            msgspec.structs.replace(plain, request_id="r3", scores=PromptScores(logprobs=True)),
            msgspec.structs.replace(plain, request_id="r4", topk_sample_logprobs=2),
            msgspec.structs.replace(plain, request_id="r5", routes=True),
            msgspec.structs.replace(plain, request_id="r6", prompt=(ImageChunk(b"", "png", expected_tokens=4),)),
        ]
        for op in (plain, *more):
            assert place.dispatcher.sample(op, "fake")
        assert await outside.samples(1) == ["r1"]
        assert await trainer.samples(5) == [op.request_id for op in more]
        assert await outside.silent()

    play(scene, Config(engine=EngineConfig(samplers=("http://there",))))


def test_a_cancelled_sample_is_cancelled_where_it_is() -> None:
    async def scene(place: Office) -> None:
        one, two = [await Engine.at(place, number) for number in (1, 2)]
        ask(place, "r1", "r2")
        assert (await one.samples(1), await two.samples(1)) == (["r1"], ["r2"])
        place.dispatcher.cancel("r2")
        assert await two.hear() == CancelSample("r2")
        ask(place, "r3")
        assert await two.samples(1) == ["r3"], "it has nothing in hand any more"
        assert await one.silent()

    play(scene)


def test_a_replica_is_told_of_no_state() -> None:
    async def scene(place: Office) -> None:
        await place.submit(create(place.run()))
        reader, writer = await asyncio.open_unix_connection(str(place.socket))
        replica = Engine(reader, writer)
        replica.say(Hello("fake", FakeEngine().info, 1))
        assert [await replica.hear(), await replica.hear()] == [Restore((), (), 1), Restored()]
        assert await replica.silent()

    play(scene)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_samples_and_streams_survive_whichever_engine_is_killed(seed: int) -> None:
    async def scene(place: Office) -> None:
        dice = random.Random(seed)
        processes = [await place.start_engine(0.01, number) for number in range(3)]
        ops = [other_prompt(sample(f"r{i}", n=2, max_tokens=60, stream=i % 2 == 0), 100 * i) for i in range(20)]
        for op in ops:
            assert place.dispatcher.sample(op, "fake")
        streams = [asyncio.create_task(streamed(place, op.request_id)) for op in ops if op.stream]
        # Two deaths, so that whatever is in hand at both of them is not given up yet.
        for number in dice.sample(range(3), 2):
            await asyncio.sleep(dice.uniform(0.4, 0.8))
            await end(processes[number])
            processes[number] = await place.start_engine(0.01, number)
        results = [await place.dispatcher.sample_result(op.request_id, 30) for op in ops]
        for op, result in zip(ops, results, strict=True):
            assert isinstance(result, SampleResult)
            assert [unpack_ids(one.tokens).tolist() for one in result.sequences] == drawn(op)
        for op, shown in zip([op for op in ops if op.stream], await asyncio.gather(*streams), strict=True):
            assert shown == drawn(op)
        assert [engine.n_samples for engine in place.dispatcher.engines["fake"].all] == [0, 0, 0]
        for process in processes:
            await end(process)

    play(scene)


def drawn(op: SampleOp) -> list[list[int]]:
    return [[drawn_token(op, index, position) for position in range(60)] for index in (0, 1)]
