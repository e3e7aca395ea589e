"""Segment files give back exactly what was appended, or say that they cannot."""

import errno
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.protocol.errors import ServerError, Unavailable
from loreloop.store.segments import HEADER, Location, Segments, records

BODIES = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12)
PARTS = st.floats(0, 1, exclude_max=True)


def filled(folder: Path, bodies: list[bytes], segment_bytes: int = 1 << 20) -> list[Location]:
    segments = Segments(folder, segment_bytes, durable=False)
    found = [segments.append(body) for body in bodies]
    segments.close()
    return found


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.seg")
    return path


def readable(segments: Segments, at: Location) -> bytes | None:
    try:
        return segments.read(at)
    except ServerError:
        return None


def in_a_folder(test: Callable[[Path], None]) -> None:
    """tmp_path is shared by the examples of a property; this one is not."""
    with tempfile.TemporaryDirectory() as name:
        test(Path(name))


@settings(max_examples=50, deadline=None)
@given(st.lists(BODIES, min_size=1, max_size=4), st.integers(1, 100))
def test_records_come_back_over_any_number_of_files_and_openings(lives: list[list[bytes]], bound: int) -> None:
    def test(folder: Path) -> None:
        found = [filled(folder, bodies, bound) for bodies in lives]
        segments = Segments(folder, bound, durable=False)
        assert [[segments.read(at) for at in life] for life in found] == lives
        segments.close()

    in_a_folder(test)


def test_records_for_which_there_was_no_room_stop_no_later_one(tmp_path: Path) -> None:
    """Not even where the next one would have begun a new file."""
    segments = Segments(tmp_path, 100, durable=False)
    kept = [segments.append(b"a" * 60)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80, before[1]))  # in bytes of a file; the system writes what fits
    try:
        for body in (b"b" * 50, b"c" * 90):
            with pytest.raises(OSError):
                segments.append(body)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept += [segments.append(letter * 60) for letter in (b"d", b"e", b"f")]
    assert [segments.read(at)[:1] for at in kept] == [b"a", b"d", b"e", b"f"]
    assert [record.location for record in records(tmp_path, 0, 0)] == kept
    segments.close()


def test_a_record_is_read_while_its_file_is_written(tmp_path: Path) -> None:
    segments = Segments(tmp_path, durable=False)
    for number in range(5):
        body = str(number).encode()
        assert segments.read(segments.append(body)) == body
    segments.close()


def test_a_file_ends_with_the_record_that_passes_its_bound(tmp_path: Path) -> None:
    found = filled(tmp_path, [bytes(30)] * 20, segment_bytes=100)
    assert {path.stat().st_size for path in tmp_path.glob("*.seg")} == {3 * (HEADER.size + 30), 2 * (HEADER.size + 30)}
    assert [at.segment for at in found] == [1 + number // 3 for number in range(20)]


@settings(max_examples=50, deadline=None)
@given(BODIES, PARTS, BODIES)
def test_a_torn_tail_takes_nothing_else_along(bodies: list[bytes], part: float, later: list[bytes]) -> None:
    def test(folder: Path) -> None:
        found = filled(folder, bodies)
        path = only_file(folder)
        left = int(part * path.stat().st_size)
        with path.open("r+b") as file:
            file.truncate(left)
        whole = [at for at in found if at.offset + HEADER.size + at.length <= left]
        added = filled(folder, later)
        segments = Segments(folder)
        assert [segments.read(at) for at in whole] == bodies[: len(whole)]
        assert [segments.read(at) for at in added] == later
        segments.close()

    in_a_folder(test)


@settings(max_examples=50, deadline=None)
@given(BODIES, PARTS, st.integers(0, 7))
def test_a_flipped_bit_is_found_and_damages_one_record(bodies: list[bytes], part: float, bit: int) -> None:
    def test(folder: Path) -> None:
        segments = Segments(folder)
        found = [segments.append(body) for body in bodies]
        at_byte = flip(only_file(folder), part, bit)
        for at, body in zip(found, bodies, strict=True):
            hit = at.offset <= at_byte < at.offset + HEADER.size + at.length
            assert readable(segments, at) == (None if hit else body)
        segments.close()

    in_a_folder(test)


def flip(path: Path, part: float, bit: int) -> int:
    """Turns one bit over; gives the place of its byte."""
    data = bytearray(path.read_bytes())
    at = int(part * len(data))
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return at


def test_opening_a_damaged_file_keeps_the_records_behind_the_damage(tmp_path: Path) -> None:
    found = filled(tmp_path, [b"one", b"two", b"three"])
    flip(only_file(tmp_path), 0, 0)
    segments = Segments(tmp_path, durable=False)
    assert [readable(segments, at) for at in found] == [None, b"two", b"three"]


def test_a_lost_record_never_reads_as_another_one(tmp_path: Path) -> None:
    lost = filled(tmp_path, [b"ann's"])[0]
    with only_file(tmp_path).open("r+b") as file:
        file.truncate(3)
    segments = Segments(tmp_path, durable=False)
    segments.append(b"bob's")
    with pytest.raises(ServerError):
        segments.read(lost)


def test_sweeping_keeps_what_is_used_and_the_file_being_written(tmp_path: Path) -> None:
    segments = Segments(tmp_path, 10)
    found = [segments.append(bytes(20)) for _ in range(5)]
    assert segments.sweep({2, 4}) == [1, 3]
    assert segments.numbers() == [2, 4, 5]
    assert [readable(segments, at) is None for at in found] == [True, False, True, False, False]
    segments.close()


def test_the_name_of_the_folder_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("loreloop.protocol.syncing.sync_path", synced.append)
    Segments(tmp_path / "journal").close()
    assert synced == [tmp_path]


def test_numbers_of_swept_files_are_not_used_again(tmp_path: Path) -> None:
    segments = Segments(tmp_path, 10)
    last = [segments.append(bytes(20)) for _ in range(4)][-1]
    segments.sweep(())
    segments.close()
    assert filled(tmp_path, [b"next"], 10)[0].segment > last.segment


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    segments = Segments(tmp_path, durable=False)
    with pytest.raises(ServerError, match="Segment 9 is gone"):
        segments.read(Location(9, 0, 4))
    segments.close()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_file_that_cannot_be_read_just_now_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    at = filled(tmp_path, [b"body"])[0]
    segments = Segments(tmp_path, durable=False)

    def refused(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        with pytest.raises(Unavailable, match=rf"00000001\.seg cannot be read just now: {os.strerror(number)}"):
            segments.read(at)
    assert segments.read(at) == b"body"
    segments.close()


def test_a_torn_header_is_damage_too(tmp_path: Path) -> None:
    lost = filled(tmp_path, [b""])[0]
    with only_file(tmp_path).open("r+b") as file:
        file.truncate(3)
    with pytest.raises(ServerError):
        Segments(tmp_path, durable=False).read(lost)


@pytest.mark.parametrize("trouble", ["name", "sync"])
def test_a_next_file_that_cannot_be_made_costs_one_record_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    segments = Segments(tmp_path, 1)
    first = segments.append(b"first")
    if trouble == "name":
        (tmp_path / "00000002.seg").mkdir()
    else:
        monkeypatch.setattr("loreloop.store.segments.sync_path", refused)
    with pytest.raises(OSError):
        segments.append(b"second")
    assert segments.read(first) == b"first"
    monkeypatch.undo()
    if trouble == "name":
        (tmp_path / "00000002.seg").rmdir()
    assert segments.read(segments.append(b"third")) == b"third"
    assert segments.numbers() == [1, 2]
    segments.close()


def refused(path: Path) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
