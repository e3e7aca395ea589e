"""The database file: its steps, its pragmas, and what happens when several open it."""

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, inspect, select, text

from loreloop.protocol.errors import Conflict
from loreloop.protocol.loop_rest import MarkTurn
from loreloop.protocol.syncing import Durability
from loreloop.store import feedback, keys, turn_keeping, turn_marks
from loreloop.store.feedback_tables import FEEDBACK_TABLES
from loreloop.store.rows import RecordingRule
from loreloop.store.schema import METADATA, MIGRATIONS
from loreloop.store.steps import STEPS
from loreloop.store.store import new_database, open_database
from loreloop.store.turn_tables import TURN_TABLES


def test_a_log_of_a_lost_database_is_kept_beside_an_earlier_one(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / "loreloop.db-wal").write_text(name)
        new_database(tmp_path).dispose()
    kept = {path.name: path.read_text() for path in tmp_path.glob("loreloop.db-wal.lost*")}
    ends = {"": "first", ".2": "second", ".3": "third"}
    assert kept == {f"loreloop.db-wal.lost{end}": name for end, name in ends.items()}


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


def shape_of(connection: Connection) -> dict[str, tuple[set[str], set[str | None]]]:
    """Columns and indexes by table."""
    found = inspect(connection)
    return {
        name: (
            {column["name"] for column in found.get_columns(name)},
            {index["name"] for index in found.get_indexes(name)},
        )
        for name in found.get_table_names()
    }


@pytest.mark.parametrize("n_taken", [12, 13])
def test_a_database_of_before_turns_and_feedback_gets_their_tables(tmp_path: Path, n_taken: int) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    shapes = []
    for folder in (new, old):
        engine = open_database(folder)
        with engine.begin() as connection:
            shapes.append(shape_of(connection))
            connection.execute(text("INSERT INTO deployments (name, version) VALUES ('bot', 0)"))
            if folder == old:
                _take_back(connection, n_taken)
                assert shape_of(connection) != shapes[0]
        engine.dispose()
    engine = open_database(old)
    with engine.connect() as connection:
        assert shape_of(connection) == shapes[0]
        assert connection.scalars(select(MIGRATIONS.c.number)).all() == list(range(1, len(STEPS) + 1))
        assert turn_keeping.rule_of(connection, "bot") == RecordingRule()
        assert feedback.page(connection, "bot", 0, 10).feedback == ()
    engine.dispose()


def test_what_had_no_consent_before_refusals_were_told_apart_counts_as_refused(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    with engine.begin() as connection:
        for name in ("refused", "unfinished"):
            connection.execute(text(f"ALTER TABLE turns DROP COLUMN {name}"))
        for id, consent in (("without", False), ("with", True)):
            row = {"id": id, "deployment": "bot", "episode": 1, "key_id": "k", "user": "", "created": 1.0}
            row |= {"state": "kept", "arm": "main", "version": 1, "consent": consent, "side": False, "heard": 0}
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO turns ({names}, n_bytes) VALUES ({values}, 0)"), row)
        connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number == 16))
    engine.dispose()
    engine = open_database(tmp_path)
    with engine.begin() as connection:
        with pytest.raises(Conflict):
            turn_marks.mark(connection, "without", MarkTurn(consent=True), "k")
        assert turn_marks.mark(connection, "with", MarkTurn(consent=True), "k").fate == "waiting"
    engine.dispose()


def _take_back(connection: Connection, n_taken: int) -> None:
    """Leaves the database as the first steps had made it."""
    for table in FEEDBACK_TABLES if n_taken == 13 else (*FEEDBACK_TABLES, *TURN_TABLES):
        table.drop(connection)
    if n_taken < 13:
        connection.execute(text("ALTER TABLE deployments DROP COLUMN recording"))
    connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number > n_taken))


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("os", 1)])
def test_it_is_set_for_power_cuts_or_kills_and_checks_references(
    tmp_path: Path, durability: Durability, synchronous: int
) -> None:
    engine = open_database(tmp_path, durability)
    with engine.connect() as connection:
        found = [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")]
    engine.dispose()
    assert found == ["wal", synchronous, 1]


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
