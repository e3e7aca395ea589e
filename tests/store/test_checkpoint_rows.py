"""A checkpoint exists when its row does: with the result of the operation that saved it, until its time is over."""

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, delete, func, insert, select, update

from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.link import ModelSnapshot, Snapshotted
from loreloop.protocol.paths import CheckpointKind, CheckpointPath, file_name
from loreloop.protocol.sampling import Revision
from loreloop.protocol.training import Failure, LoadState, SavedResult, SaveState
from loreloop.store import checkpoints, deployments, journal, samplers, sessions
from loreloop.store.files import Files, in_row
from loreloop.store.rows import AddCheckpoint, AddSampler, Arm, CheckpointRow, SamplerRow, Split
from loreloop.store.schema import (
    CHECKPOINTS,
    LEFT_FILES,
    MIGRATIONS,
    SAMPLERS,
    SNAPSHOTS,
)
from loreloop.store.steps import m010_paths_from_the_data_folder_on
from loreloop.store.store import open_database
from tests.scheduler.ops import create, step
from tests.store.place import BASE, Place


def saved(place: Place, name: str, **changes: object) -> CheckpointRow:
    row = place.checkpoint(place.run(), name, **changes)  # type: ignore[arg-type]
    place.write(checkpoints.add, row)
    return row


def names(place: Place) -> list[str]:
    return [row.name for row in place.read(checkpoints.list_page, place.ann, 100, 0).rows]


def test_it_comes_back_as_it_was_added(place: Place) -> None:
    row = saved(place, "one", expires=5.0)
    place.reopen()
    assert place.read(checkpoints.get, place.ann, row.path) == row


def test_the_same_name_of_another_kind_or_run_is_another_checkpoint(place: Place) -> None:
    rows = [saved(place, "one", kind=kind) for kind in CheckpointKind]
    other = place.checkpoint(place.run(1), "one")
    place.write(checkpoints.add, other)
    place.write(checkpoints.remove, place.ann, rows[0].path)
    assert place.read(checkpoints.list_page, place.ann, 10, 0).total == 3
    assert place.read(checkpoints.get, place.ann, other.path) == other


def test_a_name_is_free_until_it_is_taken(place: Place) -> None:
    row = place.checkpoint(place.run(), "one")
    place.read(checkpoints.check_free, row.path)
    place.write(checkpoints.add, row)
    with pytest.raises(BadRequest, match="exists already"):
        place.read(checkpoints.check_free, row.path)


def test_adding_it_again_takes_its_place(place: Place) -> None:
    saved(place, "one", expires=5.0)
    place.now += 10
    row = saved(place, "one")
    assert names(place) == ["one"]
    assert place.read(checkpoints.get, place.ann, row.path).expires is None


def test_newest_come_first(place: Place) -> None:
    for name in ("old", "newer", "newest"):
        place.now += 1
        saved(place, name)
    assert names(place) == ["newest", "newer", "old"]
    assert [row.name for row in place.read(checkpoints.of_run, place.ann, place.run())] == names(place)


def test_they_expire_at_their_time_and_not_before(place: Place) -> None:
    soon = saved(place, "soon", expires=20.0)
    saved(place, "late", expires=30.0)
    saved(place, "never")
    assert place.read(checkpoints.next_expiry) == 20.0
    assert place.read(checkpoints.expired, 19.9) == []
    assert place.read(checkpoints.expired, 20.0) == [soon]
    place.write(checkpoints.set_expiry, place.ann, soon.path, None)
    assert place.read(checkpoints.expired, 25.0) == []
    assert place.read(checkpoints.next_expiry) == 30.0


def test_what_is_removed_is_gone(place: Place) -> None:
    row = saved(place, "one")
    assert place.write(checkpoints.remove, place.ann, row.path) == row
    for act in (checkpoints.get, checkpoints.remove):
        with pytest.raises(NotFound):
            place.write(act, place.ann, row.path)


def test_it_exists_from_the_moment_its_operation_has_a_result(place: Place) -> None:
    row = place.checkpoint(place.run(), "one")
    op = step(row.run_id, 1)
    place.append(op, AddCheckpoint(row, ttl_seconds=60.0))
    assert names(place) == []
    place.now += 5
    place.execute(1, op, result=SavedResult(4321))
    found = place.read(checkpoints.get, place.ann, row.path)
    assert (found.size_bytes, found.created, found.expires) == (4321, place.now, place.now + 60)
    outcome = place.outcome(op.request_id)
    assert outcome is not None
    assert outcome.reply == {"path": "p"}


def test_a_save_that_fails_makes_nothing(place: Place) -> None:
    row = place.checkpoint(place.run(), "one")
    op = step(row.run_id, 1)
    place.append(op, AddCheckpoint(row, ttl_seconds=None))
    place.execute(1, op, result=Failure("user", "the disk is full"))
    assert names(place) == []


def test_a_replayed_save_does_not_bring_a_deleted_checkpoint_back(place: Place) -> None:
    row = place.checkpoint(place.run(), "one")
    op = step(row.run_id, 1)
    place.append(op, AddCheckpoint(row, ttl_seconds=None))
    place.execute(1, op, result=SavedResult(1))
    place.write(checkpoints.remove, place.ann, row.path)
    place.execute(1, op, result=SavedResult(1), replayed=True)
    assert names(place) == []


def test_an_inflight_sampler_takes_those_of_its_run_along(place: Place) -> None:
    run_id = place.run()
    for number in range(2):
        op = create(run_id) if number == 0 else step(run_id, number)
        sampler_id = f"{place.session}:sample:{number}"
        row = SamplerRow(sampler_id, place.session, place.ann, BASE, None, run_id, True, sampler_id, f"/{number}")
        place.append(op, AddSampler(row))
        place.execute(number + 1, op, result=SavedResult(1))
    found = place.read(samplers.of_session, place.session)
    assert [row.revision_id for row in found] == [f"{place.session}:sample:1"] * 2
    assert [row.folder for row in found] == ["/1"] * 2


def filed(place: Place, name: str, kind: CheckpointKind = CheckpointKind.TRAINING) -> CheckpointRow:
    """A checkpoint that lies where a server puts it."""
    row = place.checkpoint(place.run(), name, kind)
    folder = Files(place.folder).checkpoint(row.path)
    folder.mkdir()
    row = CheckpointRow(row.run_id, kind, name, row.key_id, str(folder), row.created, 1, None, None)
    place.write(checkpoints.add, row)
    return row


def moved(place: Place) -> Path:
    """The data folder at another place, and something else at its former one."""
    place.store.close()
    there = place.folder.with_name("moved")
    place.folder.rename(there)
    place.folder = there
    return there


def test_all_that_rows_name_lies_in_a_data_folder_that_was_moved(place: Place) -> None:
    row = filed(place, "one", CheckpointKind.SAMPLER)
    files, run_id = Files(place.folder), row.run_id
    sampler = f"{place.session}:sample:0"
    revision, before = files.revision(sampler), place.folder
    pin, snapshot = files.pin(Path(row.folder), f"{run_id}:2"), files.snapshots / BASE / "a.safetensors"
    about = (place.session, place.ann, BASE, None, run_id, False, sampler)
    place.write(samplers.create, SamplerRow(sampler, *about, str(revision)), place.now)
    split = Split(Arm(str(row.path), BASE, Revision(str(row.path), row.folder)))
    place.write(deployments.set, "bot", place.ann, split, 7.0, "me")
    save, load = SaveState(run_id, 1, "s", row.folder), LoadState(run_id, 2, "l", str(pin), False)
    place.append(save)
    place.append(load)
    there = moved(place)
    place.open()
    inside = lambda path: str(there / Path(path).relative_to(before))  # noqa: E731
    assert place.read(checkpoints.get, place.ann, row.path).folder == inside(row.folder)
    assert place.read(samplers.get, place.ann, sampler).folder == inside(revision)
    arm = place.read(deployments.current, "bot").split.main
    assert (arm.revision and arm.revision.folder) == inside(row.folder)
    assert [op.folder for op in place.replay().ops] == [inside(row.folder), inside(pin)]  # type: ignore[union-attr]
    place.write(journal.record_snapshot, BASE, Snapshotted(3, (ModelSnapshot(run_id, 3, 3, str(snapshot)),)))
    moved(place).rename(before)
    place.folder = before
    place.open()
    assert place.replay().snapshots[0].file == str(snapshot)


@pytest.mark.parametrize("data", ["data", "checkpoints", "checkpoints/mine", "revisions"])
def test_a_data_folder_may_be_called_as_what_lies_in_one(tmp_path: Path, data: str) -> None:
    """Rows and operations hold paths of which the end alone tells where the data folder ends."""
    files = Files(tmp_path / data)
    for kind in CheckpointKind:
        place = files.checkpoint(CheckpointPath("run:0", kind, "one"))
        assert in_row(str(place)) == str(place.relative_to(files.data))
    snapshots = [files.snapshots / model / "run.7.safetensors" for model in ("tiny", "revisions", "checkpoints")]
    for place in (*snapshots, files.pins / files.pin_name("run:0:1"), files.revision("s:sample:0")):
        assert in_row(str(place)) == str(place.relative_to(files.data))


def steps_of(connection: Connection, work: Callable[[], object]) -> int:
    """What SQLite has to do for it, in fifties of its own steps: a busy machine changes nothing of that."""
    counted: list[None] = []
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.set_progress_handler(lambda: counted.append(None), 50)
    work()
    driver.set_progress_handler(None, 0)
    return len(counted)


def test_a_database_of_very_many_samplers_is_brought_up_to_date_in_linear_time(place: Place) -> None:
    run_id, connection = place.run(), place.store.engine.connect()

    def steps(n_more: int) -> int:
        about = {"session_id": place.session, "key_id": place.ann, "base_model": BASE, "run_id": run_id}
        rows = [
            about | {"id": f"s{uuid4()}", "inflight": False, "created": 1.0, "folder": f"/old/revisions/{uuid4()}"}
            for _ in range(n_more)
        ]
        connection.execute(insert(SAMPLERS), rows)
        counted = steps_of(connection, lambda: m010_paths_from_the_data_folder_on(connection))
        assert not connection.scalar(select(func.count()).where(SAMPLERS.c.folder.startswith("/")))
        connection.execute(delete(SAMPLERS))
        return counted

    with connection, connection.begin():
        assert steps(800) < 6 * steps(200)


def test_rows_of_before_name_folders_that_were_moved_too(place: Place) -> None:
    """They held whole paths."""
    row = filed(place, "one")
    other = saved(place, "elsewhere")
    snapshot = Files(place.folder).snapshots / BASE / "a.safetensors"
    place.write(journal.record_snapshot, BASE, Snapshotted(3, (ModelSnapshot(row.run_id, 3, 3, str(snapshot)),)))
    with place.store.engine.begin() as connection:
        connection.execute(update(CHECKPOINTS).where(CHECKPOINTS.c.name == "one").values(folder=row.folder))
        connection.execute(update(SNAPSHOTS).values(file=str(snapshot)))
        LEFT_FILES.drop(connection)
        connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number == 10))
    there = moved(place)
    open_database(there).dispose()
    place.open()
    written = place.read(lambda connection: connection.scalars(select(CHECKPOINTS.c.folder)).all())
    assert set(written) == {f"checkpoints/{file_name(row.run_id)}/weights/one", other.folder}
    assert place.read(checkpoints.get, place.ann, row.path).folder.startswith(str(there))
    assert place.read(checkpoints.get, place.ann, other.path).folder == other.folder
    assert place.replay().snapshots[0].file == str(there / "journal" / "snapshots" / BASE / "a.safetensors")


def test_files_of_a_deletion_that_was_cut_off_are_taken(place: Place) -> None:
    kept, row = filed(place, "kept"), filed(place, "one")
    place.write(checkpoints.remove, place.ann, row.path)
    place.reopen()
    (taken,) = place.write(checkpoints.take_left_files)
    assert taken.name.startswith(".gone-")  # which the sweeper deletes, should this be cut off too
    assert (Path(row.folder).exists(), Path(kept.folder).exists()) == (False, True)
    assert place.write(checkpoints.take_left_files) == []


def test_what_cannot_be_taken_holds_up_nothing_else(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, free = filed(place, "stuck"), filed(place, "free")
    for row in (stuck, free):
        place.write(checkpoints.remove, place.ann, row.path)
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "stuck":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        assert len(place.write(checkpoints.take_left_files)) == 1
    assert (Path(stuck.folder).exists(), Path(free.folder).exists()) == (True, False)
    assert len(place.write(checkpoints.take_left_files)) == 1, "it is tried again"


def test_very_many_left_files_are_taken_in_linear_time(place: Place) -> None:
    """A session may leave as many revisions as it has had steps, and the writer has others to serve meanwhile."""
    connection = place.store.engine.connect()

    def steps(n: int) -> int:
        about = {"session_id": place.session, "key_id": place.ann, "base_model": BASE, "run_id": "r", "created": 1.0}
        paths = [f"revisions/{uuid4()}" for _ in range(n)]
        rows = [about | {"id": path, "inflight": False, "folder": path} for path in paths]
        connection.execute(insert(SAMPLERS), rows)
        checkpoints.leave_files(connection, paths)
        counted = steps_of(connection, lambda: checkpoints.take_left_files(connection))
        connection.execute(delete(SAMPLERS))
        return counted

    with connection, connection.begin():
        assert steps(800) < 6 * steps(200)


def test_files_that_are_known_again_stay(place: Place) -> None:
    """A checkpoint of the same name may have been saved since, or be about to be."""
    row = filed(place, "one")
    place.write(checkpoints.remove, place.ann, row.path)
    op = SaveState(row.run_id, 1, f"{row.run_id}:1", row.folder)
    place.append(op, AddCheckpoint(row, ttl_seconds=None))
    assert place.write(checkpoints.take_left_files) == []
    place.execute(1, op, result=SavedResult(1))
    assert place.write(checkpoints.take_left_files) == []
    assert Path(row.folder).exists()
    place.write(checkpoints.remove, place.ann, row.path)
    assert len(place.write(checkpoints.take_left_files)) == 1


def test_files_that_a_replay_writes_after_their_deletion_are_taken(place: Place) -> None:
    row = place.checkpoint(place.run(), "one")
    folder = Files(place.folder).checkpoint(row.path)
    row = CheckpointRow(row.run_id, row.kind, "one", row.key_id, str(folder), row.created, 1, None, None)
    op = SaveState(row.run_id, 1, f"{row.run_id}:1", row.folder)
    place.append(op, AddCheckpoint(row, ttl_seconds=None))
    place.execute(1, op, result=SavedResult(1))
    place.write(checkpoints.remove, place.ann, row.path)
    assert place.write(checkpoints.take_left_files) == []
    folder.mkdir()  # as the engine does
    place.execute(1, op, result=SavedResult(1), replayed=True)
    assert len(place.write(checkpoints.take_left_files)) == 1
    assert not folder.exists()


def test_a_checkpoint_whose_files_a_replay_writes_anew_has_their_checksum(place: Place) -> None:
    """On another machine the replay of a data folder that was taken there may differ in the last bits."""
    row = place.checkpoint(place.run(), "one")
    op = SaveState(row.run_id, 1, f"{row.run_id}:1", row.folder)
    place.append(op, AddCheckpoint(row, ttl_seconds=None))
    place.execute(1, op, result=SavedResult(7, "0000abcd"))
    place.execute(1, op, result=SavedResult(8, "0000abce"), replayed=True)
    found = place.read(checkpoints.get, place.ann, row.path)
    assert (found.size_bytes, found.sums_crc32) == (8, "0000abce")


def test_a_checkpoint_that_is_saved_over_while_its_session_ends_has_the_checksum_of_its_files(place: Place) -> None:
    row = place.checkpoint(place.run(), "one")
    first, second = (SaveState(row.run_id, number, f"{row.run_id}:{number}", row.folder) for number in (1, 2))
    place.append(first, AddCheckpoint(row, ttl_seconds=None))
    place.execute(1, first, result=SavedResult(7, "0000abcd"))
    place.append(second, AddCheckpoint(row, ttl_seconds=None))  # with overwrite, and the engine begins it
    over = Failure("user", "The session has ended.")
    place.write(journal.forget_model, place.store.segments, row.run_id, over, place.now)
    place.execute(2, second, result=SavedResult(8, "0000abce"))
    found = place.read(checkpoints.get, place.ann, row.path)
    assert (found.size_bytes, found.sums_crc32) == (8, "0000abce")


def test_revisions_of_a_session_are_taken_after_its_end(place: Place) -> None:
    """Also those that an in-flight sampler has moved on from."""
    run_id, files = place.run(), Files(place.folder)
    for number in range(2):
        sampler = f"{place.session}:sample:{number}"
        folder = files.revision(sampler)
        folder.mkdir()
        about = (place.session, place.ann, BASE, None, run_id, True, sampler)
        op = create(run_id) if number == 0 else step(run_id, number)
        place.append(op, AddSampler(SamplerRow(sampler, *about, str(folder))))
        place.execute(number + 1, op, result=SavedResult(1))
    assert place.read(lambda connection: set(connection.scalars(select(SAMPLERS.c.folder)))) == {
        f"revisions/{folder.name}"
    }
    place.write(sessions.end, place.ann, place.session, "finished", None)
    assert len(place.write(checkpoints.take_left_files)) == 2
    assert list(files.revisions.glob("[!.]*")) == []
