"""The desk when two things happen to a job at once, and when workers die late or again and again."""

from __future__ import annotations

import asyncio
import gc

import pytest

from loreloop.host import job_traces
from loreloop.host.job_desk import MAX_ATTEMPTS
from loreloop.host.link import WorkerLink
from loreloop.protocol.errors import Conflict
from loreloop.protocol.jobs import Assignment, Began, JobOver, Kept, Noted, ResumePoint, StopJob
from loreloop.store import jobs, uploads
from loreloop.store.job_rows import JobRow
from tests.host.test_job_desk import Bureau, assigned, bureau, heard
from tests.store.place import write_now
from tests.store.test_uploads import plan


async def silent_worker(made: Bureau) -> WorkerLink:
    """One that has not said yet that it takes jobs, so that a test says when the first is handed out."""
    link = await asyncio.to_thread(WorkerLink, made.socket)
    while made.desk.worker is None:
        await asyncio.sleep(0.01)
    return link


@pytest.mark.parametrize("ending", ["cancelled", "paused"])
def test_a_job_that_ends_while_it_is_handed_out_leaves_its_place(ending: str) -> None:
    async def scene() -> None:
        async with bureau(running_jobs=1) as made:
            job_id = await made.job(made.key("ann"))
            link = await silent_worker(made)
            end = made.desk.cancel if ending == "cancelled" else made.desk.pause
            # Handing out asks for the store three times, so the other's write comes in between.
            await asyncio.gather(made.desk.assign(), end(job_id))
            assert made.status(job_id).status == ending
            next_one = await made.job(made.key("bob"))
            while not isinstance(found := await heard(link), Assignment) or found.job_id == job_id:
                if found != StopJob(job_id, keep=ending == "paused"):
                    link.send(JobOver(job_id, "stopped"))
            assert found.job_id == next_one
            link.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_job_that_is_cancelled_as_it_ends_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with bureau() as made:
            ann = made.key("ann")
            job_id, other = await made.job(ann), await made.job(ann, 1)
            link = await made.worker()
            await assigned(link), await assigned(link)

            def as_csv(*_: object) -> bytes:
                write_now(made.place.store, jobs.change_status, job_id, "cancelled", 2.0)
                return b"step\n"

            monkeypatch.setattr(job_traces, "as_csv", as_csv)
            link.send(JobOver(job_id, "succeeded"))
            third = await made.job(ann, 2)
            assert (await assigned(link)).job_id == third, "the worker is still the same one"
            assert made.status(job_id).status == "cancelled"
            assert other in made.desk.in_hand
            assert made.place.store.read(uploads.list_page, ann, 9) == []
            assert list(made.place.dispatcher.files.uploads.iterdir()) == []
            link.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_job_that_was_swept_takes_nobody_along() -> None:
    async def scene() -> None:
        async with bureau() as made:
            ann = made.key("ann")
            job_id, other = await made.job(ann), await made.job(ann, 1)
            link = await made.worker()
            await assigned(link), await assigned(link)
            await made.desk.cancel(job_id)
            assert await heard(link) == StopJob(job_id, keep=False)
            write_now(made.place.store, jobs.sweep, 1e12)
            link.send(JobOver(job_id, "stopped"))
            third = await made.job(ann, 2)
            assert (await assigned(link)).job_id == third
            assert {other, third} == set(made.desk.in_hand)
            link.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_what_a_worker_had_whose_end_came_late_goes_to_the_next() -> None:
    async def scene() -> None:
        async with bureau() as made:
            job_id = await made.job(made.key("ann"))
            old = await made.worker()
            secret = (await assigned(old)).secret
            new = await made.worker()
            assert (await assigned(new)).job_id == job_id
            assert made.desk.key_of(secret) is None
            # Words of the old one that were still under way are not the new one's.
            old.send(JobOver(job_id, "failed"))
            await asyncio.sleep(0.1)
            assert made.status(job_id).status == "running"
            new.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_job_that_kills_its_worker_does_not_ruin_its_neighbour() -> None:
    async def scene() -> None:
        async with bureau() as made:
            poison, neighbour = await made.job(made.key("ann")), await made.job(made.key("bob"))
            for _ in range(3 * MAX_ATTEMPTS):
                link, done = await made.worker(), False
                # It dies as soon as it has the one, and does the other a while later.
                while not done:
                    found = await heard(link)
                    done = not isinstance(found, Assignment) or found.job_id == poison
                    if isinstance(found, Assignment) and found.job_id == neighbour:
                        await asyncio.sleep(0.1)
                        if link.inbox.empty():
                            link.send(JobOver(neighbour, "succeeded"))
                            await made.until(neighbour, "succeeded")
                            done = made.status(poison).status == "failed"
                link.close()
                while made.desk.worker is not None:
                    await asyncio.sleep(0.01)
                if made.status(poison).status == "failed" or made.status(poison).attempts >= MAX_ATTEMPTS:
                    break
            if made.status(poison).status != "failed":
                link = await made.worker()
                await made.until(poison, "failed")
                if made.status(neighbour).status != "succeeded":
                    assert (await assigned(link)).job_id == neighbour
                    link.send(JobOver(neighbour, "succeeded"))
                link.close()
            await made.until(neighbour, "succeeded")

    asyncio.run(asyncio.wait_for(scene(), 40))


def test_pauses_are_no_deaths() -> None:
    async def scene() -> None:
        async with bureau() as made:
            job_id = await made.job(made.key("ann"))
            link = await made.worker()
            for _ in range(MAX_ATTEMPTS + 1):
                await assigned(link)
                await made.desk.pause(job_id)
                assert await heard(link) == StopJob(job_id, keep=True)
                link.send(JobOver(job_id, "stopped"))
                while job_id in made.desk.in_hand:
                    await asyncio.sleep(0.01)
                await made.desk.resume(job_id)
            assert (await assigned(link)).job_id == job_id
            link.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_suspect_that_gets_ahead_makes_room_for_others() -> None:
    async def scene() -> None:
        async with bureau() as made:
            job_id = await made.job(made.key("ann"))
            for _ in range(2):
                link = await made.worker()
                await assigned(link)
                link.close()
                await made.until(job_id, "queued")
            link = await made.worker()
            await assigned(link)
            other = await made.job(made.key("bob"))
            assert link.inbox.empty(), "it is watched alone"
            link.send(Began(job_id, 9))
            link.send(Kept(job_id, ResumePoint(2, {})))
            assert await heard(link) == Noted(job_id)
            assert (await assigned(link)).job_id == other
            link.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_job_on_a_base_that_is_not_served_any_more_fails_with_its_name() -> None:
    async def scene() -> None:
        async with bureau() as made:
            row = JobRow(id=jobs.new_id(), key_id=made.key("ann"), created=1.0, plan=plan(base_model="gone"))
            job_id = (await made.desk.create(row)).id
            link = await made.worker()
            failed = await made.until(job_id, "failed")
            assert failed.error is not None
            assert "'gone'" in failed.error.message
            assert failed.error.param == "model"
            link.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_nothing_is_kept_of_who_asked_for_changes() -> None:
    async def scene() -> None:
        async with bureau() as made:
            for number in range(100):
                made.desk.change_of(f"ftjob-{number}")
            gc.collect()
            assert len(made.desk.changes) == 0

    asyncio.run(scene())


def test_a_failure_that_comes_late_does_not_undo_a_cancellation() -> None:
    async def scene() -> None:
        async with bureau() as made:
            job_id = await made.job(made.key("ann"))
            write_now(made.place.store, jobs.change_status, job_id, "cancelled", 2.0)
            with pytest.raises(Conflict):
                write_now(made.place.store, jobs.fail, job_id, jobs.JobError("server_error", "x"), 3.0)
            assert made.status(job_id).status == "cancelled"

    asyncio.run(scene())
