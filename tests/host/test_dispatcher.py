"""The dispatcher over a real store and a real socket, with the fake engine behind it."""

import asyncio
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from loreloop.config import Config, LimitConfig
from loreloop.engine.fake import FakeEngine
from loreloop.host.dispatcher import MAX_OP_DEATHS, MAX_SAMPLE_DEATHS
from loreloop.host.link import frame
from loreloop.protocol.errors import BadRequest, Gone, NotFound, Unavailable
from loreloop.protocol.link import (
    Batch,
    BatchDone,
    BatchStarted,
    FromEngine,
    Hello,
    OpEnd,
    Restored,
    Submit,
    ToEngine,
    Token,
)
from loreloop.protocol.paths import CheckpointKind, CheckpointPath
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.training import Done, Failure, PassResult, StepResult, TrainOp
from loreloop.store import checkpoints, journal
from loreloop.store.rows import Acceptance, AddCheckpoint, CheckpointRow
from tests.host.office import Office, end, office
from tests.scheduler.ops import create, forward_backward, sample, save, step

Scene = Callable[[Office], Awaitable[None]]


def play(scene: Scene, config: Config | None = None) -> None:
    async def run() -> None:
        async with office(config) as place:
            await asyncio.wait_for(scene(place), 20)

    asyncio.run(run())


def test_an_operation_is_executed_and_its_result_kept() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()
        ops: list[TrainOp] = [create(run), forward_backward(run, 1), step(run, 2)]
        await place.submit(*ops)
        kinds = [type((await place.result(op)).result) for op in ops]
        assert kinds == [Done, PassResult, StepResult]
        assert (await place.result(ops[1], 0)).result == (await place.result(ops[1], 0)).result

    play(scene)


def test_an_operation_is_journaled_without_an_engine_and_executed_by_the_next_one() -> None:
    async def scene(place: Office) -> None:
        run = place.run()
        await place.submit(step(run, 1), create(run))
        assert await place.dispatcher.outcome(f"{run}:1", 0.05) is None
        place.start_thread()
        assert isinstance((await place.result(step(run, 1))).result, StepResult)

    play(scene)


def test_a_repeated_operation_runs_once_and_another_one_in_its_place_is_refused() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()
        await place.submit(create(run), step(run, 1), step(run, 1), step(run, 1))
        with pytest.raises(BadRequest, match="used before with another body"):
            await place.submit(forward_backward(run, 1))
        first = await place.result(step(run, 1))
        await place.submit(step(run, 1))
        assert await place.result(step(run, 1)) == first

    play(scene)


def test_a_refused_request_uses_its_sequence_id_up() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()
        await place.submit(create(run), step(run, 2))
        assert await place.dispatcher.outcome(f"{run}:2", 0.05) is None
        await place.dispatcher.skip(run, 1, f"{run}:1", "fake")
        assert isinstance((await place.result(step(run, 2))).result, StepResult)

    play(scene)


def test_unknown_requests_are_not_found_and_expired_ones_gone() -> None:
    async def scene(place: Office) -> None:
        with pytest.raises(NotFound):
            await place.dispatcher.outcome("nobody:1", 0)
        with pytest.raises(Gone):
            await place.dispatcher.sample_result("nobody:sample:0:1", 0)
        place.start_thread()
        run = place.run()
        await place.submit(create(run))
        await place.result(create(run))
        await place.store.write(journal.expire_results, 1e12)
        with pytest.raises(Gone):
            await place.dispatcher.outcome(f"{run}:0", 0)

    play(scene)


def test_everybody_who_waits_for_a_result_gets_it() -> None:
    async def scene(place: Office) -> None:
        run = place.run()
        await place.submit(create(run))
        waiting = [asyncio.create_task(place.result(create(run))) for _ in range(5)]
        await asyncio.sleep(0.05)
        place.start_thread()
        assert [(await outcome).result for outcome in waiting] == [Done()] * 5

    play(scene)


def test_a_second_asker_does_not_silence_the_first() -> None:
    async def scene(place: Office) -> None:
        run = place.run()
        await place.submit(create(run))
        first = asyncio.create_task(place.dispatcher.outcome(f"{run}:0", 2))
        await asyncio.sleep(0.05)
        place.start_thread()
        while place.store.read(journal.outcome, place.store.segments, f"{run}:0") is None:
            await asyncio.sleep(0)
            time.sleep(0.005)  # the result is committed while the loop is held up
        assert await place.dispatcher.outcome(f"{run}:0", 0) is not None
        assert await first is not None

    play(scene)


def test_what_the_engine_says_of_itself_is_waited_for() -> None:
    async def scene(place: Office) -> None:
        asking = asyncio.create_task(place.dispatcher.info("fake"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        place.start_thread()
        assert (await asking).vocab_size == 1000
        with pytest.raises(NotFound, match="not served"):
            await place.dispatcher.info("other")

    play(scene)


def test_a_sample_is_known_by_its_id_and_ends_once() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        assert place.dispatcher.sample(sample("r"), "fake")
        assert not place.dispatcher.sample(sample("r"), "fake")
        result = await place.dispatcher.sample_result("r", 10)
        assert isinstance(result, SampleResult)
        place.dispatcher.cancel("r")
        assert await place.dispatcher.sample_result("r", 0) is result
        place.dispatcher.forget_results(1e12)
        with pytest.raises(Gone):
            await place.dispatcher.sample_result("r", 0)

    play(scene)


def test_a_cancelled_sample_ends_at_once_whether_or_not_an_engine_is_there() -> None:
    async def scene(place: Office) -> None:
        place.dispatcher.sample(sample("r", max_tokens=10000, stream=True), "fake")
        place.dispatcher.cancel("r")
        place.start_thread()
        place.dispatcher.sample(sample("s", max_tokens=10000, stream=True), "fake")
        stream = place.dispatcher.stream("s")
        assert isinstance(await anext(stream), Token)
        place.dispatcher.cancel("s")
        last = [item async for item in stream][-1]
        assert isinstance(last, Failure)
        assert [await place.dispatcher.sample_result(r, 0) for r in "rs"] == [last, last]

    play(scene)


def test_over_the_limit_samples_are_told_to_come_back() -> None:
    async def scene(place: Office) -> None:
        for number in range(3):
            place.dispatcher.sample(sample(f"r{number}"), "fake")
        with pytest.raises(Unavailable):
            place.dispatcher.sample(sample("r3"), "fake")
        place.dispatcher.cancel("r0")
        assert place.dispatcher.sample(sample("r3"), "fake")

    play(scene, Config(limits=LimitConfig(waiting_samples=3)))


def test_two_thousand_samples_all_come_back() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        for number in range(2000):
            place.dispatcher.sample(sample(f"r{number}", f"owner{number % 7}"), "fake")
        results = await asyncio.gather(*(place.dispatcher.sample_result(f"r{n}", 20) for n in range(2000)))
        assert all(isinstance(result, SampleResult) for result in results)

    play(scene)


def test_the_end_of_a_session_ends_all_that_belongs_to_it() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run, request_id = place.run(), f"{place.session_id}:sample:0:0"
        await place.submit(create(run), step(run, 2))  # 1 never comes
        place.dispatcher.sample(sample(request_id, max_tokens=10**6), "fake")
        waiting = asyncio.create_task(place.result(step(run, 2)))
        await place.result(create(run))
        await place.dispatcher.close_session(place.session_id)
        assert isinstance((await waiting).result, Failure)
        assert isinstance(await place.dispatcher.sample_result(request_id, 0), Failure)
        assert (await place.result(create(run))).result == Done()

    play(scene)


def test_a_model_that_was_never_made_can_be_unloaded() -> None:
    async def scene(place: Office) -> None:
        place.start_thread(snapshot_seconds=0)
        run = place.run()
        await place.submit(create(run, rank=65))
        assert isinstance((await place.result(create(run, rank=65))).result, Failure)
        await asyncio.sleep(0.2)
        await place.dispatcher.close_session(place.session_id)

    play(scene)


def checkpoint_of(place: Office, run: str) -> AddCheckpoint:
    folder = str(place.folder / f"{run}-1")
    row = CheckpointRow(run, CheckpointKind.TRAINING, "one", place.key_id, folder, 0.0, 0, None, None)
    return AddCheckpoint(row, None)


def test_a_checkpoint_exists_when_its_result_is_heard_also_after_a_restart_of_everything() -> None:
    async def before(folder: Path) -> tuple[AddCheckpoint, str]:
        async with office(folder=folder) as place:
            run = place.run()
            checkpoint = checkpoint_of(place, run)
            await place.submit(create(run))
            await place.dispatcher.submit(
                save(run, 1, folder), Acceptance("fake", "save", (checkpoint,), {"path": "p"})
            )
        return checkpoint, run

    async def after(folder: Path, checkpoint: AddCheckpoint, run: str) -> None:
        async with office(folder=folder) as place:
            place.start_thread()
            outcome = await place.result(save(run, 1, folder))
            assert outcome.reply == {"path": "p"}
            path = CheckpointPath(run, CheckpointKind.TRAINING, "one")
            row = place.store.read(checkpoints.get, checkpoint.row.key_id, path)
            assert row.size_bytes > 0

    with tempfile.TemporaryDirectory() as name:
        checkpoint, run = asyncio.run(before(Path(name)))
        asyncio.run(after(Path(name), checkpoint, run))


def test_a_failed_save_leaves_no_checkpoint() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()
        await place.submit(create(run, rank=65))
        accepted = Acceptance("fake", "save", (checkpoint_of(place, run),))
        await place.dispatcher.submit(save(run, 1, place.folder), accepted)
        assert isinstance((await place.result(save(run, 1, place.folder))).result, Failure)
        with pytest.raises(NotFound):
            place.store.read(checkpoints.get, place.key_id, CheckpointPath(run, CheckpointKind.TRAINING, "one"))

    play(scene)


def test_a_restarted_http_process_replays_too() -> None:
    async def life(folder: Path, run: str, *, first: bool) -> Office:
        async with office(folder=folder) as place:
            run = run or place.run()
            ops: list[TrainOp] = [create(run), *(forward_backward(run, seq) for seq in range(1, 7)), step(run, 7)]
            await place.submit(*ops[:5] if first else ops[5:])
            engine = await place.start_engine(0.01)
            await place.result(ops[2] if first else ops[-1])
            results.append((await place.result(ops[1])).result)
            await end(engine)
        return place

    results: list[object] = []
    with tempfile.TemporaryDirectory() as name:
        place = asyncio.run(life(Path(name), "", first=True))
        asyncio.run(life(Path(name), f"{place.session_id}:train:0", first=False))
    assert results[0] == results[1]


class Mouth:
    """An engine that says what a test makes it say."""

    def __init__(self, place: Office) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(place.socket))

    def say(self, *messages: FromEngine) -> None:
        self.socket.sendall(b"".join(map(frame, messages)))

    def hears_the_end(self) -> bool:
        with self.socket:
            try:
                return any(not self.socket.recv(1 << 16) for _ in range(100))
            except TimeoutError:
                return False


HELLO = Hello("fake", FakeEngine().info)


def test_an_engine_whose_words_cannot_be_written_down_is_let_go() -> None:
    async def scene(place: Office) -> None:
        run = place.run()
        await place.submit(create(run))
        mouth = Mouth(place)
        mouth.say(HELLO, done(1, f"{run}:0"), done(1, f"{run}:0"))  # the same plan twice
        assert await asyncio.to_thread(mouth.hears_the_end)
        assert (await place.result(create(run))).result == Done()

    play(scene)


def test_the_last_words_of_a_dead_engine_stand_or_are_done_again() -> None:
    """They may still be in the socket when the next one says hello; that costs it at most another start."""

    async def scene(place: Office) -> None:
        run = place.run()
        await place.submit(create(run), step(run, 1))
        first = Mouth(place)
        first.say(HELLO)
        await place.dispatcher.info("fake")
        first.say(*(done(plan_no, f"{run}:{plan_no - 1}") for plan_no in (1, 2)))
        first.socket.close()
        restarting = asyncio.create_task(place.keep_a_thread())
        await place.submit(step(run, 2))
        assert isinstance((await place.result(step(run, 2))).result, StepResult)
        assert isinstance((await place.result(step(run, 1))).result, Done | StepResult)
        restarting.cancel()

    play(scene)


def test_an_operation_that_no_engine_survives_is_given_up_and_its_place_skipped() -> None:
    async def scene(place: Office) -> None:
        run = place.run()
        killer, after = forward_backward(run, 1), step(run, 2)
        await place.submit(create(run))
        place.start_thread()
        await place.result(create(run))
        place.hang_up()
        await place.submit(killer, after)
        for _ in range(MAX_OP_DEATHS):
            reader, writer = await asyncio.open_unix_connection(str(place.socket))
            writer.write(frame(Hello("fake", FakeEngine().info)) + frame(BatchStarted((killer.request_id,))))
            await reader.readexactly(4)  # it was welcomed
            writer.close()
        given_up = (await place.result(killer)).result
        assert isinstance(given_up, Failure)
        assert f"died {MAX_OP_DEATHS} times" in given_up.message
        place.start_thread()
        assert isinstance((await place.result(after)).result, StepResult)

    play(scene)


def test_an_operation_that_shared_a_batch_with_a_killer_outlives_it() -> None:
    """After a death, what was in hand comes back alone: the next deaths show which of them it was."""

    async def scene(place: Office) -> None:
        killer, innocent = forward_backward(place.run(0), 1), forward_backward(place.run(1), 1)
        made = create(killer.model_id), create(innocent.model_id)
        await place.submit(*made)
        place.start_thread()
        for op in made:
            await place.result(op)
        place.hang_up()
        await gone(place)
        await place.submit(killer, innocent)
        in_hand = [{killer.request_id, innocent.request_id}] + [{killer.request_id}] * (MAX_OP_DEATHS - 1)
        for number, ids in enumerate(in_hand):
            reader, writer = await asyncio.open_unix_connection(str(place.socket))
            writer.write(frame(Hello("fake", FakeEngine().info)) + frame(BatchStarted(tuple(ids))))
            alone = {m.op.request_id for m in await heard(reader) if isinstance(m, Submit) and m.alone}
            assert alone == (in_hand[0] if number else set())
            writer.close()
            await gone(place)
        assert isinstance((await place.result(killer)).result, Failure)
        place.start_thread()
        assert isinstance((await place.result(innocent)).result, PassResult)

    play(scene)


def test_a_sample_that_no_engine_survives_is_given_up() -> None:
    async def scene(place: Office) -> None:
        assert place.dispatcher.sample(sample("r"), "fake")
        for _ in range(MAX_SAMPLE_DEATHS):
            assert await place.dispatcher.sample_result("r", 0) is None
            reader, writer = await asyncio.open_unix_connection(str(place.socket))
            writer.write(frame(Hello("fake", FakeEngine().info)))
            await heard(reader)
            writer.close()
            await gone(place)
        given_up = await place.dispatcher.sample_result("r", 5)
        assert isinstance(given_up, Failure)
        assert f"died {MAX_SAMPLE_DEATHS} times" in given_up.message

    play(scene)


async def gone(place: Office) -> None:
    while place.dispatcher.is_up("fake"):
        await asyncio.sleep(0.005)


async def heard(reader: asyncio.StreamReader) -> list[ToEngine]:
    """What a new engine is told before it may go on."""
    messages: list[ToEngine] = []
    while not any(isinstance(message, Restored) for message in messages):
        length = int.from_bytes(await reader.readexactly(4), "big")
        messages.append(msgspec.msgpack.decode(await reader.readexactly(length), type=ToEngine))
    return messages


def done(plan_no: int, request_id: str) -> BatchDone:
    return BatchDone(Batch(plan_no, (request_id,)), (OpEnd(request_id, Done()),))
