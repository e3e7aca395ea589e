"""What cannot be read any more ends one operation or one model, with words; everything else goes on."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from loreloop.engine.contract import Pause, no_pause
from loreloop.engine.fake import FakeEngine
from loreloop.host.dispatcher import MAX_OP_DEATHS
from loreloop.host.link import frame
from loreloop.protocol.errors import BadRequest, Unavailable
from loreloop.protocol.link import BatchStarted, Hello
from loreloop.protocol.training import Done, Failure, LoadState, PassResult, SavedResult, StepResult, TrainOp
from loreloop.store import runs
from tests.host.office import Office, office
from tests.scheduler.ops import create, forward_backward, rid, save, step
from tests.store.place import write_now

Scene = Callable[[Office], Awaitable[None]]


def play(scene: Scene) -> None:
    async def run() -> None:
        async with office() as place:
            await asyncio.wait_for(scene(place), 20)

    asyncio.run(run())


async def trained(place: Office, number: int, *more: TrainOp) -> str:
    """A run that an engine has created and given a pass and a step."""
    run = place.run(number)
    ops = [create(run), forward_backward(run, 1), step(run, 2), *more]
    await place.submit(*ops)
    for op in ops:
        assert not isinstance((await place.result(op)).result, Failure)
    return run


async def die(place: Office) -> None:
    """The engine ends without a snapshot of its last work, and its dispatcher has noticed."""
    place.hang_up()
    while place.dispatcher.is_up("fake"):
        await asyncio.sleep(0.01)


def spoil_row(place: Office, request_id: str) -> None:
    statement = "UPDATE ops SET location = CAST(X'7bff00' AS TEXT) WHERE request_id = ?"
    write_now(place.store, lambda connection: connection.exec_driver_sql(statement, (request_id,)))


def lost(place: Office, run: str) -> str:
    """Why a run is lost, empty where it is not."""
    return place.store.read(runs.get, place.key_id, run).lost or ""


def test_an_unreadable_operation_ends_as_a_failure_and_its_model_goes_on() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run, other = await trained(place, 0), await trained(place, 1)
        await die(place)
        await place.submit(step(run, 3), step(run, 4), step(other, 3))
        spoil_row(place, f"{run}:3")
        place.start_thread()
        failure = (await place.result(step(run, 3))).result
        assert isinstance(failure, Failure)
        assert "damaged" in failure.message
        assert isinstance((await place.result(step(run, 4))).result, StepResult)
        assert isinstance((await place.result(step(other, 3))).result, StepResult)

    play(scene)


def test_an_unreadable_operation_that_a_replay_needs_loses_its_model_alone() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run, other = await trained(place, 0), await trained(place, 1)
        await die(place)
        await place.submit(forward_backward(run, 3), forward_backward(other, 3))
        spoil_row(place, f"{run}:1")
        place.start_thread()
        failure = (await place.result(forward_backward(run, 3))).result
        assert isinstance(failure, Failure)
        assert f"{run}:1 would have to be executed again" in failure.message
        assert lost(place, run) == failure.message
        with pytest.raises(BadRequest):
            await place.submit(step(run, 4))
        assert isinstance((await place.result(forward_backward(other, 3))).result, PassResult)
        assert isinstance((await place.result(step(run, 2))).result, StepResult), "what came out stays"

    play(scene)


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "deleted"])
def test_a_damaged_snapshot_loses_its_model_alone_and_is_named(damage: str) -> None:
    async def scene(place: Office) -> None:
        place.start_thread(snapshot_seconds=0)
        run, other = await trained(place, 0), await trained(place, 1)
        await die(place)
        (file,) = place.folder.glob(f"snapshots/{run.replace(':', '_')}.*")
        spoil_file(file, damage)
        await place.submit(step(run, 3), step(other, 3))
        place.start_thread()
        failure = (await place.result(step(run, 3))).result
        assert isinstance(failure, Failure)
        assert str(file) in failure.message
        assert isinstance((await place.result(step(other, 3))).result, StepResult)
        await die(place)
        place.start_thread()
        await place.submit(step(other, 4))
        assert isinstance((await place.result(step(other, 4))).result, StepResult)
        assert lost(place, run) == failure.message
        assert not lost(place, other)

    play(scene)


def spoil_file(file: Path, damage: str) -> None:
    content = file.read_bytes()
    match damage:
        case "flipped":
            file.write_bytes(content.replace(b"weight", b"weighs"))
        case "cut":
            os.truncate(file, len(content) // 2)
        case "emptied":
            os.truncate(file, 0)
        case "deleted":
            file.unlink()


def test_a_load_that_fails_when_it_is_executed_again_loses_its_model() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        saved = save(place.run(0), 3, place.folder)
        run = await trained(place, 0, saved)
        load = LoadState(run, 4, rid(run, 4), saved.folder, True)
        await place.submit(load)
        assert isinstance((await place.result(load)).result, Done)
        await die(place)
        (Path(saved.folder) / "state.json").unlink()
        await place.submit(step(run, 5))
        place.start_thread(engine=Strict())
        assert isinstance((await place.result(saved)).result, SavedResult)
        failure = (await place.result(step(run, 5))).result
        assert isinstance(failure, Failure)
        assert f"{run}:4 fails when it is executed again" in failure.message

    play(scene)


def test_a_load_that_failed_for_a_moment_is_not_made_by_a_replay() -> None:
    """Its client was told that it failed, and what came after it was computed without it."""

    async def scene(place: Office) -> None:
        before, after = Unreading(errno.EIO), FakeEngine()
        place.start_thread(engine=before)
        saved = save(place.run(0), 3, place.folder)
        run = await trained(place, 0, saved, forward_backward(place.run(0), 4), step(place.run(0), 5))
        load = LoadState(run, 6, rid(run, 6), saved.folder, True)
        await place.submit(load, forward_backward(run, 7))
        assert isinstance((await place.result(load)).result, Failure)
        await place.result(forward_backward(run, 7))
        await die(place)
        await place.submit(forward_backward(run, 8))
        place.start_thread(engine=after)
        assert isinstance((await place.result(forward_backward(run, 8))).result, PassResult)
        assert (after.models[run].weight, after.models[run].steps) == (before.models[run].weight, 2)
        assert not lost(place, run)

    play(scene)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_load_that_cannot_be_read_just_now_is_read_by_the_next_engine(number: int) -> None:
    """However often: no number of tries makes trouble that may pass into damage."""

    async def scene(place: Office) -> None:
        place.start_thread()
        saved = save(place.run(0), 3, place.folder)
        run = await trained(place, 0, saved)
        load = LoadState(run, 4, rid(run, 4), saved.folder, True)
        await place.submit(load)
        assert isinstance((await place.result(load)).result, Done)
        await die(place)
        await place.submit(step(run, 5))
        for _ in range(MAX_OP_DEATHS + 1):
            place.start_thread(engine=Unreading(number))
            await asyncio.to_thread(place.threads[-1].join, 10)
            while place.dispatcher.is_up("fake"):
                await asyncio.sleep(0.01)
            assert not lost(place, run)
        place.start_thread(engine=Strict())
        assert isinstance((await place.result(step(run, 5))).result, StepResult)
        assert not lost(place, run)

    play(scene)


def test_a_journal_that_cannot_be_read_just_now_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    async def scene(place: Office) -> None:
        place.start_thread()
        run = await trained(place, 0)
        await die(place)
        await place.submit(step(run, 3))
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", refused)
            with pytest.raises(Unavailable, match="Too many open files"):
                await place.dispatcher.outcome(f"{run}:1", 1.0)
            place.start_thread()
            await asyncio.to_thread(place.threads[-1].join, 10)
        assert not place.dispatcher.is_up("fake")
        assert not lost(place, run)
        place.start_thread()
        assert isinstance((await place.result(step(run, 3))).result, StepResult)
        assert isinstance((await place.result(forward_backward(run, 1))).result, PassResult)

    play(scene)


class Unreading(FakeEngine):
    """Finds no file that it could load from."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def load_state(self, op: LoadState, pause: Pause = no_pause) -> None:
        raise OSError(self.number, os.strerror(self.number), op.folder)


class Strict(FakeEngine):
    """Does not save again, so that a damaged checkpoint stays one; says what it cannot load as the real one does."""

    def save_state(self, op: object, pause: Pause = no_pause) -> SavedResult:
        return SavedResult(0)

    def load_state(self, op: LoadState, pause: Pause = no_pause) -> None:
        if not (Path(op.folder) / "state.json").exists():
            raise BadRequest("its files are gone")
        super().load_state(op, pause)


def test_a_replay_that_no_engine_survives_loses_its_model_alone() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run, other = await trained(place, 0), await trained(place, 1)
        await die(place)
        for _ in range(MAX_OP_DEATHS):
            reader, writer = await asyncio.open_unix_connection(str(place.socket))
            writer.write(frame(Hello("fake", FakeEngine().info)) + frame(BatchStarted((f"{run}:1",))))
            await reader.readexactly(4)  # it was welcomed
            writer.close()
            while place.dispatcher.is_up("fake"):
                await asyncio.sleep(0.01)
        while not lost(place, run):  # the dispatcher writes it down after the engine has gone
            await asyncio.sleep(0.01)
        assert f"died {MAX_OP_DEATHS} times executing {run}:1 again" in lost(place, run)
        await place.submit(step(other, 3))
        place.start_thread()
        assert isinstance((await place.result(step(other, 3))).result, StepResult)

    play(scene)
