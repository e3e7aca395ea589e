"""The recorder: nobody waits for it, what it cannot hold is dropped and told, and what it has written is whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from loreloop.host.recorder import Bounds, Recorder, Waiting
from loreloop.protocol.errors import OutOfService
from loreloop.store import deployments, turns
from loreloop.store.rows import Arm, RecordingRule, Split
from loreloop.store.store import Store
from loreloop.store.turn_bodies import NewTurn, packed
from tests.store.place import write_now
from tests.store.test_turns import BODY, new

SMALL = Bounds(turns=3, n_bytes=1000, pause_seconds=0.02)


def play(folder: Path, scene: Callable[[Recorder], Awaitable[None]], bounds: Bounds = SMALL) -> None:
    async def run() -> None:
        store = Store(folder, "os")
        rule = RecordingRule(record=True)
        write_now(store, deployments.set, "bot", None, Split(Arm("fake", "fake")), 1.0, "me", recording=rule)
        recorder = Recorder(store, bounds)
        try:
            await asyncio.wait_for(scene(recorder), 20)
            await recorder.close()
        finally:
            store.close()

    asyncio.run(run())


def waiting(number: int, n_bytes: int = 100, make: Callable[[], NewTurn] | None = None) -> Waiting:
    trace = new(number, None)
    return Waiting(trace, make or partial(msgspec.structs.replace, trace, body=packed(BODY)), n_bytes)


def test_what_does_not_fit_is_dropped_and_told(tmp_path: Path) -> None:
    async def scene(recorder: Recorder) -> None:
        for number in range(5):
            recorder.put(waiting(number))
        assert [recorder.whereabouts(f"t{n}") for n in range(6)] == [*["pending"] * 3, *["dropped"] * 2, "unknown"]
        await recorder.flush()
        assert [recorder.whereabouts(f"t{n}") for n in range(6)] == [*["kept"] * 3, *["dropped"] * 2, "unknown"]
        assert (recorder.counts.kept, recorder.counts.dropped, recorder.n_bytes) == (3, 2, 0)
        recorder.put(waiting(7, n_bytes=600))
        recorder.put(waiting(8, n_bytes=600))
        await recorder.flush()
        assert [recorder.whereabouts(f"t{n}") for n in (7, 8)] == ["kept", "dropped"]
        assert turns.counts(recorder.store.reader, "bot").dropped == 3

    play(tmp_path, scene)


def test_a_turn_is_pending_from_the_moment_its_id_goes_out(tmp_path: Path) -> None:
    async def scene(recorder: Recorder) -> None:
        recorder.open(new(1, None))
        found = recorder.find("e1")
        assert (recorder.whereabouts("t1"), found and (found.level, found.state)) == ("pending", ("episode", "pending"))
        recorder.put(waiting(1))
        await recorder.flush()
        found = recorder.find("e1")
        assert (recorder.whereabouts("t1"), found and found.state, recorder.whereabouts("e1")) == (
            "kept",
            "kept",
            "unknown",
        )
        assert not recorder.pending

    play(tmp_path, scene)


def test_a_turn_that_cannot_be_made_is_dropped_alone(tmp_path: Path) -> None:
    def broken() -> NewTurn:
        raise ValueError("a fault of ours")

    async def scene(recorder: Recorder) -> None:
        recorder.put(waiting(0, make=broken))
        recorder.put(waiting(1))
        await recorder.flush()
        assert [recorder.whereabouts(f"t{n}") for n in (0, 1)] == ["dropped", "kept"]
        assert (recorder.counts.kept, recorder.counts.dropped) == (1, 1)

    play(tmp_path, scene)


def test_a_full_disk_loses_turns_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(recorder: Recorder) -> None:
        async def full(*_: object) -> int:
            raise OutOfService("The disk of the data folder does not take this.")

        with monkeypatch.context() as patched:
            patched.setattr(recorder.store, "write", full)
            recorder.put(waiting(0))
            await recorder.flush()
        assert (recorder.whereabouts("t0"), recorder.counts.dropped) == ("dropped", 1)
        recorder.put(waiting(1))
        await recorder.flush()
        assert recorder.whereabouts("t1") == "kept"

    play(tmp_path, scene)


@pytest.mark.timed
def test_nobody_waits_for_a_turn_to_be_made(tmp_path: Path) -> None:
    def slow() -> NewTurn:
        time.sleep(0.3)
        return msgspec.structs.replace(new(0, None), body=packed(BODY))

    async def scene(recorder: Recorder) -> None:
        began = time.perf_counter()
        recorder.put(waiting(0, make=slow))
        assert time.perf_counter() - began < 0.1
        longest = 0.0
        while recorder.task is not None:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - before)
        assert longest < 0.25, "the event loop goes on meanwhile"
        assert recorder.whereabouts("t0") == "kept"

    play(tmp_path, scene)


def test_what_waits_at_the_end_is_kept(tmp_path: Path) -> None:
    async def scene(recorder: Recorder) -> None:
        recorder.put(waiting(0))
        began = time.perf_counter()
        await recorder.close()
        assert time.perf_counter() - began < 30
        assert recorder.whereabouts("t0") == "kept"

    play(tmp_path, scene, Bounds(pause_seconds=0.5))
