"""Whose runs and jobs a key may look at on the pages: its own, and with `admin` everybody's, as at the command line."""

from __future__ import annotations

from starlette.requests import Request

from loreloop.http.services import ADMIN, has, services
from loreloop.store import jobs, overview, runs
from loreloop.store.job_rows import JobRow
from loreloop.store.rows import KeyRow, RunRow


def owner_seen(key: KeyRow) -> str | None:
    """The id of the key whose things are listed; None: those of all keys."""
    return None if has(key, ADMIN) else key.id


def run_seen(request: Request, key: KeyRow, run_id: str) -> RunRow:
    """A run that the key may look at; NotFound for any other."""
    store = services(request).store
    return store.read(overview.find_run, run_id) if has(key, ADMIN) else store.read(runs.get, key.id, run_id)


def job_seen(request: Request, key: KeyRow, job_id: str) -> JobRow:
    """A job that the key may look at and change; NotFound for any other."""
    store = services(request).store
    return store.read(jobs.of_anyone, job_id) if has(key, ADMIN) else store.read(jobs.get, key.id, job_id)
