"""What runs measure is gathered behind their training: once, where a step has ended, and lost to nobody's harm."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from loreloop.host import run_series
from loreloop.protocol.errors import OutOfService
from loreloop.protocol.training import PassResult
from loreloop.store import series
from loreloop.store.series import Point
from tests.host.office import Office, office
from tests.scheduler.ops import create, forward_backward, step

Scene = Callable[[Office], Awaitable[None]]


def play(scene: Scene) -> None:
    async def run() -> None:
        async with office() as place:
            await asyncio.wait_for(scene(place), 20)

    asyncio.run(run())


async def points_of(place: Office, run: str) -> list[Point]:
    await place.dispatcher.observers.series.flush()
    return place.store.read(series.of_run, run)


def test_a_step_is_a_point_out_of_the_passes_before_it() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()
        await place.submit(create(run), forward_backward(run, 1), forward_backward(run, 2), step(run, 3))
        await place.result(step(run, 3))
        losses = []
        for seq_id in (1, 2):
            passed = (await place.result(forward_backward(run, seq_id))).result
            assert isinstance(passed, PassResult)
            losses.append(passed.metrics["loss:sum"])
        (point,) = await points_of(place, run)
        assert abs(point.values["loss"] * point.values["trained_tokens"] - sum(losses)) < 1e-6
        assert point.values["gradient_norm"] > 0
        assert "tokens_per_second" not in point.values, "nobody knows when the first step began"

    play(scene)


def test_what_is_executed_again_is_measured_once() -> None:
    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()
        await place.submit(create(run), forward_backward(run, 1), step(run, 2))
        await place.result(step(run, 2))
        assert len(await points_of(place, run)) == 1
        place.hang_up()
        await asyncio.to_thread(place.threads[0].join, 10)
        place.start_thread()
        await place.submit(forward_backward(run, 3), step(run, 4))
        await place.result(step(run, 4))
        points = await points_of(place, run)
        assert [point.step for point in points] == [1, 2]
        assert points[1].values["tokens_per_second"] > 0

    play(scene)


def test_points_are_written_by_themselves(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(run_series, "FLUSH_SECONDS", 0.05)

    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()
        await place.submit(create(run), step(run, 1))
        await place.result(step(run, 1))
        deadline = time.monotonic() + 10
        while not place.store.read(series.of_run, run) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert len(place.store.read(series.of_run, run)) == 1

    play(scene)


def test_a_store_that_takes_nothing_stops_no_training(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    async def scene(place: Office) -> None:
        place.start_thread()
        run = place.run()

        def refuse(*_: object) -> None:
            raise OutOfService("full")

        monkeypatch.setattr(series, "add_all", refuse)
        await place.submit(create(run), step(run, 1))
        await place.result(step(run, 1))
        assert await points_of(place, run) == []
        await place.submit(step(run, 2))
        await place.result(step(run, 2))
        monkeypatch.undo()
        assert len(await points_of(place, run)) == 1

    play(scene)
