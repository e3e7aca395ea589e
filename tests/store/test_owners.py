"""Keys, and what belongs to them: nobody sees, changes or lists what is another key's."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from loreloop.protocol.errors import LoreloopError, NotFound
from loreloop.protocol.paths import CheckpointKind, CheckpointPath
from loreloop.protocol.sampling import Revision
from loreloop.protocol.training import LoraSpec
from loreloop.store import checkpoints, keys, runs, samplers, sessions
from loreloop.store.rows import RunRow, SamplerRow, SessionNew
from tests.store.place import BASE, Place


def sampler(place: Place, name: str, run_id: str | None = None, inflight: bool = False) -> SamplerRow:
    row = SamplerRow(f"{place.session}:sample:{name}", place.session, place.ann, BASE, None, run_id, inflight)
    place.write(samplers.create, row, place.now)
    return row


def test_a_key_is_found_by_its_secret(place: Place) -> None:
    made = place.write(keys.create, "carl", ("train", "infer"), 5.0)
    assert made.secret.startswith("tml-")
    assert place.read(keys.find, made.secret, place.now) == made.row
    assert place.read(keys.find, made.secret + "x", place.now) is None
    assert place.read(keys.find, "", place.now) is None
    assert (made.row.name, made.row.scopes, made.row.created) == ("carl", ("train", "infer"), 5.0)


def test_a_key_expires_and_is_forgotten(place: Place) -> None:
    short = place.write(keys.create, "dora", ("admin",), 5.0, 15.0)
    long = place.write(keys.create, "ed", ("admin",), 5.0)
    assert place.read(keys.find, short.secret, 14.9) == short.row
    assert place.read(keys.find, short.secret, 15.0) is None
    place.write(keys.forget_expired, 15.0)
    left = [row.id for row in place.read(keys.list_all)]
    assert short.row.id not in left
    assert long.row.id in left


def test_secrets_differ_and_are_stored_nowhere(place: Place) -> None:
    secrets = {place.write(keys.create, "same name", ("train",), 1.0).secret for _ in range(5)}
    place.store.close()
    files = b"".join(path.read_bytes() for path in place.folder.glob("**/*") if path.is_file())
    assert b"same name" in files
    assert len(secrets) == 5
    assert not [secret for secret in secrets if secret.encode() in files or secret[4:].encode() in files]


def test_a_revoked_key_is_not_found_but_listed(place: Place) -> None:
    made = place.write(keys.create, "carl", ("train",), place.now + 1)
    place.write(keys.revoke, made.row.id, 7.0)
    assert place.read(keys.find, made.secret, place.now) is None
    assert [(row.name, row.revoked) for row in place.read(keys.list_all)][-1] == ("carl", 7.0)
    with pytest.raises(NotFound):
        place.write(keys.revoke, made.row.id, 8.0)


def test_a_lookup_sees_at_once_what_another_connection_revoked(place: Place) -> None:
    made = place.write(keys.create, "carl", ("train",), 1.0)
    for _ in range(3):
        assert place.read(keys.find, made.secret, place.now) is not None
    place.write(keys.revoke, made.row.id, 2.0)
    assert place.read(keys.find, made.secret, place.now) is None


Act = Callable[[Connection, Place, str], object]
PATH = "t"
FOREIGN: dict[str, Act] = {
    "session": lambda c, p, key: sessions.get(c, key, p.session),
    "heartbeat": lambda c, p, key: sessions.touch(c, key, p.session, 2.0),
    "end of session": lambda c, p, key: sessions.end(c, key, p.session, "finished", None),
    "run": lambda c, p, key: runs.get(c, key, f"{p.session}:train:0"),
    "sampler": lambda c, p, key: samplers.get(c, key, f"{p.session}:sample:s"),
    "checkpoint": lambda c, p, key: checkpoints.get(c, key, path(p)),
    "its expiry": lambda c, p, key: checkpoints.set_expiry(c, key, path(p), 1.0),
    "its removal": lambda c, p, key: checkpoints.remove(c, key, path(p)),
}


def path(place: Place) -> CheckpointPath:
    return CheckpointPath(f"{place.session}:train:0", CheckpointKind.TRAINING, PATH)


def furnish(place: Place) -> None:
    place.write(checkpoints.add, place.checkpoint(place.run(), PATH))
    sampler(place, "s")


@pytest.mark.parametrize("act", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_anothers_is_not_there(place: Place, act: Act) -> None:
    furnish(place)
    with pytest.raises(NotFound):
        place.write(act, place, place.bob)
    assert place.read(checkpoints.get, place.ann, path(place)).expires is None
    assert place.read(sessions.get, place.ann, place.session).status == "active"
    place.write(act, place, place.ann)


def test_another_key_learns_the_same_as_of_what_never_was(place: Place) -> None:
    furnish(place)

    def told(key_id: str, session_id: str) -> str:
        with pytest.raises(LoreloopError) as caught:
            place.read(sessions.get, key_id, session_id)
        return str(caught.value).replace(session_id, "…")

    assert told(place.bob, place.session) == told(place.ann, "no-such-session")


def test_lists_hold_what_is_ones_own(place: Place) -> None:
    furnish(place)
    for key_id, total in ((place.ann, 1), (place.bob, 0)):
        pages = (
            place.read(sessions.list_page, key_id, 10, 0),
            place.read(runs.list_page, key_id, 10, 0),
            place.read(checkpoints.list_page, key_id, 10, 0),
        )
        assert [(page.total, len(page.rows)) for page in pages] == [(total, total)] * 3
    assert place.read(runs.n_live, place.bob) == 0
    assert place.read(checkpoints.of_run, place.bob, f"{place.session}:train:0") == []


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_are_parts_of_one_list_newest_first(place: Place, limit: int) -> None:
    made = [place.run(number) for number in range(7)]
    pages = [place.read(runs.list_page, place.ann, limit, offset) for offset in range(0, 9, limit)]
    assert [row.id for page in pages for row in page.rows] == made[::-1]
    assert {page.total for page in pages} == {7}


def test_pages_do_not_overlap_where_times_are_equal(place: Place) -> None:
    made = {place.write(sessions.create, place.ann, SessionNew(), 5.0) for _ in range(9)} | {place.session}
    pages = [place.read(sessions.list_page, place.ann, 4, offset) for offset in (0, 4, 8)]
    found = [row.id for page in pages for row in page.rows]
    assert len(found) == len(made)
    assert set(found) == made


def test_a_session_comes_back_as_it_was_opened(place: Place) -> None:
    new = SessionNew(("a", "ü"), {"deep": [1, {"x": None}]}, "0.38.0", "project", "name")
    session_id = place.write(sessions.create, place.ann, new, 3.0)
    place.reopen()
    row = place.read(sessions.get, place.ann, session_id)
    assert (row.new, row.created, row.last_seen, row.status) == (new, 3.0, 3.0, "active")


def test_a_sign_of_life_keeps_a_session(place: Place) -> None:
    assert place.write(sessions.touch, place.ann, place.session, 50.0) == "active"
    assert place.read(sessions.oldest_sign_of_life) == 50.0
    assert place.read(sessions.active_since_before, 50.0) == []
    assert [row.id for row in place.read(sessions.active_since_before, 50.1)] == [place.session]


def test_an_ended_session_stays_ended_for_its_first_reason(place: Place) -> None:
    assert place.write(sessions.end, place.ann, place.session, "expired", "no heartbeat")
    assert not place.write(sessions.end, place.ann, place.session, "finished", None)
    assert place.write(sessions.touch, place.ann, place.session, 1e9) == "expired"
    assert place.read(sessions.active_since_before, 1e12) == []
    assert place.read(sessions.oldest_sign_of_life) is None


def test_after_a_silence_of_the_server_active_sessions_count_anew(place: Place) -> None:
    ended = place.write(sessions.create, place.ann, SessionNew(), 1.0)
    place.write(sessions.end, place.ann, ended, "finished", None)
    place.write(sessions.renew_all, 5000.0)
    assert place.read(sessions.get, place.ann, place.session).last_seen == 5000.0
    assert place.read(sessions.get, place.ann, ended).last_seen == 1.0


def test_a_run_made_twice_is_the_first_one(place: Place) -> None:
    run_id = place.run()
    again = RunRow(run_id, place.session, place.bob, "other", LoraSpec(1, 1), 1.0, 1.0, {"x": 1}, False)
    before = place.read(runs.get, place.ann, run_id)
    place.write(runs.create, again)
    assert place.read(runs.get, place.ann, run_id) == before


def test_a_run_that_ended_does_not_count_but_is_there(place: Place) -> None:
    first, second = place.run(0), place.run(1)
    place.write(runs.touch, first, 77.0)
    place.write(runs.set_dead, second)
    assert place.read(runs.n_live, place.ann) == 1
    assert place.read(runs.get, place.ann, first).last_request == 77.0
    assert not place.read(runs.get, place.ann, second).live
    assert {row.id for row in place.read(runs.of_session, place.session)} == {first, second}


def test_inflight_samplers_of_a_run_move_on_together(place: Place) -> None:
    run_id, other = place.run(0), place.run(1)
    follow = [sampler(place, f"{number}", run_id, inflight=True) for number in range(2)]
    stay = [sampler(place, "fixed", run_id), sampler(place, "other", other, inflight=True), sampler(place, "base")]
    place.write(samplers.point_inflight, run_id, Revision("r2", "/r2"))
    found = {row.id: (row.revision_id, row.folder) for row in place.read(samplers.of_session, place.session)}
    assert [found[row.id] for row in follow] == [("r2", "/r2")] * 2
    assert [found[row.id] for row in stay] == [(None, None)] * 3
    sampler(place, "0", other)  # a repeated request
    assert place.read(samplers.get, place.ann, follow[0].id).run_id == run_id
