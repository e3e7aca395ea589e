"""Uploaded files and jobs in the store: pages, quotas, owners, what is swept, and steps of the database."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, inspect, text

from loreloop.protocol.errors import BadRequest, Conflict, LoreloopError, NotFound, TooLarge
from loreloop.protocol.jobs import JobPlan, ResumePoint
from loreloop.store import jobs, keys, tuned_models, uploads
from loreloop.store.files import Files
from loreloop.store.job_rows import FileRow, JobRow, TunedModel
from loreloop.store.schema import FILES, JOB_EVENTS, JOB_METRICS, JOBS, MIGRATIONS, TUNED_MODELS
from loreloop.store.store import open_database
from tests.store.place import Place

PURPOSES = ("fine-tune", "evals", "user_data")
ROOM = 1 << 30


def plan(training_file: str = "file-x", **fields: object) -> JobPlan:
    usual = {
        "model": "tiny",
        "base_model": "tiny",
        "kind": "supervised",
        "training_file": training_file,
        "validation_file": None,
        "hyperparameters": {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0},
        "learning_rate": 1e-4,
        "seed": 1,
        "name": "ft:tiny:ann::1",
    }
    return JobPlan(**usual | fields)  # type: ignore[arg-type]


def add_file(place: Place, key_id: str, purpose: str = "fine-tune", **fields: object) -> str:
    row = {
        "id": uploads.new_id(),
        "key_id": key_id,
        "name": "a",
        "purpose": purpose,
        "n_bytes": 1,
        "created": place.now,
    }
    return place.write(uploads.add, FileRow(**row | fields), ROOM).id  # type: ignore[arg-type]


def add_job(place: Place, key_id: str, **fields: object) -> str:
    return place.write(jobs.create, JobRow(jobs.new_id(), key_id, place.now, plan(**fields)), 1000).id


def add_model(place: Place, key_id: str, job_id: str) -> TunedModel:
    made = TunedModel(
        name="ft:x",
        key_id=key_id,
        job_id=job_id,
        base_model="tiny",
        step=1,
        is_final=True,
        path="tinker://r/sampler_weights/a",
        state_path=None,
        metrics={},
        created=1.0,
    )
    place.write(tuned_models.add, made)
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=st.lists(st.tuples(st.booleans(), st.sampled_from(PURPOSES)), max_size=12),
    limit=st.integers(1, 13),
    purpose=st.sampled_from(("", *PURPOSES)),
    ascending=st.booleans(),
)
def test_pages_together_are_the_whole_list(
    place: Place, made: list[tuple[bool, str]], limit: int, purpose: str, ascending: bool
) -> None:
    place.write(lambda connection: connection.execute(delete(FILES)))
    ids = [(of_ann, of, add_file(place, place.ann if of_ann else place.bob, of)) for of_ann, of in made]
    wanted = [file_id for of_ann, of, file_id in ids if of_ann and purpose in ("", of)]
    seen: list[str] = []
    while True:
        after = seen[-1] if seen else ""
        page = place.read(uploads.list_page, place.ann, limit, after=after, purpose=purpose, ascending=ascending)
        seen += [row.id for row in page]
        if len(page) < limit:
            break
    assert seen == (wanted if ascending else wanted[::-1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    teams=st.lists(st.sampled_from(("a", "b", None)), max_size=9),
    limit=st.integers(1, 10),
    wanted=st.sampled_from(("a", "b", None)),
)
def test_pages_of_jobs_together_are_the_whole_list(
    place: Place, teams: list[str | None], limit: int, wanted: str | None
) -> None:
    place.write(lambda connection: connection.execute(delete(JOBS)))
    metadata = [{"team": team} if team else None for team in teams]
    ids = [add_job(place, place.ann, metadata=each) for each in metadata]
    found: list[str] = []
    while True:
        page = place.read(
            jobs.list_page,
            place.ann,
            limit,
            after=found[-1] if found else "",
            metadata={"team": wanted} if wanted else None,
            without_metadata=wanted is None,
        )
        found += [row.id for row in page]
        if len(page) < limit:
            break
    assert found == [job_id for job_id, team in zip(ids, teams, strict=True) if team == wanted][::-1]


def test_events_are_paged_both_ways(place: Place) -> None:
    job_id = add_job(place, place.ann)
    for number in range(1, 8):
        place.write(jobs.say, job_id, "info", f"{number}", place.now)
    newest = place.read(jobs.events, job_id, 3)
    assert [event.message for event in newest] == ["7", "6", "5"]
    assert [event.message for event in place.read(jobs.events, job_id, 9, after=newest[-1].id)] == ["4", "3", "2", "1"]
    assert [event.message for event in place.read(jobs.events, job_id, 2, behind=3)] == ["4", "5"]
    for wrong in ("x", "ftevent-1-2", f"{newest[0].id}x"):
        with pytest.raises(BadRequest):
            place.read(jobs.events, job_id, 1, after=wrong)


def test_a_key_has_so_much_room_and_no_more(place: Place) -> None:
    row = FileRow(id="file-1", key_id=place.ann, name="a", purpose="evals", n_bytes=60, created=1.0)
    place.write(uploads.add, row, 100)
    with pytest.raises(TooLarge, match="Delete some"):
        place.write(uploads.add, FileRow(**{f: getattr(row, f) for f in row.__struct_fields__} | {"id": "file-2"}), 100)
    place.write(uploads.add, FileRow("file-3", place.bob, "a", "evals", 60, 1.0), 100)  # another key's room


def test_a_key_has_so_many_unfinished_jobs_and_no_more(place: Place) -> None:
    rows = [JobRow(jobs.new_id(), place.ann, 1.0, plan()) for _ in range(3)]
    for row in rows[:2]:
        place.write(jobs.create, row, 2)
    with pytest.raises(TooLarge, match="2 jobs that are not finished"):
        place.write(jobs.create, rows[2], 2)
    place.write(jobs.change_status, rows[0].id, "cancelled", 2.0)
    place.write(jobs.create, rows[2], 2)


def test_what_is_of_another_key_looks_missing(place: Place) -> None:
    file_id, job_id = add_file(place, place.ann), add_job(place, place.ann)
    add_model(place, place.ann, job_id)
    for get, name in ((uploads.get, file_id), (jobs.get, job_id), (tuned_models.get, "ft:x")):
        place.read(get, place.ann, name)
        with pytest.raises(NotFound):
            place.read(get, place.bob, name)
        for other in ("", "%", f"{name}'"):
            with pytest.raises(NotFound):
                place.read(get, place.ann, other)


def test_a_file_goes_when_nothing_needs_it(place: Place) -> None:
    files = Files(place.folder)
    kept, expired, unknown = (
        add_file(place, place.ann, expires=5.0),
        add_file(place, place.ann, expires=5.0),
        "file-lost",
    )
    for file_id in (kept, expired, unknown):
        files.upload(file_id).write_bytes(b"x")
    job_id = add_job(place, place.ann, training_file=kept)
    place.write(lambda connection: connection.execute(FILES.update().values(expires=None)))
    with pytest.raises(Conflict, match=job_id):
        place.write(uploads.remove, files, place.ann, kept)
    place.write(lambda connection: connection.execute(FILES.update().values(expires=5.0)))
    place.write(uploads.sweep, files, 6.0)
    assert [row.id for row in place.read(uploads.list_page, place.ann, 9)] == [kept], "a job needs it"
    assert {path.name for path in place.read(uploads.unknown_bodies, files, 1e12)} == {expired, unknown}
    assert place.read(uploads.unknown_bodies, files, 0.0) == [], "it may be on its way"
    place.write(jobs.change_status, job_id, "cancelled", 7.0)
    place.write(uploads.sweep, files, 8.0)
    assert place.read(uploads.list_page, place.ann, 9) == []


def test_files_of_revoked_keys_go(place: Place) -> None:
    add_file(place, place.bob)
    place.write(keys.revoke, place.bob, 5.0)
    place.write(uploads.sweep, Files(place.folder), 6.0)
    assert place.read(uploads.list_page, place.bob, 9) == []


def test_an_interrupted_job_is_told_from_where_it_was_kept(place: Place) -> None:
    job_id = add_job(place, place.ann)
    for step in (1, 2, 3):
        place.write(jobs.stepped, job_id, step, {"train_loss": 1.0}, trained_tokens=10 * step, now=1.0)
    point = ResumePoint(step=2, states={"policy": "tinker://r/weights/a"}, trained_tokens=20)
    assert place.write(jobs.kept, job_id, point) is None
    back = place.write(jobs.go_back, job_id)
    assert (back.step, back.trained_tokens, back.resume) == (2, 20, point)
    assert [step for step, _ in place.read(jobs.metrics, job_id)] == [1, 2]
    assert place.write(jobs.let_go, job_id) == point
    assert place.write(jobs.go_back, job_id).step == 0


def test_old_jobs_go_and_what_they_made_stays(place: Place) -> None:
    old, new = add_job(place, place.ann), add_job(place, place.ann)
    for job_id, at in ((old, 5.0), (new, 15.0)):
        place.write(jobs.say, job_id, "info", "x", at)
        place.write(jobs.stepped, job_id, 1, {}, trained_tokens=1, now=at)
        place.write(jobs.change_status, job_id, "succeeded", at)
    made = add_model(place, place.ann, old)
    place.write(jobs.sweep, 10.0)
    assert [row.id for row in place.read(jobs.list_page, place.ann, 9)] == [new]
    assert place.read(tuned_models.get, place.ann, "ft:x").path == made.path
    assert place.read(jobs.events, old, 9) == []


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_what_has_ended_does_not_change(place: Place, status: str) -> None:
    job_id = add_job(place, place.ann)
    place.write(jobs.change_status, job_id, status, 1.0)  # type: ignore[arg-type]
    for wanted, origins in (("cancelled", ("queued", "running", "paused")), ("queued", ("paused",))):
        with pytest.raises(LoreloopError, match=f"is {status}"):
            place.write(jobs.change_status, job_id, wanted, 2.0, only_from=origins)  # type: ignore[arg-type]


def test_a_database_of_before_gets_the_tables(tmp_path: Path) -> None:
    tables = (JOB_EVENTS, JOB_METRICS, TUNED_MODELS, JOBS, FILES)
    engine = open_database(tmp_path)
    with engine.begin() as connection:
        for table in tables:
            connection.execute(text(f"DROP TABLE {table.name}"))
        connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number == 12))
    engine.dispose()
    engine = open_database(tmp_path)
    with engine.connect() as connection:
        assert {table.name for table in tables} <= set(inspect(connection).get_table_names())
    engine.dispose()
