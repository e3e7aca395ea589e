"""A folder in which something was damaged: what is refused, what is told, and that nothing damaged passes for good."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Table, delete, func, select

from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.link import Batch, BatchDone, OpEnd
from loreloop.protocol.training import Done, Failure, SavedResult, TrainOp
from loreloop.store import checkpoints, journal, lost, removal, runs
from loreloop.store.files import Files, read_secret
from loreloop.store.inspection import inspect_data
from loreloop.store.rows import Acceptance, AddCheckpoint, Outcome
from loreloop.store.schema import CHECKPOINTS, OPS, REMOVED_RUNS, RESULTS
from loreloop.store.steps import STEPS
from loreloop.store.store import open_database
from tests.scheduler.ops import create, save, step
from tests.store.place import Place


def filled(folder: Path) -> Place:
    """A closed folder with a run, operations and a checkpoint."""
    place = Place(folder)
    run = place.run()
    for number in range(200):
        place.append(step(run, number + 1))
    place.write(checkpoints.add, place.checkpoint(run, "one"))
    Files(folder).checkpoint(place.checkpoint(run, "one").path).mkdir()
    place.store.close()
    return place


def cut(part: float) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, int(file.stat().st_size * part))


def overwritten(start: int, content: bytes) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(content)

    return damage


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut in half": cut(0.5),
    "a few bytes left": lambda file: os.truncate(file, 10),
    "zeroed header": overwritten(0, bytes(100)),
    "garbage": lambda file: file.write_bytes(os.urandom(1 << 16)),
    "garbage behind the header": overwritten(100, os.urandom(1 << 14)),
    "a folder": made_a_folder,
    "a flipped page in its middle": overwritten(5 * 4096, b"\xff" * 4096),
    "zeroed page in its middle": overwritten(6 * 4096, bytes(4096)),
    "emptied": lambda file: os.truncate(file, 0),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_database_is_refused_with_words_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    database = tmp_path / "loreloop.db"
    DAMAGES[name](database)
    before = database.read_bytes() if database.is_file() else None
    with pytest.raises(BadRequest, match=r"loreloop\.db.*ackup"):
        inspect_data(tmp_path)
    assert (database.read_bytes() if database.is_file() else None) == before


@pytest.mark.parametrize("name", [name for name in DAMAGES if "middle" not in name])
def test_other_verbs_refuse_it_too(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    DAMAGES[name](tmp_path / "loreloop.db")
    with pytest.raises(BadRequest, match=r"loreloop\.db"):
        open_database(tmp_path)


def test_only_a_new_folder_gets_a_new_database(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    assert inspect_data(tmp_path) == []
    open_database(tmp_path).dispose()
    assert (tmp_path / "loreloop.db").exists()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "loreloop.db") as connection:
        connection.execute("INSERT INTO migrations VALUES (?)", (len(STEPS) + 1,))
    connection.close()
    for look in (inspect_data, open_database):
        with pytest.raises(BadRequest, match="newer version"):
            look(tmp_path)


def test_a_good_folder_has_nothing_to_tell(tmp_path: Path) -> None:
    place = filled(tmp_path)
    assert inspect_data(tmp_path) == []
    place.open()
    place.write(journal.forget_model, place.store.segments, place.run(), Failure("user", "over"), 1.0)
    place.store.close()
    assert inspect_data(tmp_path) == []


def test_operations_of_a_deleted_run_are_not_told_as_lost(tmp_path: Path) -> None:
    """Its rows go with its results; the segment stays as long as another run needs it, and the note of it with that."""
    place = Place(tmp_path)
    run, other = place.run(0), place.run(1)
    place.append(create(other))
    for op in (create(run), step(run, 1)):
        place.append(op)
    place.write(removal.remove_run, place.store.segments, run, 1.0, force=True)
    place.write(journal.expire_results, 2.0)
    place.store.close()
    assert inspect_data(tmp_path) == []
    assert not Files(tmp_path).lost.exists()

    def n_noted() -> int:
        place.write(journal.sweep_segments, place.store.segments)
        return place.read(lambda connection: connection.scalar(select(func.count()).select_from(REMOVED_RUNS))) or 0

    with place_opened(place):
        assert n_noted() == 1
        place.write(journal.forget_model, place.store.segments, other, Failure("user", "over"), 3.0)
        place.write(journal.expire_results, 4.0)
        assert n_noted() == 0


def test_a_checkpoint_without_a_row_is_told(tmp_path: Path) -> None:
    place = filled(tmp_path)
    with place_opened(place):
        place.write(lambda connection: connection.execute(delete(CHECKPOINTS)))
    (note,) = inspect_data(tmp_path)
    assert "1 checkpoints" in note
    assert note.count(f"{tmp_path}/checkpoints/") == 1


def test_a_checkpoint_whose_row_is_about_to_be_written_is_not_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    run = place.run()
    path = place.checkpoint(run, "one").path
    accepted = Acceptance("fake", "x", (), {"path": str(path)})
    place.write(journal.append, place.store.segments, save(run, 1, tmp_path), accepted)
    Files(tmp_path).checkpoint(path).mkdir()
    place.store.close()
    assert inspect_data(tmp_path) == []


def test_a_checkpoint_whose_deletion_was_cut_off_is_not_told(tmp_path: Path) -> None:
    """Nobody should be sent to files that the sweeper takes a moment later."""
    place = Place(tmp_path)
    row = place.checkpoint(place.run(), "one")
    folder = Files(tmp_path).checkpoint(row.path)
    folder.mkdir()
    place.write(checkpoints.add, msgspec.structs.replace(row, folder=str(folder)))
    place.write(checkpoints.remove, place.ann, row.path)
    place.store.close()
    assert inspect_data(tmp_path) == []


@pytest.mark.parametrize("damage", ["deleted", "cut in half", "flipped"])
def test_operations_lost_with_the_log_are_told_and_kept_from_the_sweep(tmp_path: Path, damage: str) -> None:
    place = Place(tmp_path / "here")
    run = place.run()
    place.reopen()  # which folds the log into the database
    for number in range(100):
        place.append(step(run, number))
    there = tmp_path / "there"  # as a kill leaves it
    shutil.copytree(place.folder, there)
    log = there / "loreloop.db-wal"
    {
        "deleted": Path.unlink,
        "cut in half": cut(0.5),
        "flipped": lambda file: overwritten(file.stat().st_size // 2, b"\xff" * 64)(file),
    }[damage](log)
    notes = inspect_data(there)
    assert any(run in note and "does not know" in note for note in notes), notes
    assert any("loreloop.db-wal" in note for note in notes) or damage == "cut in half", notes
    assert [path.name for path in (there / "journal" / "lost").iterdir()] == ["00000002.seg"]
    place.store.close()
    again = Place.__new__(Place)
    again.folder, again.segment_bytes = there, None
    again.open()
    again.write(journal.sweep_segments, again.store.segments)
    again.store.close()
    assert (there / "journal" / "lost" / "00000002.seg").stat().st_size > 0


def test_lost_operations_are_told_and_kept_once(tmp_path: Path) -> None:
    """Until there are more of them; also where the folder in which they are kept was deleted by hand."""
    place = Place(tmp_path)
    run = place.run()

    def lose(seq_id: int) -> None:
        place.append(step(run, seq_id))
        place.write(lambda connection: connection.execute(delete(OPS)))

    lose(1)
    place.store.close()
    kept = Files(tmp_path).lost
    for _ in range(2):  # the first start ends before it says anything
        (note,) = inspect_data(tmp_path)
        assert f"{kept / '00000001.seg'}; if you do not need them, delete {kept}." in note
    lost.confirm_reported(tmp_path)
    assert inspect_data(tmp_path) == []
    assert [path.name for path in kept.iterdir()] == ["00000001.seg"]
    shutil.rmtree(kept)
    assert inspect_data(tmp_path) == []
    assert not kept.exists()
    with place_opened(place):
        lose(2)
    assert "00000002.seg" in inspect_data(tmp_path)[0]
    lost.confirm_reported(tmp_path)
    assert inspect_data(tmp_path) == []


def test_a_kept_segment_gives_its_place_to_no_other_one_of_its_number(tmp_path: Path) -> None:
    (segment := tmp_path / "journal" / "00000001.seg").parent.mkdir()
    segment.write_bytes(b"one")
    first = lost.keep(tmp_path, segment)
    segment.unlink()
    segment.write_bytes(b"one")  # as a copy of the whole folder has it
    assert lost.keep(tmp_path, segment) == first
    segment.write_bytes(b"two")  # after a backup was brought back
    second = lost.keep(tmp_path, segment)
    assert lost.keep(tmp_path, segment) == second
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")


def test_a_log_that_a_kill_has_left_is_not_called_damaged(tmp_path: Path) -> None:
    """At any moment of several rounds of the log."""
    place = Place(tmp_path / "here")
    run = place.run()
    for number in range(60):
        place.append(step(run, number))
        if number % 20 == 10:
            place.store.reader.exec_driver_sql("PRAGMA wal_checkpoint(RESTART)")
        there = tmp_path / str(number)
        shutil.copytree(place.folder, there)
        assert inspect_data(there) == []
        shutil.rmtree(there)
    place.store.close()


def test_a_kill_between_a_log_header_and_its_first_frame_has_lost_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path / "here")
    run = place.run()
    for number in range(5):
        place.append(step(run, number))
    place.store.reader.exec_driver_sql("PRAGMA wal_checkpoint(RESTART)")
    old = (place.folder / "loreloop.db-wal").read_bytes()
    place.append(step(run, 5))
    new = (place.folder / "loreloop.db-wal").read_bytes()
    place.store.close()
    shutil.rmtree(tmp_path / "here" / "journal")  # the sixth step is of no matter here
    assert new[:32] != old[:32]
    (tmp_path / "here" / "loreloop.db-wal").write_bytes(new[:32] + old[32:])
    assert inspect_data(tmp_path / "here") == []


@settings(max_examples=40, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_log_is_noticed_wherever_it_lies(part: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name, "here"))
        run = place.run()
        place.reopen()
        for number in range(5):
            place.append(step(run, number))
        there = Path(name, "there")
        shutil.copytree(place.folder, there)
        place.store.close()
        log = there / "loreloop.db-wal"
        content = bytearray(log.read_bytes())
        content[int(part * len(content))] ^= 1 << bit
        log.write_bytes(content)
        assert inspect_data(there)


@pytest.mark.parametrize("content", [b"", b"short", bytes(64)])
def test_a_damaged_secret_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    read_secret(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(BadRequest, match="secret is damaged"):
        read_secret(tmp_path / "secret")


def test_strange_files_among_the_segments_are_let_lie(tmp_path: Path) -> None:
    place = filled(tmp_path)
    (tmp_path / "journal" / "copy.seg").write_text("mine")
    assert inspect_data(tmp_path) == []
    with place_opened(place):
        place.write(journal.sweep_segments, place.store.segments)
    assert (tmp_path / "journal" / "copy.seg").read_text() == "mine"


@contextmanager
def place_opened(place: Place) -> Iterator[None]:
    place.open()
    yield
    place.store.close()


def test_of_damaged_operations_the_executed_ones_are_told_apart(place: Place) -> None:
    run = place.run()
    ops: list[TrainOp] = [create(run), *(step(run, number) for number in range(1, 4))]
    for op in ops:
        place.append(op)
    place.execute(1, *ops[:2])
    place.write(spoil, OPS, "location", "request_id = ?", f"{run}:1")
    place.write(spoil, OPS, "location", "request_id = ?", f"{run}:3")
    state = place.replay()
    assert {op.request_id: op.executed for op in state.damaged} == {f"{run}:1": True, f"{run}:3": False}
    assert [op.request_id for op in state.ops] == [f"{run}:0", f"{run}:2"]


@pytest.mark.parametrize("text", ["not JSON", '["another:0"]', "\x00", b"\xff\xfe"])
def test_a_batch_whose_row_is_damaged_is_replayed_with_those_that_were_in_it(place: Place, text: str | bytes) -> None:
    run = place.run()
    for op in (create(run), step(run, 1), step(run, 2)):
        place.append(op)
    place.execute(1, create(run))
    place.execute(2, step(run, 1), step(run, 2))
    place.write(lambda c: c.exec_driver_sql("UPDATE plans SET request_ids = ? WHERE plan_no = 2", (text,)))
    assert [batch.request_ids for batch in place.replay().batches] == [(f"{run}:0",), (f"{run}:1", f"{run}:2")]


@pytest.mark.parametrize("column", ["reply", "location"])
def test_an_outcome_that_cannot_be_read_is_a_failure_that_says_so(place: Place, column: str) -> None:
    run = place.run()
    place.append(create(run))
    place.execute(1, create(run))
    place.write(spoil, OPS if column == "reply" else RESULTS, column, "request_id = ?", f"{run}:0")
    outcome = place.outcome(f"{run}:0")
    assert outcome is not None
    assert isinstance(outcome.result, Failure)
    assert "damaged" in outcome.result.message


def test_an_operation_whose_effects_cannot_be_read_ends_as_a_failure(place: Place) -> None:
    run = place.run()
    row = place.checkpoint(run, "one")
    place.append(save(run, 1, place.folder), AddCheckpoint(row, None))
    place.write(spoil, OPS, "after", "request_id = ?", f"{run}:1")
    place.execute(1, save(run, 1, place.folder), result=SavedResult(5))
    outcome = place.outcome(f"{run}:1")
    assert outcome is not None
    assert isinstance(outcome.result, Failure)
    with pytest.raises(NotFound):
        place.read(checkpoints.get, place.ann, row.path)


def test_a_replay_in_which_something_fails_that_had_succeeded_leads_astray(place: Place) -> None:
    run, other = place.run(0), place.run(1)
    ops: list[TrainOp] = [create(run), step(run, 1), create(other), save(other, 1, place.folder)]
    for op in ops:
        place.append(op)
    place.execute(1, *ops[:3])
    place.execute(2, ops[3], result=SavedResult(3))
    again = [OpEnd(op.request_id, Failure("user", "gone")) for op in ops]
    done = BatchDone(Batch(1, tuple(op.request_id for op in ops)), (OpEnd(f"{other}:0", Done()), *again[1:2]), True)
    assert place.write(journal.record_batch, place.store.segments, "fake", done, 1.0) == again[1:2]
    done = BatchDone(Batch(2, (f"{other}:1",)), (again[3],), True)  # a save leaves the model as it is
    assert place.write(journal.record_batch, place.store.segments, "fake", done, 1.0) == []


def test_a_lost_model_says_why_and_is_replayed_no_more(place: Place) -> None:
    run = place.run()
    for op in (create(run), step(run, 1)):
        place.append(op)
    place.execute(1, create(run))
    place.write(journal.lose_model, place.store.segments, run, Failure("server", "it is lost"), 1.0)
    assert place.replay().ops == ()
    assert place.outcome(f"{run}:1") == Outcome(Failure("server", "it is lost"), {})
    assert place.outcome(f"{run}:0") == Outcome(Done(), {})
    found = place.read(runs.get, place.ann, run)
    assert (found.live, found.lost) == (False, "it is lost")


def spoil(connection: Connection, table: Table, column: str, where: str, *values: str) -> None:
    """Bytes that are neither JSON nor text."""
    statement = f"UPDATE {table.name} SET {column} = CAST(X'7bff00' AS TEXT) WHERE {where}"
    connection.exec_driver_sql(statement, values)
