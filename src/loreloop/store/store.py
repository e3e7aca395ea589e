"""The store of one data folder: a database, segment files, and one thread that writes to both.

Functions of this room's other files take a `Connection`; `read` and `write` run them. Writes that arrive together are
committed together, each in a savepoint of its own, so that one's failure is not the others'.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError

from loreloop.protocol.errors import LoreloopError, OutOfService, ServerError, disk_trouble, outcome_of
from loreloop.protocol.folders import make_private_file
from loreloop.protocol.syncing import Durability, SyncFailed, refused_sync
from loreloop.store.inspection import DATABASE, check_place, check_steps, open_lock, refusal
from loreloop.store.segments import Segments
from loreloop.store.steps import STEPS, migrate, steps_taken

P = ParamSpec("P")
T = TypeVar("T")
MAX_GROUP = 256
N_READERS = 4
FAILED_SYNCS = ("SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC")


class _Job(NamedTuple):
    """`alone`: in a transaction of its own, which sees only what is committed."""

    run: Callable[[Connection], Any]
    settle: Callable[[Any, BaseException | None], None]
    alone: bool = False


class Store:
    """Opens (and if need be makes) the store in `folder`. One process writes; several may read.

    With the durability `power` what a write has promised survives a power cut, with `os` the death of the process.
    The process ends where the disk refuses a sync; nothing is promised after that.

    Without a thread of its own it commits only when `write_waiting` is called: who simulates a server decides when.
    """

    def __init__(self, folder: Path, durability: Durability = "power", *, own_thread: bool = True) -> None:
        self.folder = folder
        self.engine = open_database(folder, durability)
        self.segments = Segments(folder / "journal", durable=durability == "power")
        # AUTOCOMMIT, because a read transaction that stays open would keep SQLite from folding its log.
        self.reader = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.gate, self.is_closed = threading.Lock(), False
        # Few, so that however many search at once, connections are left for whoever writes, and threads for others.
        self.readers = ThreadPoolExecutor(N_READERS, "store-reader")
        self.thread = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self.own_thread = own_thread
        if own_thread:
            self.thread.start()

    def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a query, here and now. For one thread only, the one that owns the store."""
        return function(self.reader, *args, **kwargs)

    async def read_apart(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a query gives that may read much: in a thread, on a connection of its own, so that nobody waits for
        it."""

        def work() -> T:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self.readers, work)

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a function on the writer thread; done when its transaction is committed."""
        return await self._written(lambda connection: function(connection, *args, **kwargs), alone=False)

    async def write_alone(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, but shares its transaction with nobody. For what deletes files: beside a write that is undone
        after all, by a kill or a full disk, it would take files whose rows come back."""
        return await self._written(lambda connection: function(connection, *args, **kwargs), alone=True)

    async def _written(self, run: Callable[[Connection], T], *, alone: bool) -> T:
        # The writer thread may not touch the future itself: asyncio's futures belong to the thread of their loop.
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(value: T, error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the asker's loop has closed
                loop.call_soon_threadsafe(_set, future, value, error)

        self._hand_in(_Job(run, settle, alone))
        return await future

    def write_and_wait(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `write`, for a thread that runs no event loop."""
        done: Future[T] = Future()

        def settle(value: T, error: BaseException | None) -> None:
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(error)

        self._hand_in(_Job(lambda connection: function(connection, *args, **kwargs), settle))
        return done.result()

    def _hand_in(self, job: _Job) -> None:
        """Raises OutOfService once the store is closed: behind its end nobody would ever settle the job."""
        with self.gate:
            if self.is_closed:
                raise OutOfService(
                    "The server is stopping and takes no more writes; nothing was stored. Send this again when it runs."
                )
            self.jobs.put(job)

    def close(self) -> None:
        """Commits what waits, then closes. A write that comes later is refused."""
        with self.gate:
            self.is_closed = True
            self.jobs.put(None)
        if self.own_thread:
            self.thread.join()
        else:
            self.write_waiting()
        self.readers.shutdown(cancel_futures=True)
        self.reader.close()
        self.engine.dispose()
        self.segments.close()

    def _write_all(self) -> None:
        try:
            self._write_groups()
        except SyncFailed:
            # Nobody is told that what waits has succeeded, nor that it has failed: the next start knows.
            with self.gate:
                self.is_closed = True

    def _write_groups(self) -> None:
        while (job := self.jobs.get()) is not None:
            if not self._write_group([job]):
                return

    def write_waiting(self) -> None:
        """Commits what waits by now, in one group at most, on the thread that calls; for a store without its own."""
        self._write_group([])

    def _write_group(self, group: list[_Job]) -> bool:
        """Commits these, and with them whatever else waits; False once the end has come."""
        # Whatever waits by now shares one commit. The group is bounded, so that the first one's answer is not held
        # back for long.
        goes_on = True
        while goes_on and len(group) < MAX_GROUP and not self.jobs.empty():
            if (job := self.jobs.get()) is None:
                goes_on = False
            else:
                group.append(job)
        self._commit_in_order(group)
        return goes_on

    def _commit_in_order(self, jobs: list[_Job]) -> None:
        for alone, neighbours in groupby(jobs, key=lambda job: job.alone):
            for group in ([job] for job in neighbours) if alone else (list(neighbours),):
                self._commit(group)

    def _commit(self, group: list[_Job]) -> None:
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            with self.engine.begin() as connection:
                for job in group:
                    # Nobody is told an outcome before the commit: until then a full disk may still undo all of them.
                    outcomes.append(self._attempt(connection, job))
                    # Without this the next job would run outside of any transaction and be kept alone.
                    _check_open(connection)
                # Bodies before the rows that point at them; the commit then syncs the rows, once for the whole group.
                self.segments.sync()
        except SQLAlchemyError as error:
            check_synced(error, self.folder / DATABASE)
            full = (failure for _, failure in outcomes if isinstance(failure, OutOfService))  # what rolled it all back
            lost = next(full, None) or ServerError(
                f"The database did not take a write: {error}. Look at the disk of the data folder."
            )
            # The commit failed as a whole, so what succeeded in it has not happened either.
            outcomes = [(None, lost)] * len(group)
        for job, (value, failure) in zip(group, outcomes, strict=True):
            job.settle(value, failure)

    def _attempt(self, connection: Connection, job: _Job) -> tuple[Any, BaseException | None]:
        """What a job gave, or its error; even if that is a bug of ours, the thread must go on."""
        outcome = outcome_of(partial(_in_savepoint, connection, job))
        match outcome:
            case SQLAlchemyError():
                # A statement may sync too: pages that the cache cannot hold go to the log before the commit.
                check_synced(outcome, self.folder / DATABASE)
                return None, _refused(outcome)
            case OSError():
                return None, disk_trouble(outcome) or outcome
            case Exception():
                return None, outcome
        return outcome, None


def check_synced(error: SQLAlchemyError, database: Path) -> None:
    """Ends the process where it was a sync that the database was refused."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorname", "") in FAILED_SYNCS:
        refused_sync(str(database), OSError(errno.EIO, str(cause)))


def _check_open(connection: Connection) -> None:
    """A full or failing disk makes SQLite roll the whole transaction back, not only the savepoint."""
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection) and not driver.in_transaction:
        raise OperationalError("COMMIT", None, sqlite3.OperationalError("the transaction was rolled back"))


def _in_savepoint(connection: Connection, job: _Job) -> Any:
    # The savepoint undoes the writes of a job that fails, and leaves those of its group alone.
    with connection.begin_nested():
        return job.run(connection)


def _refused(error: SQLAlchemyError) -> LoreloopError:
    cause: BaseException | None = error
    while cause is not None:  # the end of a savepoint that a full disk has rolled back hides why
        if isinstance(cause, OperationalError) and "is full" in str(cause.orig):  # as SQLite says it
            return disk_trouble(OSError(errno.ENOSPC, "")) or ServerError(str(cause))
        cause = cause.__context__
    return ServerError(f"The database refused a write: {error}.")


def _set(future: asyncio.Future[T], value: T, error: BaseException | None) -> None:
    if future.done():
        return  # the asker was cancelled
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def open_database(folder: Path, durability: Durability = "power") -> Engine:
    """The database of a data folder, brought up to date. Safe beside a running server.

    BadRequest where the folder holds something else, or a database that is damaged or that a newer version has changed.
    """
    check_place(folder)
    make_private_file(folder / DATABASE)  # SQLite gives its log the same mode
    engine = _engine(folder / DATABASE, durability)
    try:
        _bring_up_to_date(engine, folder)
    except DatabaseError as error:
        engine.dispose()
        raise refusal(folder / DATABASE, str(error.orig)) from None
    return engine


def new_database(folder: Path) -> Engine:
    """A database for a folder that holds files and has lost its own: what `open_database` refuses to make by itself."""
    # A log of the lost one would be taken for the new one's, and is kept for whoever finds the old database again.
    # Under the first name that is free, since an earlier one may have been lost too.
    for end in ("-wal", "-shm"):
        names = chain((f"{DATABASE}{end}.lost",), (f"{DATABASE}{end}.lost.{number}" for number in count(2)))
        free = next(name for name in names if not folder.joinpath(name).exists())
        with contextlib.suppress(FileNotFoundError):
            folder.joinpath(f"{DATABASE}{end}").rename(folder / free)
    folder.joinpath(DATABASE).unlink(missing_ok=True)
    make_private_file(folder / DATABASE)
    engine = _engine(folder / DATABASE)
    with engine.begin() as connection:
        migrate(connection)
    return engine


def empty_database() -> Engine:
    """One in memory, with all tables and no rows: what a data folder holds that is not there yet."""
    engine = _engine(":memory:")
    with engine.begin() as connection:
        migrate(connection)
    return engine


def _engine(database: Path | str, durability: Durability = "power") -> Engine:
    engine = create_engine(f"sqlite:///{database}", connect_args={"check_same_thread": False, "timeout": 30})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        # WAL with synchronous=FULL syncs the log at every commit; with NORMAL a committed row survives the death of
        # the process alone, and a power cut can take the last moments back.
        synchronous = "FULL" if durability == "power" else "NORMAL"
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        # A text of damaged bytes must be one row's trouble, not that of every query which meets it.
        connection.text_factory = lambda content: content.decode("utf-8", "replace")
        connection.isolation_level = None  # the driver's own idea of when to begin leaves some statements outside

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # At once for writing: a transaction that read first could not write after another process has.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _bring_up_to_date(engine: Engine, folder: Path) -> None:
    # SQLite does not wait where two turn a new file to WAL at once; the lock goes with the process that holds it.
    with open_lock(folder / "opening.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            taken = steps_taken(connection)
        check_steps(folder / DATABASE, max(taken, default=0))
        if len(taken) < len(STEPS):
            with engine.begin() as connection:
                migrate(connection)
