"""A checkpoint exists when its row does: with the result of the operation that saved it, until its time is over."""

import pytest

from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.paths import CheckpointKind
from loreloop.protocol.training import Failure, SavedResult
from loreloop.store import checkpoints, samplers
from loreloop.store.rows import AddCheckpoint, AddSampler, CheckpointRow, SamplerRow
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
