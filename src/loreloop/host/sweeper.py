"""Takes away what has had its time: silent sessions, expired checkpoints, results, records and answers, uploaded files
and old jobs, recorded turns over their days, feedback on nothing, memories of keys that are gone, stray files.

Sleeps until the next thing is due. Decides nothing about live work.
"""

from __future__ import annotations

import asyncio
import logging
import time

from loreloop.host.dispatcher import Dispatcher
from loreloop.protocol.errors import LoreloopError
from loreloop.protocol.paths import CheckpointKind
from loreloop.store import (
    audit,
    checkpoints,
    feedback_removal,
    jobs,
    journal,
    memories,
    responses,
    runs,
    sessions,
    spool,
    turn_removal,
    uploads,
)
from loreloop.store.files import delete

LONGEST_SLEEP_SECONDS = 300.0
SHORTEST_SLEEP_SECONDS = 1.0
YOUNG_SECONDS = 600.0
DAY_SECONDS = 86400.0
MOST_STATEMENTS = 10_000  # of feedback that one sweep looks at
LOG = logging.getLogger(__name__)


class Sweeper:
    """One per HTTP process."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher, self.store = dispatcher, dispatcher.store
        self.n_feedback = 0  # the number of the last statement that was looked at

    async def run(self) -> None:
        """Sweeps for ever; a sweep that fails is logged and tried again."""
        while True:
            try:
                await self.sweep(time.time())
            except (LoreloopError, OSError) as error:
                LOG.warning("a sweep failed and will be tried again: %s", error)
            await asyncio.sleep(self._pause(time.time()))

    async def sweep(self, now: float) -> None:
        """Takes away all that is due at `now`, in seconds since the epoch."""
        # Sessions first: what belonged to them is then swept in the same round.
        await self._end_silent_sessions(now)
        await self._delete_expired_checkpoints(now)
        session = self.dispatcher.config.session
        await self.store.write(journal.expire_results, now - session.result_ttl_seconds)
        self.dispatcher.forget_results(now - session.result_ttl_seconds)
        await self.store.write(spool.sweep, now)
        await self.store.write(responses.sweep, now)
        await self.store.write(memories.sweep)
        await self.store.write(audit.sweep, now)
        # Bit by bit, so that whoever writes meanwhile waits for one bit only.
        while await self.store.write(turn_removal.sweep, now):
            pass
        # A stream may last; after a day its turn has been kept, or died with a process.
        self.n_feedback = await self.store.write(
            feedback_removal.sweep_orphans, self.n_feedback, now - DAY_SECONDS, MOST_STATEMENTS
        )
        # A job that has just ended may still be in the worker's hands, which speaks of it once more.
        await self.store.write(jobs.sweep, now - max(session.job_days * DAY_SECONDS, YOUNG_SECONDS))
        await self._sweep_uploads(now)
        await self.store.write_alone(journal.sweep_segments, self.store.segments)
        await self.dispatcher.delete_left_files()
        self._unpin(now)
        # Young files may belong to an operation that is just being written.
        self.dispatcher.files.sweep(now - YOUNG_SECONDS)

    async def _sweep_uploads(self, now: float) -> None:
        files = self.dispatcher.files
        await self.store.write(uploads.sweep, files, now)
        # A body gets its row within moments; one that is older belongs to an upload that was killed between the two.
        for body in self.store.read(uploads.unknown_bodies, files, now - YOUNG_SECONDS):
            body.unlink(missing_ok=True)

    def _pause(self, now: float) -> float:
        """Seconds until something may be due."""
        due = [now + LONGEST_SLEEP_SECONDS]
        if (oldest := self.store.read(sessions.oldest_sign_of_life)) is not None:
            due.append(oldest + self.dispatcher.config.session.expiry_seconds)
        for next_expiry in (checkpoints.next_expiry, uploads.next_expiry):
            if (expiry := self.store.read(next_expiry)) is not None:
                due.append(expiry)
        return max(SHORTEST_SLEEP_SECONDS, min(due) - now)

    async def _end_silent_sessions(self, now: float) -> None:
        silent_since = now - self.dispatcher.config.session.expiry_seconds
        for session in self.store.read(sessions.active_since_before, silent_since):
            await self.store.write(sessions.end, session.key_id, session.id, "expired", "no heartbeat")
            await self.dispatcher.close_session(session.id)
        for session_id in self.store.read(runs.orphaned_sessions):
            await self.dispatcher.close_session(session_id)

    async def _delete_expired_checkpoints(self, now: float) -> None:
        for row in self.store.read(checkpoints.expired, now):
            await self.store.write(checkpoints.remove, row.key_id, row.path)
            if row.kind is CheckpointKind.SAMPLER:
                self.dispatcher.drop_revision(str(row.path))

    def _unpin(self, now: float) -> None:
        """Lets go of checkpoints that no replay needs; a young pin may belong to a request just being accepted."""
        needed = {self.dispatcher.files.pin_name(request_id) for request_id in self.store.read(journal.pinned)}
        for path in self.dispatcher.files.pins.glob("*"):
            if path.name not in needed and path.stat().st_ctime < now - YOUNG_SECONDS:
                delete(path)
