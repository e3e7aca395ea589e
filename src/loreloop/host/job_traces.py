"""What jobs leave behind: the file of their metrics, and states, checkpoints and sessions that nobody needs any more.

Knows neither the worker nor whose turn it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from loreloop.host.dispatcher import Dispatcher
from loreloop.host.job_results import as_csv
from loreloop.protocol.errors import Conflict, LoreloopError, NotFound
from loreloop.protocol.jobs import ResumePoint
from loreloop.protocol.paths import parse_path
from loreloop.store import checkpoints, jobs, sessions, tuned_models, uploads
from loreloop.store.job_rows import FileRow, JobRow

LOG = logging.getLogger(__name__)


class JobTraces:
    """One per HTTP process."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher, self.store = dispatcher, dispatcher.store

    async def succeed(self, job: JobRow) -> None:
        """Ends a job, and keeps its metrics as a file of its key. Conflict where it does not run any more, and nothing
        is kept then."""
        # Neither the many rows nor their text may hold up the event loop.
        metrics = await self.store.write(jobs.metrics, job.id)
        contents = await asyncio.to_thread(as_csv, job.plan.kind, metrics)
        file_id, files = uploads.new_id(), self.dispatcher.files
        # The body first, then the row: a kill between the two leaves a body that the sweeper takes.
        arriving = files.arriving_upload()
        await asyncio.to_thread(arriving.write_bytes, contents)
        await asyncio.to_thread(files.put_upload, arriving, file_id)
        row = FileRow(
            id=file_id,
            key_id=job.key_id,
            name="step_metrics.csv",
            purpose="fine-tune-results",
            n_bytes=len(contents),
            created=time.time(),
        )
        try:
            # The file and the end of its job are one write: a kill before it leaves neither, and one behind it both.
            await self.store.write(jobs.succeed, job.id, row, time.time())
        except LoreloopError:
            files.upload(file_id).unlink(missing_ok=True)
            raise

    async def end_session(self, key_id: str, session_id: str) -> None:
        """Left alone, the session would hold a model in memory until it expires."""
        if not session_id:
            return
        try:
            await self.store.write(sessions.end, key_id, session_id, "finished", "its job is over")
            await self.dispatcher.close_session(session_id)
        except LoreloopError as error:
            LOG.warning("the session %s of a broken-off job stays until it expires: %s", session_id, error)

    async def tidy(self, job_id: str) -> None:
        """Deletes the state of a job that nothing goes on from any more."""
        with contextlib.suppress(NotFound):  # swept already
            job = self.store.read(jobs.of_anyone, job_id)
            if job.finished is None:
                return
            await self.drop_state(job.key_id, await self.store.write(jobs.let_go, job_id))

    async def drop_state(self, key_id: str, point: ResumePoint | None) -> None:
        """Deletes what a job could go on from, but for what some model is trained on from."""
        for path in point.states.values() if point is not None else ():
            # What a model is known to begin from stays with the model.
            if self.store.read(tuned_models.has_state, path):
                continue
            await self.drop(key_id, path)

    async def drop(self, key_id: str, path: str) -> None:
        """Deletes a checkpoint of a key, if it is there and nothing needs it."""
        try:
            await self.store.write(checkpoints.remove, key_id, parse_path(path))
        except (NotFound, Conflict):
            return  # the worker has deleted it already, or its owner has, or it was deployed
        await self.dispatcher.delete_left_files()
