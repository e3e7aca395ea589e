"""The sweeper takes what has had its time, leaves the rest, and sleeps until the next thing is due."""

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from loreloop.config import Config, SessionConfig
from loreloop.host.sweeper import LONGEST_SLEEP_SECONDS, Sweeper
from loreloop.protocol.errors import Gone, NotFound, OutOfService
from loreloop.protocol.paths import CheckpointKind, CheckpointPath
from loreloop.protocol.training import Failure, SaveState
from loreloop.store import checkpoints, runs, sessions
from loreloop.store.rows import Acceptance, AddCheckpoint, CheckpointRow
from loreloop.store.segments import Location
from tests.host.office import Office, office
from tests.scheduler.ops import create, sample, step
from tests.store.place import write_now


def play(scene: Callable[[Office, Sweeper], Awaitable[None]], expiry_seconds: float = 600.0) -> None:
    config = Config(session=SessionConfig(expiry_seconds=expiry_seconds))

    async def run() -> None:
        async with office(config) as place:
            place.start_thread()
            await place.dispatcher.info("fake")
            await asyncio.wait_for(scene(place, Sweeper(place.dispatcher)), 20)

    asyncio.run(run())


def test_a_silent_session_ends_with_all_it_had() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        run, request_id = place.run(), f"{place.session_id}:sample:0:0"
        await place.submit(create(run), step(run, 5))
        await place.result(create(run))
        place.dispatcher.sample(sample(request_id, max_tokens=10**6), "fake")
        await sweeper.sweep(time.time() + 599)
        assert place.store.read(sessions.get, place.key_id, place.session_id).status == "active"
        await sweeper.sweep(time.time() + 601)
        assert place.store.read(sessions.get, place.key_id, place.session_id).status == "expired"
        assert not place.store.read(runs.get, place.key_id, run).live
        assert isinstance((await place.result(step(run, 5))).result, Failure)
        assert isinstance(await place.dispatcher.sample_result(request_id, 0), Failure)

    play(scene)


def test_a_close_that_a_crash_cut_short_is_finished() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        run = place.run()
        await place.submit(step(run, 5))
        write_now(place.store, sessions.end, place.key_id, place.session_id, "finished", None)
        await sweeper.sweep(time.time())
        assert not place.store.read(runs.get, place.key_id, run).live
        assert isinstance((await place.result(step(run, 5))).result, Failure)

    play(scene)


def test_a_close_that_a_full_disk_broke_off_is_finished() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        run, segments = place.run(), place.store.segments
        await place.submit(step(run, 5))
        write_now(place.store, sessions.end, place.key_id, place.session_id, "finished", None)
        segments.append = full  # type: ignore[method-assign]
        with pytest.raises(OutOfService):
            await place.dispatcher.close_session(place.session_id)
        del segments.append
        await sweeper.sweep(time.time())
        assert isinstance((await place.result(step(run, 5))).result, Failure)

    play(scene)


def full(body: bytes) -> Location:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_leftovers_of_a_crash_go_when_they_are_old() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        files, now = place.dispatcher.files, time.time()
        kept = files.checkpoint(CheckpointPath("run", CheckpointKind.TRAINING, "kept"))
        leftovers = [kept.with_name(".gone-1"), files.revision("r").with_name(".r.7.tmp"), files.pins / ".half"]
        for folder in (kept, *leftovers):
            folder.mkdir(parents=True)
        await sweeper.sweep(now + 10)
        assert all(folder.exists() for folder in leftovers)
        write_now(place.store, sessions.renew_all, now + 1000)
        await sweeper.sweep(now + 1000)
        assert kept.exists()
        assert not any(folder.exists() for folder in leftovers)

    play(scene)


def test_results_expire_but_pending_ones_stay() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        run = place.run()
        await place.submit(create(run), step(run, 5))
        await place.result(create(run))
        write_now(place.store, sessions.renew_all, time.time() + 4000)
        await sweeper.sweep(time.time() + 3601)
        with pytest.raises(Gone):
            await place.dispatcher.outcome(f"{run}:0", 0)
        assert await place.dispatcher.outcome(f"{run}:5", 0) is None

    play(scene)


def test_an_expired_checkpoint_goes_with_its_files() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        run, now = place.run(), time.time()
        for name, expires in (("short", now + 50), ("long", now + 5000), ("forever", None)):
            folder = place.folder / name
            folder.mkdir()
            row = CheckpointRow(run, CheckpointKind.TRAINING, name, place.key_id, str(folder), now, 1, expires, None)
            write_now(place.store, checkpoints.add, row)
        await sweeper.sweep(now + 51)
        left = {row.name for row in place.store.read(checkpoints.of_run, place.key_id, run)}
        assert left == {"long", "forever"} == {p.name for p in place.folder.iterdir()} & {"short", "long", "forever"}
        path = CheckpointPath(run, CheckpointKind.TRAINING, "short")
        with pytest.raises(NotFound):
            place.store.read(checkpoints.get, place.key_id, path)

    play(scene)


def test_a_deletion_that_a_kill_cut_off_is_finished() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        run, files, now = place.run(), place.dispatcher.files, time.time()
        folders = {}
        for name in ("deleted", "kept"):
            path = CheckpointPath(run, CheckpointKind.TRAINING, name)
            folders[name] = files.checkpoint(path)
            folders[name].mkdir()
            (folders[name] / "state.json").write_text("{}")
            row = CheckpointRow(run, path.kind, name, place.key_id, str(folders[name]), now, 1, None, None)
            write_now(place.store, checkpoints.add, row)
        deleted = CheckpointPath(run, CheckpointKind.TRAINING, "deleted")
        write_now(place.store, checkpoints.remove, place.key_id, deleted)  # and no more: the process is gone
        await sweeper.sweep(now)
        assert list(folders["kept"].parent.iterdir()) == [folders["kept"]]

    play(scene)


def test_a_checkpoint_that_expires_while_it_is_saved_anew_keeps_the_new_files() -> None:
    """The engine may have put them in place already, while the row still is the old one."""

    async def scene(place: Office, sweeper: Sweeper) -> None:
        run, files, now = place.run(), place.dispatcher.files, time.time()
        path = CheckpointPath(run, CheckpointKind.TRAINING, "again")
        folder = files.checkpoint(path)
        folder.mkdir()
        row = CheckpointRow(run, path.kind, "again", place.key_id, str(folder), now, 1, now + 50, None)
        write_now(place.store, checkpoints.add, row)
        save = SaveState(run, 5, f"{run}:5", str(folder))  # waits for its place in the order
        await place.dispatcher.submit(save, Acceptance("fake", "save", (AddCheckpoint(row, None),), {}))
        await sweeper.sweep(now + 51)
        assert place.store.read(checkpoints.of_run, place.key_id, run) == []
        assert folder.exists()
        await place.dispatcher.drop_model(run)
        await sweeper.sweep(now + 52)
        assert not folder.exists()

    play(scene)


def test_files_stay_where_the_write_that_left_them_is_undone() -> None:
    """A full disk undoes all writes that share a transaction, and so does a kill."""

    async def scene(place: Office, sweeper: Sweeper) -> None:
        run, store, until = place.run(), place.store, threading.Event()
        path = CheckpointPath(run, CheckpointKind.TRAINING, "one")
        folder = place.dispatcher.files.checkpoint(path)
        folder.mkdir()
        row = CheckpointRow(run, path.kind, "one", place.key_id, str(folder), time.time(), 1, None, None)
        write_now(store, checkpoints.add, row)
        together = (
            store.write(lambda connection: until.wait(10)),
            store.write(checkpoints.remove, place.key_id, path),
            place.dispatcher.delete_left_files(),
            store.write(lambda connection: connection.exec_driver_sql("ROLLBACK")),
        )
        tasks = [asyncio.create_task(write) for write in together]
        await asyncio.sleep(0.05)
        until.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert folder.exists() == bool(store.read(checkpoints.of_run, place.key_id, run))

    play(scene)


def test_a_pinned_checkpoint_stays_while_a_replay_needs_it() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        run, source = place.run(), place.folder / "source"
        source.mkdir()
        (source / "state.json").write_text('{"weight": 1.0}')
        pins = [place.dispatcher.files.pin(source, request_id) for request_id in (f"{run}:3", "gone:1")]
        await place.submit(step(run, 3))
        write_now(place.store, sessions.renew_all, time.time() + 1000)
        await sweeper.sweep(time.time() + 1000)
        assert [Path(pin).exists() for pin in pins] == [True, False]

    play(scene)


def test_it_sleeps_until_the_first_session_may_be_silent() -> None:
    async def scene(place: Office, sweeper: Sweeper) -> None:
        now = time.time()
        write_now(place.store, sessions.renew_all, now)
        assert sweeper._pause(now) == pytest.approx(20, abs=0.01)
        write_now(place.store, sessions.end, place.key_id, place.session_id, "finished", None)
        assert sweeper._pause(now) == LONGEST_SLEEP_SECONDS

    play(scene, expiry_seconds=20)
