"""What is acknowledged is on the disk: the order of syncs as the system gets them, and syncs that fail.

A library that is loaded before libc's notes the calls, and lets one of them fail.
"""

import asyncio
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from loreloop.protocol.errors import OutOfService
from loreloop.protocol.syncing import CANNOT_SYNC
from loreloop.store import journal
from loreloop.store.rows import Acceptance
from loreloop.store.store import Store
from tests.scheduler.ops import step
from tests.store.durable_work import N_OPS, prepared

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepared(tmp_path / "data")
    return tmp_path / "data"


def worked(shim: Path, folder: Path, durability: str = "power", **settings: str) -> tuple[int, list[str], str]:
    """The exit code, the notes in their order, and what was said."""
    log = folder.parent / "notes"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.store.durable_work", str(folder), str(log), durability]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "SYNC_LOG": str(log), **settings}
    done = subprocess.run(command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=60)
    notes = [line.partition(" ")[2] if line[0].isdigit() else line for line in log.read_text().splitlines()]
    return done.returncode, notes, done.stderr


def between_acknowledgements(notes: list[str]) -> Iterator[list[str]]:
    """The kinds of files that were synced before each acknowledgement, since the one before."""
    synced: list[str] = []
    for line in notes[notes.index("opened") + 1 :]:
        if line.startswith("acknowledged"):
            yield synced
            synced = []
        elif line.startswith("sync"):
            synced.append(line.rpartition(".")[2])


def test_a_body_is_synced_before_its_row_and_both_before_the_answer(shim: Path, folder: Path) -> None:
    code, notes, _ = worked(shim, folder)
    assert code == 0
    synced = list(between_acknowledgements(notes))
    assert [(kinds[0], kinds[-1]) for kinds in synced] == [("seg", "db-wal")] * N_OPS
    # The first one makes a new log, whose header and name SQLite syncs as well.
    assert [len(kinds) for kinds in synced[1:]] == [2] * (N_OPS - 1)


def test_a_server_that_is_to_survive_processes_alone_waits_for_no_disk(shim: Path, folder: Path) -> None:
    _, notes, _ = worked(shim, folder, "os")
    # At the first one SQLite syncs the head of its new log.
    assert list(between_acknowledgements(notes))[1:] == [[]] * (N_OPS - 1)
    assert not any(line.endswith(".seg") for line in notes if line.startswith("sync"))


@pytest.mark.parametrize("which", [".seg", "loreloop.db-wal"])
def test_after_the_nth_sync_that_fails_nothing_is_acknowledged_and_nothing_tried_again(
    shim: Path, folder: Path, which: str
) -> None:
    for number in range(1, N_OPS + 1):
        there = folder.with_name(f"{number}")
        shutil.copytree(folder, there)
        code, notes, said = worked(shim, there, SYNC_FAILS=str(number), SYNC_ONLY=which)
        failed = next(index for index, line in enumerate(notes) if line.startswith("fail"))
        assert notes[failed + 1 :] == []
        if "opened" in notes:  # else the start was refused
            assert code == CANNOT_SYNC
            assert "could not be synced" in said
            assert "tries nothing again" in said
        assert code != 0
        promised = [int(line.split()[1]) for line in notes if line.startswith("acknowledged")]
        store = Store(there)
        (run,) = store.read(lambda connection: connection.exec_driver_sql("SELECT id FROM runs").scalars().all())
        assert all(store.read(journal.is_known, f"{run}:{each}") for each in promised)
        store.close()


def test_a_full_group_shares_its_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many arrive together, two syncs serve them all."""
    prepared(tmp_path)
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr("loreloop.protocol.syncing.os.fsync", lambda file: (synced.append(file), real(file)))
    store = Store(tmp_path)
    (run,) = store.read(lambda connection: connection.exec_driver_sql("SELECT id FROM runs").scalars().all())

    async def scene() -> None:
        synced.clear()
        writes = (
            store.write(journal.append, store.segments, step(run, number), Acceptance("fake", str(number)))
            for number in range(1, 101)
        )
        await asyncio.gather(*writes)

    asyncio.run(scene())
    store.close()
    assert len(synced) < 10


def test_a_store_that_has_given_up_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path)
    given_up = threading.Event()
    monkeypatch.setattr("loreloop.protocol.syncing.end_process", given_up.set)
    store = Store(tmp_path)
    (run,) = store.read(lambda connection: connection.exec_driver_sql("SELECT id FROM runs").scalars().all())
    n_tried = 0

    def broken(file: int) -> None:
        nonlocal n_tried
        n_tried += 1
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("loreloop.protocol.syncing.os.fsync", broken)

    async def scene() -> None:
        write = store.write(journal.append, store.segments, step(run, 1), Acceptance("fake", "1"))
        waiting = asyncio.ensure_future(write)
        # Where the process does not end, as here alone, its writer does.
        await asyncio.to_thread(store.thread.join, 10)
        assert given_up.is_set()
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(OutOfService):
            await store.write(journal.append, store.segments, step(run, 2), Acceptance("fake", "2"))

    asyncio.run(scene())
    assert n_tried == 1
    monkeypatch.undo()
    store.close()
    again = Store(tmp_path)
    assert not again.read(journal.is_known, f"{run}:1")
    again.close()


def test_a_sync_that_fails_amid_a_statement_ends_the_writer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()
    monkeypatch.setattr("loreloop.protocol.syncing.end_process", given_up.set)
    store = Store(tmp_path)

    def refused(connection: Connection) -> None:
        cause = sqlite3.OperationalError("disk I/O error")
        cause.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise OperationalError("INSERT", None, cause)

    async def scene() -> None:
        waiting = asyncio.ensure_future(store.write(refused))
        await asyncio.to_thread(store.thread.join, 10)
        assert given_up.is_set()
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(scene())
    store.close()
