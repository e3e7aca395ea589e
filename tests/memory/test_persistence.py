"""States travel as JSON; files hold them whole, and let one of two writers pass."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.memory.file_store import FileStore
from loreloop.memory.persistence import from_json, to_json
from loreloop.memory.state import MemoryState, Segment
from loreloop.memory.turns import Turn
from loreloop.protocol.errors import BadRequest, Conflict
from tests.memory.conversations import memory_of
from tests.memory.test_budget import TURNS


@given(st.integers(1, 300), st.lists(TURNS, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_state_comes_back_as_it_was(budget: int, turns: list[Turn]) -> None:
    memory = memory_of(budget)
    for turn in turns:
        memory.append(turn)
    assert from_json(to_json(memory.state)) == memory.state


SEGMENT = Segment(0, "user: ", "hello", 4, (0,), "user")
GOOD = MemoryState(10, (SEGMENT,), n_turns=1, next_id=1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 99}, "version"),
        ({"budget": 3}, "budget"),
        ({"n_turns": 0}, "never were"),
        ({"next_id": 0}, "order"),
        ({"segments": (SEGMENT, SEGMENT)}, "order"),
        ({"segments": (msgspec.structs.replace(SEGMENT, tokens=-1),)}, "negative"),
        ({"segments": (msgspec.structs.replace(SEGMENT, turns=()),)}, "never were"),
    ],
)
def test_a_broken_state_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        from_json(to_json(msgspec.structs.replace(GOOD, **changes)))


@given(st.binary(max_size=50))
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        from_json(data)


def test_half_a_file_is_refused() -> None:
    data = to_json(GOOD)
    for length in range(len(data)):
        with pytest.raises(BadRequest):
            from_json(data[:length])


def test_files_keep_what_was_saved(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.load("a/../b") is None
    first = store.save("a/../b", b"one\ntwo", after=0)
    assert FileStore(tmp_path).load("a/../b") == first
    store.save("a/../b", b"three", after=first.revision)
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path]
    store.delete("a/../b")
    assert store.load("a/../b") is None


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save("m", b"first", after=0)
    with pytest.raises(Conflict, match="another writer"):
        store.save("m", b"second", after=0)
    saved = store.load("m")
    assert saved is not None
    assert saved.data == b"first"


def test_who_goes_on_from_a_deleted_memory_is_refused_even_if_it_was_begun_anew(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    old = store.save("m", b"old", after=0)
    store.delete("m")
    new = store.save("m", b"new", after=0)
    with pytest.raises(Conflict):
        store.save("m", b"old and more", after=old.revision)
    assert store.load("m") == new


@pytest.mark.parametrize("id", ["", "x" * 300, "ø" * 100])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(BadRequest, match="id"):
        FileStore(tmp_path).save(id, b"", after=0)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b"hello\nworld")
    with pytest.raises(BadRequest, match=r"m\.json"):
        FileStore(tmp_path).load("m")
