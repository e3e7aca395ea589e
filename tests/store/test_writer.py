"""One thread writes for everybody: in order, each in a savepoint of its own, answered after the commit."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, event

from loreloop.protocol.errors import BadRequest, OutOfService, ServerError
from loreloop.store import keys, sessions
from loreloop.store.rows import SessionNew
from loreloop.store.store import N_READERS, Store, open_database
from tests.store.place import Place


def add_key(connection: Connection, name: str) -> None:
    keys.create(connection, name, ("train",), time.time())


def add_key_and_fail(connection: Connection, name: str) -> None:
    add_key(connection, name)
    raise BadRequest("not this one")


def hold(connection: Connection, until: threading.Event) -> None:
    """Keeps the writer busy, so that what comes next waits together."""
    assert until.wait(10)


def names(place: Place) -> list[str]:
    """As another process sees them; ann and bob are always there."""
    engine = open_database(place.folder)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        found = [row.name for row in keys.list_all(connection)]
    engine.dispose()
    return [name for name in found if name not in ("ann", "bob")]


async def together(place: Place, *writes: Coroutine[Any, Any, object]) -> list[object]:
    """Hands all writes in while the writer is busy; gives their results or errors."""
    until = threading.Event()
    tasks = [asyncio.create_task(write) for write in (place.store.write(hold, until), *writes)]
    await asyncio.sleep(0.05)
    until.set()
    return (await asyncio.gather(*tasks, return_exceptions=True))[1:]


def test_a_write_is_committed_when_it_returns(place: Place) -> None:
    asyncio.run(place.store.write(add_key, "carl"))
    assert names(place) == ["carl"]


def test_a_write_gives_what_its_function_gives(place: Place) -> None:
    session_id = asyncio.run(place.store.write(sessions.create, place.ann, SessionNew(), 1.0))
    assert place.read(sessions.get, place.ann, session_id).created == 1.0


def test_one_failure_is_not_the_others(place: Place) -> None:
    writes = [
        place.store.write(add_key, "a"),
        place.store.write(add_key_and_fail, "b"),
        place.store.write(add_key, "c"),
    ]
    first, second, third = asyncio.run(together(place, *writes))
    assert (first, third) == (None, None)
    assert isinstance(second, BadRequest)
    assert names(place) == ["a", "c"]


def test_what_the_database_refuses_is_told_to_its_asker_alone(place: Place) -> None:
    foreign = place.store.write(sessions.create, "nobody", SessionNew(), 1.0)
    refused, taken = asyncio.run(together(place, foreign, place.store.write(add_key, "a")))
    assert isinstance(refused, ServerError)
    assert "The database refused a write" in str(refused)
    assert taken is None
    assert names(place) == ["a"]


def test_writes_happen_in_the_order_in_which_they_were_asked(place: Place) -> None:
    writes = [place.store.write(add_key, f"{number:03}") for number in range(600)]
    asyncio.run(together(place, *writes))
    assert names(place) == [f"{number:03}" for number in range(600)]


def test_a_write_whose_asker_has_gone_still_happens(place: Place) -> None:
    async def scene() -> None:
        until = threading.Event()
        held = asyncio.create_task(place.store.write(hold, until))
        asker = asyncio.create_task(place.store.write(add_key, "a"))
        await asyncio.sleep(0.02)
        asker.cancel()
        until.set()
        await held
        await place.store.write(add_key, "b")

    asyncio.run(scene())
    assert names(place) == ["a", "b"]


def test_closing_commits_what_waits(tmp_path: Path) -> None:
    async def scene(store: Store) -> None:
        writes = [asyncio.create_task(store.write(add_key, f"{number}")) for number in range(300)]
        await asyncio.sleep(0)
        store.close()
        await asyncio.gather(*writes)

    place = Place(tmp_path / "data")
    asyncio.run(scene(place.store))
    assert len(names(place)) == 300


def test_a_closed_store_refuses_a_write_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    store = Store(tmp_path, "os")
    store.close()
    store.close()
    with pytest.raises(OutOfService, match="takes no more writes"):
        store.write_and_wait(add_key, "carl")
    with pytest.raises(OutOfService, match="takes no more writes"):
        asyncio.run(asyncio.wait_for(store.write(add_key, "carl"), 5))


def test_a_key_is_made_beside_a_running_store(place: Place) -> None:
    engine = open_database(place.folder)
    with engine.begin() as connection:
        made = keys.create(connection, "late", ("infer",), 1.0)
    engine.dispose()
    assert place.read(keys.find, made.secret, place.now) == made.row


def test_reads_do_not_wait_for_a_writer(place: Place) -> None:
    def slowly(connection: Connection) -> None:
        add_key(connection, "slow")
        assert [row.name for row in place.read(keys.list_all)] == ["ann", "bob"]

    asyncio.run(place.store.write(slowly))


def test_what_arrives_together_is_committed_together(place: Place) -> None:
    seen: list[list[str]] = []  # what is committed, as of the second write

    def look(connection: Connection) -> None:
        add_key(connection, "second")
        seen.append([row.name for row in place.read(keys.list_all)])

    asyncio.run(together(place, place.store.write(add_key, "first"), place.store.write(look)))
    assert seen == [["ann", "bob"]]


def test_what_is_written_alone_shares_its_transaction_with_nobody(place: Place) -> None:
    seen: list[list[str]] = []  # what is committed, as of the first, as of the second

    def look(connection: Connection, name: str) -> None:
        add_key(connection, name)
        seen.append([row.name for row in place.read(keys.list_all)][2:])

    def undo(connection: Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")  # as a full disk does

    writes = [
        place.store.write(add_key, "before"),
        *(place.store.write_alone(look, name) for name in ("first", "second")),
        place.store.write(add_key, "after"),
        place.store.write(undo),
    ]
    told = asyncio.run(together(place, *writes))
    assert seen == [["before"], ["before", "first"]]
    assert [isinstance(each, ServerError) for each in told] == [False, False, False, True, True]
    assert names(place) == ["before", "first", "second"]


def test_another_process_that_writes_in_between_does_no_harm(place: Place) -> None:
    other = threading.Thread(target=lambda: beside(place.folder))

    def read_then_write(connection: Connection) -> None:
        keys.list_all(connection)
        other.start()
        other.join(0.5)  # a store that locked first keeps the other one waiting
        add_key(connection, "inside")

    try:
        asyncio.run(place.store.write(read_then_write))
    finally:
        other.join()
    assert sorted(names(place)) == ["beside", "inside"]


def beside(folder: Path) -> None:
    engine = open_database(folder)
    with engine.begin() as connection:
        add_key(connection, "beside")
    engine.dispose()


@pytest.mark.parametrize("error", [KeyError, TypeError, OverflowError, OSError, msgspec.DecodeError])
def test_an_error_of_ours_ends_its_own_write_only(place: Place, error: type[Exception]) -> None:
    asyncio.run(fail_and_go_on(place, error))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [AttributeError, AssertionError])
def test_so_does_one_that_nobody_foresaw(place: Place, error: type[Exception]) -> None:
    asyncio.run(fail_and_go_on(place, error))


async def fail_and_go_on(place: Place, error: type[Exception]) -> None:
    def broken(connection: Connection) -> None:
        raise error("a bug of ours")

    with pytest.raises(error):
        await asyncio.wait_for(place.store.write(broken), 10)
    await asyncio.wait_for(place.store.write(add_key, "after"), 10)
    assert names(place) == ["after"]


def test_on_a_full_disk_nobody_is_told_that_a_lost_write_was_made(place: Place) -> None:
    def fill(connection: Connection) -> None:
        n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {n_pages}")
        for _ in range(1000):
            add_key(connection, "x" * 1000)

    writes = [place.store.write(add_key, "a"), place.store.write(fill), place.store.write(add_key, "b")]
    told = asyncio.run(together(place, *writes))
    assert isinstance(told[1], OutOfService)
    assert names(place) == [name for name, error in (("a", told[0]), ("b", told[2])) if error is None]


@pytest.mark.timed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_asker_whose_loop_has_closed_harms_nobody(place: Place) -> None:
    until = threading.Event()

    async def leave() -> None:
        asyncio.create_task(place.store.write(hold, until))  # noqa: RUF006
        await asyncio.sleep(0.02)

    asyncio.run(leave())
    until.set()
    asyncio.run(asyncio.wait_for(place.store.write(add_key, "after"), 2))
    assert names(place) == ["after"]


def test_a_commit_that_fails_is_told_to_everybody_in_the_group(place: Place) -> None:
    """A deferred foreign key is looked at by COMMIT only."""
    engine = place.store.engine

    def defer(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")

    event.listen(engine, "begin", defer)
    lost = asyncio.run(together(place, place.store.write(sessions.create, "nobody", SessionNew(), 1.0)))
    event.remove(engine, "begin", defer)
    assert [type(error) for error in lost] == [ServerError]
    assert asyncio.run(place.store.write(add_key, "after")) is None


def test_slow_searches_keep_no_write_waiting(place: Place) -> None:
    """However many there are."""
    going_on, n_begun = threading.Event(), [0]

    def search(connection: Connection) -> None:
        n_begun[0] += 1
        connection.exec_driver_sql("SELECT 1")
        going_on.wait(20)

    async def scene() -> None:
        searches = [asyncio.create_task(place.store.read_apart(search)) for _ in range(40)]
        try:
            await asyncio.sleep(0.2)
            assert n_begun[0] == N_READERS
            await asyncio.wait_for(place.store.write(add_key, "new"), 10)
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 10)  # others' threads are free as well
        finally:
            going_on.set()
        await asyncio.gather(*searches)

    asyncio.run(scene())
    assert "new" in names(place)
