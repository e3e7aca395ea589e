"""The desk with workers that a test plays: turns between keys, deaths, races of a pause, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loreloop.config import Config, LimitConfig
from loreloop.host.job_desk import MAX_ATTEMPTS, JobDesk
from loreloop.host.link import WorkerConnection, WorkerLink
from loreloop.protocol.jobs import (
    Assignment,
    Began,
    JobOver,
    Kept,
    Made,
    Noted,
    ResumePoint,
    Stepped,
    StopJob,
    WorkerReady,
)
from loreloop.store import jobs, keys, tuned_models
from loreloop.store.job_rows import JobRow
from tests.host.office import Office, office
from tests.store.place import write_now
from tests.store.test_uploads import plan


class Bureau:
    """A desk in an office, behind a socket."""

    def __init__(self, place: Office, desk: JobDesk) -> None:
        self.place, self.desk, self.socket = place, desk, place.folder / "jobs.sock"

    def key(self, name: str) -> str:
        return write_now(self.place.store, keys.create, name, ("train",), 1.0).row.id

    async def job(self, key_id: str, number: int = 0) -> str:
        row = JobRow(
            id=jobs.new_id(),
            key_id=key_id,
            created=1.0,
            plan=plan(name=f"ft:tiny:x::{key_id}{number}", base_model="fake"),
        )
        return (await self.desk.create(row)).id

    async def worker(self) -> WorkerLink:
        link = await asyncio.to_thread(WorkerLink, self.socket)
        link.send(WorkerReady())
        return link

    def status(self, job_id: str) -> JobRow:
        return self.place.store.read(jobs.of_anyone, job_id)

    async def until(self, job_id: str, status: str) -> JobRow:
        for _ in range(200):
            if (row := self.status(job_id)).status == status and (
                status != "queued" or job_id not in self.desk.in_hand
            ):
                return row
            await asyncio.sleep(0.02)
        raise AssertionError(f"{job_id} is {row.status}, not {status}")


@asynccontextmanager
async def bureau(running_jobs: int = 2) -> AsyncIterator[Bureau]:
    config = Config(limits=LimitConfig(running_jobs=running_jobs))
    async with office(config) as place:
        desk = JobDesk(config, place.dispatcher, "http://here")
        made = Bureau(place, desk)
        server = await asyncio.start_unix_server(
            lambda reader, writer: desk.serve_worker(WorkerConnection(reader, writer)), str(made.socket)
        )
        yield made
        server.close()
        if desk.worker is not None:
            desk.worker.close()
        await asyncio.sleep(0.05)


async def heard(link: WorkerLink) -> object:
    return await asyncio.to_thread(link.inbox.get, True, 10)


async def assigned(link: WorkerLink) -> Assignment:
    found = await heard(link)
    assert isinstance(found, Assignment), found
    return found


def test_keys_take_turns() -> None:
    async def scene() -> None:
        async with bureau() as made:
            ann, bob = made.key("ann"), made.key("bob")
            of_ann = [await made.job(ann, number) for number in range(3)]
            of_bob = await made.job(bob)
            link = await made.worker()
            first, second = await assigned(link), await assigned(link)
            assert [first.job_id, second.job_id] == [of_ann[0], of_bob], "the second place is the other key's"
            assert made.desk.key_of(first.secret) == ann
            assert made.desk.key_of(second.secret) == bob
            assert made.desk.key_of("tml-job-x") is None
            link.send(JobOver(first.job_id, "succeeded"))
            assert (await assigned(link)).job_id == of_ann[1]
            assert made.desk.key_of(first.secret) is None
            assert made.status(first.job_id).status == "succeeded"
            link.close()

    asyncio.run(scene())


def test_what_a_dead_worker_had_goes_on_where_it_was_kept() -> None:
    async def scene() -> None:
        async with bureau() as made:
            job_id = await made.job(made.key("ann"))
            link = await made.worker()
            await assigned(link)
            link.send(Began(job_id, 9))
            point = ResumePoint(step=2, states={"policy": "tinker://r/weights/a"}, trained_tokens=20)
            for step in (1, 2, 3):
                link.send(Stepped(job_id, step, {"train_loss": 1.0}, 10 * step, 9))
                if step == 2:
                    link.send(Kept(job_id, point))
                    assert await heard(link) == Noted(job_id)
            link.close()
            await made.until(job_id, "queued")
            assert made.status(job_id).step == 2
            again = await assigned(link := await made.worker())
            assert again.resume == point
            link.send(JobOver(job_id, "succeeded"))
            done = await made.until(job_id, "succeeded")
            assert done.result_file is not None
            body = made.place.dispatcher.files.upload(done.result_file).read_text()
            assert [line.partition(",")[0] for line in body.splitlines()] == ["step", "1", "2"]
            link.close()

    asyncio.run(scene())


def test_a_job_that_kills_its_worker_is_given_up() -> None:
    async def scene() -> None:
        async with bureau() as made:
            job_id = await made.job(made.key("ann"))
            for _ in range(MAX_ATTEMPTS):
                link = await made.worker()
                await assigned(link)
                link.close()
                await made.until(job_id, "queued")
            link = await made.worker()
            failed = await made.until(job_id, "failed")
            assert failed.error is not None
            assert "died 5 times" in failed.error.message
            link.close()

    asyncio.run(scene())


def test_a_job_that_was_cancelled_makes_no_model_more() -> None:
    async def scene() -> None:
        async with bureau() as made:
            key_id = made.key("ann")
            job_id = await made.job(key_id)
            link = await made.worker()
            await assigned(link)
            assert (await made.desk.cancel(job_id)).status == "cancelled"
            assert await heard(link) == StopJob(job_id, keep=False)
            link.send(Made(job_id, 3, "tinker://r/sampler_weights/a", None, {}, is_final=True))
            link.send(JobOver(job_id, "succeeded"))
            other = await made.job(key_id, 1)
            assert (await assigned(link)).job_id == other, "its place is free"
            assert made.status(job_id).status == "cancelled"
            assert made.place.store.read(tuned_models.of_job, job_id, 9) == []
            link.close()

    asyncio.run(scene())


def test_a_job_that_is_resumed_before_the_worker_let_go_is_handed_out_once() -> None:
    async def scene() -> None:
        async with bureau() as made:
            job_id = await made.job(made.key("ann"))
            link = await made.worker()
            await assigned(link)
            await made.desk.pause(job_id)
            assert await heard(link) == StopJob(job_id, keep=True)
            await made.desk.resume(job_id)
            await made.desk.assign()
            assert link.inbox.empty()
            link.send(JobOver(job_id, "stopped"))
            assert (await assigned(link)).job_id == job_id
            link.close()

    asyncio.run(scene())


def test_what_ran_when_the_process_died_waits_again() -> None:
    async def scene() -> None:
        async with bureau() as made:
            running, ended = await made.job(made.key("ann")), await made.job(made.key("bob"))
            for job_id, status in ((running, "running"), (ended, "cancelled")):
                write_now(made.place.store, jobs.change_status, job_id, status, 2.0)  # type: ignore[arg-type]
                write_now(made.place.store, jobs.kept, job_id, ResumePoint(1, {"policy": "tinker://r/weights/a"}))
            await made.desk.recover()
            assert made.status(running).status == "queued"
            assert made.status(running).resume is not None
            assert made.status(ended).resume is None, "nothing goes on from there"

    asyncio.run(scene())


def test_a_job_of_a_revoked_key_does_not_begin() -> None:
    async def scene() -> None:
        async with bureau() as made:
            key_id = made.key("ann")
            job_id = await made.job(key_id)
            write_now(made.place.store, keys.revoke, key_id, 2.0)
            link = await made.worker()
            failed = await made.until(job_id, "failed")
            assert failed.error is not None
            assert failed.error.code == "key_revoked"
            link.close()

    asyncio.run(scene())
