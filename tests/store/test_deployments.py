"""Deployments: a history of versions whose newest counts, rolled back by going forward, found among very many."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, insert, inspect, text

from loreloop.protocol.errors import BadRequest, Conflict, LoreloopError, NotFound
from loreloop.protocol.paths import CheckpointKind
from loreloop.protocol.sampling import Revision
from loreloop.store import checkpoints, deployments, samplers, sessions
from loreloop.store.rows import Arm, CheckpointRow, Deployment, SamplerRow, Split
from loreloop.store.schema import DEPLOYED, DEPLOYMENT_VERSIONS, DEPLOYMENTS, MIGRATIONS, NEWEST
from loreloop.store.steps import STEPS
from loreloop.store.store import open_database
from tests.store.place import BASE, Place

N_MANY = 100_000
PATH = "tinker://x/sampler_weights/a"


def split(target: str = BASE, canary: str | None = None) -> Split:
    return Split(Arm(target, BASE), Arm(canary, BASE) if canary else None, 5.0 if canary else 0.0)


def deploy(place: Place, name: str, target: str = BASE, owner: str | None = None) -> Deployment:
    place.now += 1
    return place.write(deployments.set, name, owner, split(target), place.now, "me")


def names(found: list[Deployment]) -> list[str]:
    return [row.name for row in found]


def test_it_comes_back_as_it_was_set(place: Place) -> None:
    whole = Split(Arm(PATH, BASE, Revision(PATH, "/folder")), Arm("b", BASE), 2.5)
    made = place.write(deployments.set, "bot", place.ann, whole, 7.0, "me")
    place.reopen()
    assert place.read(deployments.current, "bot") == made == Deployment("bot", place.ann, 1, whole, 7.0, "me")


def test_every_change_is_a_version_and_the_newest_counts(place: Place) -> None:
    made = [deploy(place, "bot", target) for target in ("a", "b", "c")]
    deploy(place, "other")
    assert [row.version for row in made] == [1, 2, 3]
    assert place.read(deployments.current, "bot") == made[2]
    assert place.read(deployments.history, "bot", 10) == made[::-1]
    assert place.read(deployments.history, "bot", 2) == [made[2], made[1]]


def test_a_rollback_is_a_new_version_and_another_undoes_it(place: Place) -> None:
    for target in ("a", "b"):
        deploy(place, "bot", target)
    for version, target in ((3, "a"), (4, "b")):
        made = place.write(deployments.rollback, "bot", 9.0, "you")
        assert (made.version, made.split, made.created, made.by) == (version, split(target), 9.0, "you")
        assert place.read(deployments.current, "bot") == made


@pytest.mark.parametrize(("name", "said"), [("new", "one version only"), ("none", "no deployment 'none'")])
def test_without_a_version_before_there_is_no_rollback(place: Place, name: str, said: str) -> None:
    deploy(place, "new")
    with pytest.raises(NotFound, match=said):
        place.write(deployments.rollback, name, 9.0, "me")
    assert place.read(deployments.current, "new").version == 1


def test_nothing_goes_back_to_a_checkpoint_that_is_gone(place: Place) -> None:
    row = place.checkpoint(place.run(), "a", CheckpointKind.SAMPLER)
    place.write(checkpoints.add, row)
    arm = place.read(deployments.arm_of, str(row.path)).arm
    place.write(deployments.set, "bot", None, Split(arm), 1.0, "me")
    deploy(place, "bot")
    place.write(checkpoints.remove, place.ann, row.path)
    with pytest.raises(NotFound, match="no checkpoint"):
        place.write(deployments.rollback, "bot", 9.0, "me")


def sampler_checkpoint(place: Place, name: str, expires: float | None = None) -> CheckpointRow:
    row = place.checkpoint(place.run(), name, CheckpointKind.SAMPLER, expires)
    place.write(checkpoints.add, row)
    return row


def test_what_it_answers_with_is_held_until_it_no_longer_does(place: Place) -> None:
    rows = [sampler_checkpoint(place, name, 5.0) for name in "ab"]
    arms = [place.read(deployments.arm_of, str(row.path)).arm for row in rows]
    place.write(deployments.set, "bot", None, Split(arms[0], arms[1], 5.0), 1.0, "me")
    for row in rows:
        with pytest.raises(Conflict, match="the deployment bot answers with"):
            place.write(checkpoints.remove, place.ann, row.path)
    assert (place.read(checkpoints.expired, 9.0), place.read(checkpoints.next_expiry)) == ([], None)
    place.write(deployments.set, "bot", None, Split(arms[0]), 1.0, "me")
    assert (place.read(checkpoints.expired, 9.0), place.read(checkpoints.next_expiry)) == ([rows[1]], 5.0)
    place.write(checkpoints.remove, place.ann, rows[1].path)
    place.write(deployments.remove, "bot")
    place.write(checkpoints.remove, place.ann, rows[0].path)
    with pytest.raises(NotFound, match="no deployment 'bot'"):
        place.write(deployments.remove, "bot")
    assert deploy(place, "bot").version == 1


def test_deployments_of_before_hold_their_checkpoints_too(tmp_path: Path) -> None:
    place = Place(tmp_path)
    row = sampler_checkpoint(place, "a")
    arm = place.read(deployments.arm_of, str(row.path)).arm
    place.write(deployments.set, "bot", None, Split(Arm(BASE, BASE), arm, 5.0), 1.0, "me")
    with place.store.engine.begin() as connection:
        DEPLOYED.drop(connection)
        connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number == 4))
    place.reopen()
    with pytest.raises(Conflict):
        place.write(checkpoints.remove, place.ann, row.path)
    place.store.close()


def test_a_checkpoint_of_anybody_may_answer_but_only_a_samplers(place: Place) -> None:
    rows = [place.checkpoint(place.run(), "a", kind) for kind in CheckpointKind]
    for row in rows:
        place.write(checkpoints.add, row)
    path = str(rows[1].path)
    assert place.read(deployments.arm_of, path) == (Arm(path, BASE, Revision(path, rows[1].folder)), place.ann)
    for wrong in (str(rows[0].path), f"tinker://{place.run()}", path + "x"):
        with pytest.raises(LoreloopError, match=wrong):
            place.read(deployments.arm_of, wrong)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "tinker://a", ".a", "a b", "é", "a" * 129, "a\n"])
def test_a_name_is_one_plain_word(place: Place, name: str) -> None:
    with pytest.raises(BadRequest, match="cannot be called"):
        deploy(place, name)


def test_the_first_owner_stays(place: Place) -> None:
    owners = [deploy(place, "bot", owner=owner).key_id for owner in (None, place.ann, place.bob, None)]
    assert owners == [None, place.ann, place.ann, place.ann]


def test_a_key_finds_its_own_everybodys_and_what_it_was_granted(place: Place) -> None:
    for name, owner in (("d", place.ann), ("b", place.bob), ("a", place.bob), ("c", None), ("e", place.ann)):
        deploy(place, name, owner=owner)
        deploy(place, name)
    of_key = deployments.of_key
    assert names(place.read(of_key, place.ann, (), 9)) == ["c", "d", "e"]
    assert names(place.read(of_key, place.ann, ("b", "none", "c"), 9)) == ["b", "c", "d", "e"]
    assert names(place.read(of_key, None, ("b",), 9)) == ["b"]
    assert names(place.read(of_key, None, (), 9)) == []
    assert names(place.read(of_key, place.ann, (), 2, "c")) == ["d", "e"]
    assert names(place.read(deployments.all, 3)) == ["a", "b", "c"]
    assert names(place.read(deployments.all, 3, "c")) == ["d", "e"]
    assert sorted(place.read(deployments.names_around, place.ann, "d", 9)) == ["c", "d", "e"]


def many(connection: Connection, key_ids: tuple[str, ...]) -> None:
    """A catalogue of two versions each, owned in turn."""
    body = '{"main":{"target":"fake","base_model":"fake"}}'
    rows = [{"name": f"n{i:06}", "key_id": key_ids[i % len(key_ids)], "version": 2} for i in range(N_MANY)]
    connection.execute(insert(DEPLOYMENTS), rows)
    versions = [{"name": row["name"], "version": v, "split": body} for row in rows for v in (1, 2)]
    connection.execute(insert(DEPLOYMENT_VERSIONS), [row | {"created": 1.0, "by": "me"} for row in versions])


def seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


@pytest.mark.timed
def test_a_page_of_very_many_is_quick_wherever_it_begins(place: Place) -> None:
    place.write(many, (place.ann, place.bob))
    for after in ("", "n050000", "n099990", "z"):
        for page in (
            lambda: place.read(deployments.all, 100, after),  # noqa: B023
            lambda: place.read(deployments.of_key, place.ann, (), 100, after),  # noqa: B023
            lambda: place.read(deployments.of_key, "nobody", ("n000007",), 100, after),  # noqa: B023
            lambda: place.read(deployments.names_around, place.ann, after, 32),  # noqa: B023
        ):
            assert min(seconds(page) for _ in range(3)) < 0.05
    assert names(place.read(deployments.of_key, place.ann, (), 2, "n050000")) == ["n050002", "n050004"]


def test_a_database_of_before_gets_the_tables_and_keeps_its_rows(tmp_path: Path) -> None:
    place = Place(tmp_path)
    run_id = place.run()
    with place.store.engine.begin() as connection:
        for table in (DEPLOYMENT_VERSIONS, DEPLOYMENTS):
            table.drop(connection)
        for index in NEWEST:
            index.drop(connection)
        connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number == 2))
    place.store.close()
    engine = open_database(tmp_path)
    with engine.connect() as connection:
        assert {"deployments", "deployment_versions"} <= set(inspect(connection).get_table_names())
        assert {"checkpoints_by_age"} <= {index["name"] for index in inspect(connection).get_indexes("checkpoints")}
        assert connection.scalars(text("SELECT number FROM migrations ORDER BY 1")).all() == [*range(1, len(STEPS) + 1)]
        assert connection.scalar(text("SELECT id FROM runs")) == run_id
    engine.dispose()


def test_the_newest_weights_of_a_run(place: Place) -> None:
    run_id = place.run()
    assert place.read(samplers.newest_of_run, run_id) is None
    assert place.read(checkpoints.newest_of_run, run_id, CheckpointKind.SAMPLER) is None
    for number in (1, 2):
        row = SamplerRow(f"s{number}", place.session, place.ann, BASE, None, run_id, False, f"s{number}", f"/{number}")
        place.write(samplers.create, row, float(number))
        place.now += 1
        place.write(checkpoints.add, place.checkpoint(run_id, f"c{number}", CheckpointKind.SAMPLER))
        place.now += 1
        place.write(checkpoints.add, place.checkpoint(run_id, f"c{number}"))
    assert place.read(samplers.newest_of_run, run_id) == (2.0, Revision("s2", "/2"))
    newest = place.read(checkpoints.newest_of_run, run_id, CheckpointKind.SAMPLER)
    assert newest is not None
    assert (newest.name, newest.kind) == ("c2", CheckpointKind.SAMPLER)
    place.write(sessions.end, place.ann, place.session, "finished", None)
    assert place.read(samplers.newest_of_run, run_id) is None
