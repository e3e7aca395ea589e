"""The database file: its steps, its pragmas, and what happens when several open it."""

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, inspect, select, text

from loreloop.store import keys
from loreloop.store.schema import METADATA, MIGRATIONS, STEPS
from loreloop.store.store import open_database


def test_a_new_database_has_taken_every_step_and_takes_none_again(tmp_path: Path) -> None:
    for _ in range(3):
        engine = open_database(tmp_path)
        with engine.connect() as connection:
            assert connection.scalars(select(MIGRATIONS.c.number)).all() == list(range(1, len(STEPS) + 1))
            assert set(inspect(connection).get_table_names()) == set(METADATA.tables)
        engine.dispose()


def test_keys_of_before_expiry_go_on(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    with engine.begin() as connection:
        made = keys.create(connection, "old", ("train",), 1.0)
        connection.execute(text("ALTER TABLE keys DROP COLUMN expires"))
        connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number == 5))
    engine.dispose()
    engine = open_database(tmp_path)
    with engine.connect() as connection:
        assert keys.find(connection, made.secret, time.time()) == made.row
    engine.dispose()


def test_it_is_set_for_kills_and_checks_references(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    with engine.connect() as connection:
        found = [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")]
    engine.dispose()
    assert found == ["wal", 1, 1]


def test_every_connection_is_set_alike(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    free = engine.execution_options(isolation_level="AUTOCOMMIT")
    with free.connect() as first, free.connect() as second:
        assert [held.scalar(text("PRAGMA foreign_keys")) for held in (first, second)] == [1, 1]
    engine.dispose()


def make_and_fail(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE half_done (number INTEGER)"))
    raise InterruptedError


def test_a_step_that_fails_leaves_no_table(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    with pytest.raises(InterruptedError), engine.begin() as connection:
        make_and_fail(connection)
    with engine.connect() as connection:
        left = inspect(connection).has_table("half_done")
    engine.dispose()
    assert not left


def test_many_may_open_a_new_folder_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []
    for attempt in range(5):
        barrier = threading.Barrier(4)

        def opened(folder: Path = tmp_path / str(attempt), barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                open_database(folder).dispose()
            except Exception as error:  # whatever it is, it counts
                errors.append(error)

        threads = [threading.Thread(target=opened) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
