"""What is kept of a person, given out: all of it, however much there is, with no more than a page in memory."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loreloop.protocol.episodes import Person
from loreloop.store import deployments, feedback, persons, turn_keeping, turns
from loreloop.store.feedback import Asked
from loreloop.store.rows import Arm, RecordingRule, Split
from loreloop.store.store import open_database
from loreloop.store.turn_bodies import packed
from tests.peak import with_peak_bytes
from tests.store.place import Place
from tests.store.test_statements import said
from tests.store.test_turns import BODY, new

ANN = Person("k", "ann")


def kept(place: Place, n: int, n_characters: int = 4) -> None:
    """Turns of ann's, each with as many letters that no packing makes fewer than half."""
    rule = RecordingRule(record=True)
    place.write(deployments.set, "bot", None, Split(Arm("fake", "fake")), 1.0, "me", recording=rule)
    drawn = random.Random(1)
    for number in range(n):
        answer = {"role": "assistant", "content": drawn.randbytes(n_characters // 2).hex()}
        place.write(turn_keeping.keep, [new(number, packed(msgspec.structs.replace(BODY, answer=answer)))])


def exported(place: Place, person: Person = ANN) -> Any:
    return json.loads(b"".join(persons.export(persons.reads_of(place.store.engine), person)))


def test_an_export_holds_more_than_a_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persons, "AT_ONCE", 3)
    kept(place, 10)
    for number in range(8):
        place.write(feedback.give, Asked(said(f"id-{number}", target_id=f"t{number}", giver="k")))
    found = exported(place)
    assert [turn["id"] for turn in found["turns"]] == [f"t{number}" for number in range(10)]
    assert [one["id"] for one in found["feedback"]] == [f"id-{number}" for number in range(8)]
    assert (found["person"], found["memories"], found["trained"]) == ({"key_id": "k", "user": "ann"}, [], [])
    assert exported(place, Person("k", "nobody"))["turns"] == []


def n_bytes_exported(folder: Path) -> int:
    """Of ann, with small pages."""
    turns.PAGE_BYTES = 1 << 20
    return sum(map(len, persons.export(persons.reads_of(open_database(folder, "os")), ANN)))


def test_an_export_of_many_turns_needs_the_memory_of_a_page(place: Place) -> None:
    n, n_characters = 250, 200_000
    kept(place, n, n_characters)
    n_bytes, peak_bytes = with_peak_bytes(n_bytes_exported, place.folder)
    assert n_bytes > n * n_characters
    assert peak_bytes < 10 << 20 < n_bytes / 4, "a page of packed turns, unpacked, and one of them in JSON"
