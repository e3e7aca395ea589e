"""Memories in the database: of a key and a user, one writer at a time, whole or not at all, within bounds."""

import asyncio
import shutil
import threading
from itertools import count as numbers
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, inspect

from loreloop.memory.persistence import from_json, to_json
from loreloop.protocol.errors import BadRequest, Conflict, OutOfService, TooLarge
from loreloop.protocol.memories import Saved
from loreloop.store import keys, memories
from loreloop.store.memories import Bounds, MemoriesOf
from loreloop.store.rows import MemoryName
from loreloop.store.schema import MEMORIES, MIGRATIONS
from loreloop.store.store import Store, open_database
from tests.memory.conversations import memory_of, small_talk
from tests.store.place import Place
from tests.store.test_store_kills import lines_until_killed
from tests.store.test_store_kills import numbers as numbers_in


def of(place: Place, user: str = "ann") -> MemoriesOf:
    return MemoriesOf(place.store, place.ann, user)


def test_a_memory_comes_back_and_goes(place: Place) -> None:
    assert of(place).load("talk") is None
    first = of(place).save("talk", b"one", after=0)
    second = of(place).save("talk", b"\x00\xff two", after=first.revision)
    assert second == Saved(b"\x00\xff two", first.revision + 1)
    place.reopen()
    assert of(place).load("talk") == second
    of(place).delete("talk")
    of(place).delete("talk")
    assert of(place).load("talk") is None


def test_the_server_reads_and_writes_it_from_its_loop(place: Place) -> None:
    name = MemoryName(place.ann, "", "talk")
    saved = asyncio.run(place.store.write(memories.save, name, Saved(b"x", 0), 5.0))
    assert place.read(memories.load, name) == saved


def test_ids_belong_to_a_key_and_a_user(place: Place) -> None:
    saved = of(place).save("talk", b"mine", after=0)
    for other in (of(place, "bob"), of(place, ""), MemoriesOf(place.store, place.bob, "ann")):
        assert other.load("talk") is None
        other.delete("talk")
        other.save("talk", b"other", after=0)
    assert of(place).load("talk") == saved


def test_the_second_of_two_writers_is_refused(place: Place) -> None:
    first = of(place).save("talk", b"first", after=0)
    for after in (0, first.revision - 1, first.revision + 1):
        with pytest.raises(Conflict, match="another writer"):
            of(place).save("talk", b"second", after=after)
    assert of(place).load("talk") == first


def test_who_goes_on_from_a_deleted_memory_is_refused_even_if_it_was_begun_anew(place: Place) -> None:
    old = of(place).save("talk", b"secret", after=0)
    of(place).delete("talk")
    with pytest.raises(Conflict, match="none is stored"):
        of(place).save("talk", b"secret and more", after=old.revision)
    new = of(place).save("talk", b"anew", after=0)
    with pytest.raises(Conflict):
        of(place).save("talk", b"secret and more", after=old.revision)
    assert of(place).load("talk") == new


def test_appends_of_many_writers_are_all_there(place: Place) -> None:
    def work() -> None:
        memory, ann_memories = memory_of(10_000), of(place)
        for number in range(10):
            while True:
                saved = ann_memories.load("talk")
                memory.state = from_json(saved.data) if saved else memory_of(10_000).state
                memory.append(small_talk(number))
                try:
                    ann_memories.save("talk", to_json(memory.state), after=saved.revision if saved else 0)
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    saved = of(place).load("talk")
    assert saved is not None
    assert from_json(saved.data).n_turns == 40


def test_what_was_saved_survives_one_kill_after_another(tmp_path: Path) -> None:
    """At most the append in which the kill came is lost, and none is there by half."""
    place = Place(tmp_path / "data")
    for seconds in (0.05, 0.11, 0.23):
        place.store.close()
        lines = lines_until_killed(place, "tests.store.remembering", place.ann, seconds=seconds)
        place.open()
        saved = of(place).load("talk")
        assert saved is not None
        last = max(numbers_in(lines, "saved"))
        assert from_json(saved.data).n_turns - 1 in (last, last + 1)
    place.store.close()


def test_a_death_at_any_step_of_a_save_leaves_the_old_memory_or_the_new(tmp_path: Path) -> None:
    """What lies on the disk before each statement and each commit is what a death at that moment leaves."""
    place = Place(tmp_path / "data")
    old = of(place).save("talk", b"old", after=0)
    copies = numbers()

    def keep(*_: Any) -> None:
        shutil.copytree(place.folder, tmp_path / f"copy-{next(copies)}")

    for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(place.store.engine, moment, keep)
    new = of(place).save("talk", b"new" * 10_000, after=old.revision)
    for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.remove(place.store.engine, moment, keep)
    place.store.close()
    left = []
    for number in range(next(copies)):
        store = Store(tmp_path / f"copy-{number}", "os")
        left.append(MemoriesOf(store, place.ann, "ann").load("talk"))
        store.close()
    assert len(left) > 6
    assert all(saved == old for saved in left), "nothing of a save is there before its commit"
    place.open()
    assert of(place).load("talk") == new
    place.store.close()


def test_a_full_disk_is_told_and_leaves_the_old_memory(place: Place) -> None:
    old = of(place).save("talk", b"old", after=0)
    with place.store.engine.connect() as connection:
        n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {n_pages}")
    with pytest.raises(OutOfService):
        of(place).save("talk", b"x" * 1_000_000, after=old.revision)
    assert of(place).load("talk") == old


def test_bounds_of_one_and_of_a_key(place: Place) -> None:
    ann_memories = MemoriesOf(place.store, place.ann, "", Bounds(bytes_of_one=10, bytes_of_key=25, memories_of_key=3))
    with pytest.raises(TooLarge, match="11 bytes"):
        ann_memories.save("a", bytes(11), after=0)
    first = ann_memories.save("a", bytes(10), after=0)
    ann_memories.save("b", bytes(10), after=0)
    with pytest.raises(TooLarge, match="Delete some"):
        ann_memories.save("c", bytes(6), after=0)
    third = ann_memories.save("c", bytes(5), after=0)
    with pytest.raises(TooLarge, match="3 memories of 25 bytes"):
        ann_memories.save("c", bytes(6), after=third.revision)
    with pytest.raises(TooLarge, match="3 memories"):
        ann_memories.save("d", bytes(1), after=0)
    assert ann_memories.load("c") == third
    smaller = ann_memories.save("a", bytes(4), after=first.revision)
    assert ann_memories.load("a") == smaller
    MemoriesOf(place.store, place.bob, "", ann_memories.bounds).save("a", bytes(10), after=0)


@pytest.mark.parametrize(("user", "id"), [("", ""), ("", "x" * 201), ("u" * 201, "x")])
def test_a_name_that_is_none_is_refused(place: Place, user: str, id: str) -> None:
    with pytest.raises(BadRequest, match="id"):
        of(place, user).save(id, b"", after=0)
    assert of(place, user).load(id) is None


def test_a_list_shows_a_users_memories_and_no_others(place: Place) -> None:
    for number, user in enumerate(("ann", "ann", "bob")):
        name = MemoryName(place.ann, user, f"m{number}")
        place.write(memories.save, name, Saved(bytes(number), 0), float(number))
    page = place.read(memories.list_page, place.ann, "ann", 1, 0)
    assert page.total == 2
    assert [(row.name.id, row.saved, row.n_bytes) for row in page.rows] == [("m1", 1.0, 1)]
    assert place.read(memories.list_page, place.bob, "ann", 5, 0).rows == []


def test_memories_of_a_revoked_key_are_swept(place: Place) -> None:
    of(place).save("talk", b"x", after=0)
    kept = MemoriesOf(place.store, place.bob).save("talk", b"y", after=0)
    place.write(keys.revoke, place.ann, 2.0)
    place.write(memories.sweep)
    assert of(place).load("talk") is None
    assert MemoriesOf(place.store, place.bob).load("talk") == kept


def test_a_database_of_before_gets_the_table(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.store.engine.begin() as connection:
        MEMORIES.drop(connection)
        connection.execute(delete(MIGRATIONS).where(MIGRATIONS.c.number == 11))
    place.store.close()
    engine = open_database(tmp_path)
    with engine.connect() as connection:
        assert {index["name"] for index in inspect(connection).get_indexes("memories")} == {
            "memories_of_key_by_age",
            "memories_of_key_by_size",
        }
    engine.dispose()
