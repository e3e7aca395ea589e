"""Records of sampled sequences: for their session, for their time, within a bound of bytes."""

from collections.abc import Sequence

import pytest

from loreloop.protocol.errors import BadRequest
from loreloop.store import journal, spool
from loreloop.store.rows import SequenceRecord
from tests.store.place import Place


def record(n_tokens: int, revision_id: str | None = "r1") -> SequenceRecord:
    return SequenceRecord(bytes(4), bytes(range(4)) * n_tokens, bytes(4 * n_tokens), revision_id)


def add(
    place: Place, names: Sequence[str], n_tokens: int = 2, *, expires: float = 100.0, max_bytes: int = 1 << 20
) -> None:
    records = [record(n_tokens)] * len(names)
    segments = place.store.segments
    place.write(spool.add, segments, "s1", names, records, expires=expires, max_bytes=max_bytes)


def get(place: Place, name: str, *, session: str = "s1", now: float = 0.0) -> SequenceRecord | None:
    try:
        return place.read(spool.get, place.store.segments, session, name, now)
    except BadRequest:
        return None


def test_records_come_back_after_a_restart(place: Place) -> None:
    add(place, ["a", "b"])
    place.reopen()
    assert get(place, "a") == get(place, "b") == record(2)


def test_a_foreign_or_unknown_sequence_is_the_askers_error(place: Place) -> None:
    add(place, ["a"])
    assert get(place, "a", session="s2") is None
    assert get(place, "z") is None
    with pytest.raises(BadRequest, match="Sample again"):
        place.read(spool.get, place.store.segments, "s2", "a", 0.0)


def test_a_record_ends_with_its_time_swept_or_not(place: Place) -> None:
    add(place, ["a"], expires=100.0)
    add(place, ["b"], expires=200.0)
    assert get(place, "a", now=99.9) is not None
    assert get(place, "a", now=100.0) is None
    place.write(spool.sweep, 150.0)
    assert get(place, "a") is None
    assert get(place, "b") is not None


def test_use_starts_the_time_anew(place: Place) -> None:
    add(place, ["a", "b"])
    place.write(spool.renew, ["a"], 500.0)
    assert get(place, "a", now=400.0) is not None
    assert get(place, "b", now=400.0) is None


def test_over_the_bound_those_that_expire_first_go(place: Place) -> None:
    for number, name in enumerate("abcdef"):
        add(place, [name], n_tokens=100, expires=100.0 + number, max_bytes=3000)
    kept = [name for name in "abcdef" if get(place, name) is not None]
    assert kept == ["d", "e", "f"]


def test_renewed_records_outlive_later_ones(place: Place) -> None:
    add(place, ["old"], n_tokens=100, expires=100.0)
    place.write(spool.renew, ["old"], 900.0)
    for number in range(5):
        add(place, [f"{number}"], n_tokens=100, expires=200.0 + number, max_bytes=3000)
    assert get(place, "old") is not None
    assert get(place, "0") is None


def test_a_record_larger_than_the_bound_is_not_kept(place: Place) -> None:
    add(place, ["big"], n_tokens=1000, max_bytes=100)
    assert get(place, "big") is None


def test_a_sequence_recorded_twice_keeps_its_first_record(place: Place) -> None:
    add(place, ["a"], n_tokens=2)
    add(place, ["a"], n_tokens=3)
    assert get(place, "a") == record(2)


def test_records_hold_their_segments_until_they_go(place: Place) -> None:
    place.store.segments.segment_bytes = 200
    for name in "abcdef":
        add(place, [name], n_tokens=20)
    place.write(journal.sweep_segments, place.store.segments)
    assert [get(place, name) for name in "abcdef"] == [record(20)] * 6
    place.write(spool.sweep, 1000.0)
    place.write(journal.sweep_segments, place.store.segments)
    assert len(place.store.segments.numbers()) == 1
