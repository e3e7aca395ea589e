"""`loreloop jobs`: the fine-tuning jobs of a data folder, of all keys, looked at, followed, and ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.keys import key_id_of, transaction
from loreloop.cli.models import DATA
from loreloop.cli.operator import checked, running_server_of
from loreloop.cli.runs import KEY
from loreloop.cli.tables import JSON, LIMIT, Moment, show

if TYPE_CHECKING:
    from loreloop.protocol.jobs import JobStatus
    from loreloop.store.job_rows import EventRow, JobRow, TunedModel

JOB = click.argument("job_id", metavar="JOB")
FOLLOW = click.option("--follow", is_flag=True, help="Go on until the job ends.")
NO_JOBS = "No fine-tuning jobs yet; a client makes one with fine_tuning.jobs.create (see docs/jobs.md)."
LOOK_SECONDS = 0.5
BAR_WIDTH = 24  # characters
REPEAT = (
    'curl "$OPENAI_BASE_URL/fine_tuning/jobs" -H "Authorization: Bearer $OPENAI_API_KEY" '
    '-H "Content-Type: application/json" -d '
)


@click.group()
def jobs() -> None:
    """List, follow, pause and cancel fine-tuning jobs."""


@jobs.command("list")
@KEY
@LIMIT
@DATA
@JSON
def list_jobs(key_name: str | None, limit: int, data_dir: str, as_json: bool) -> None:
    """Show fine-tuning jobs, the newest first."""
    from loreloop.store import jobs as rows

    with transaction(data_dir) as connection:
        found = rows.list_page(connection, key_id_of(connection, key_name), limit)
    show([job_row(one) for one in found], as_json, empty=NO_JOBS)


@jobs.command("show")
@JOB
@FOLLOW
@DATA
@JSON
def show_job(job_id: str, follow: bool, data_dir: str, as_json: bool) -> None:
    """Show a job: what it is to do, how far it is, and what it has made."""
    import json

    from loreloop.cli.tables import cell, exactly

    if follow:
        follow_progress(data_dir, job_id)
    job, made = job_and_models(data_dir, job_id)
    row = job_row(job) | details(job)
    models = [{"model": each.name, "step": each.step, "path": each.path} for each in made]
    if as_json:
        click.echo(json.dumps({name: exactly(value) for name, value in row.items()} | {"models": models}))
        return
    width = max(map(len, row))
    for name, value in row.items():
        if value is not None:
            # A seed is there to be copied, so it is not grouped as other numbers are.
            click.echo(f"{name:{width}} {value if name == 'seed' else cell(value)}")
    click.echo()
    show(models, as_json, empty="No model yet.")


@jobs.command("events")
@JOB
@FOLLOW
@LIMIT
@DATA
@JSON
def show_events(job_id: str, follow: bool, limit: int, data_dir: str, as_json: bool) -> None:
    """Show what has happened to a job, the oldest of the last ones first."""
    from loreloop.store import jobs as rows

    with transaction(data_dir) as connection:
        job = rows.of_anyone(connection, job_id)
        found = rows.events(connection, job.id, limit)[::-1]
    show([event_row(one) for one in found], as_json, empty="Nothing has happened yet.")
    if follow:
        follow_events(data_dir, job_id, found[-1].number if found else 0)


@jobs.command("cancel")
@JOB
@DATA
@JSON
def cancel_job(job_id: str, data_dir: str, as_json: bool) -> None:
    """End a job for good; the step that runs is its last one."""
    show([changed(data_dir, job_id, "cancel", "cancelled", ("queued", "running", "paused"))], as_json)


@jobs.command("pause")
@JOB
@DATA
@JSON
def pause_job(job_id: str, data_dir: str, as_json: bool) -> None:
    """Let a job rest where it is, until `resume`."""
    show([changed(data_dir, job_id, "pause", "paused", ("queued", "running"))], as_json)


@jobs.command("resume")
@JOB
@DATA
@JSON
def resume_job(job_id: str, data_dir: str, as_json: bool) -> None:
    """Let a paused job go on."""
    show([changed(data_dir, job_id, "resume", "queued", ("paused",))], as_json)


def changed(
    data_dir: str, job_id: str, verb: str, status: JobStatus, only_from: tuple[JobStatus, ...]
) -> dict[str, Any]:
    """Changes a job by a running server, which has to tell its worker, or else in the store."""
    import time

    from loreloop.store import jobs as rows

    with transaction(data_dir) as connection:
        rows.of_anyone(connection, job_id)
    with running_server_of(data_dir) as client:
        if client is not None:
            told: dict[str, Any] = checked(client.post(f"/loop/v1/jobs/{job_id}/{verb}")).json()
            return told
    with transaction(data_dir) as connection:
        now = time.time()
        job = rows.change_status(connection, job_id, status, now, only_from=only_from)
        rows.say(connection, job_id, "info", f"The job was {status} while no server ran.", now)
    return {"id": job.id, "status": job.status, "step": job.step}


def job_and_models(data_dir: str, job_id: str) -> tuple[JobRow, list[TunedModel]]:
    """A job as it is now, and what it has made."""
    from loreloop.store import jobs as rows
    from loreloop.store import tuned_models

    with transaction(data_dir) as connection:
        job = rows.of_anyone(connection, job_id)
        return job, tuned_models.of_job(connection, job.id, 1000)


def follow_progress(data_dir: str, job_id: str) -> None:
    """A line that tells how far a job is, until it has ended."""
    import time

    from loreloop.protocol.jobs import ENDED
    from loreloop.store import jobs as rows

    shown = ""
    while True:
        with transaction(data_dir) as connection:
            job = rows.of_anyone(connection, job_id)
            last = rows.events(connection, job.id, 1)
        line = progress_line(job, last[0].message if last else "")
        if line != shown:
            # A terminal shows one line that changes; a file gets one line for each change.
            click.echo(f"\r\x1b[K{line}" if _is_terminal() else line, nl=not _is_terminal(), err=True)
            shown = line
        if job.status in ENDED:
            click.echo("" if _is_terminal() else None, nl=_is_terminal(), err=True)
            return
        time.sleep(LOOK_SECONDS)


def follow_events(data_dir: str, job_id: str, behind: int) -> None:
    """Prints what happens to a job until it has ended."""
    import time

    from loreloop.protocol.jobs import ENDED
    from loreloop.store import jobs as rows

    while True:
        with transaction(data_dir) as connection:
            # Read before the events, so that none that came before the end is missed.
            ended = rows.of_anyone(connection, job_id).status in ENDED
            found = rows.events(connection, job_id, 1000, behind=behind)
        for one in found:
            click.echo(f"{Moment(one.created).exact}  {one.level:5}  {one.message}")
            behind = one.number
        if ended and not found:
            return
        time.sleep(LOOK_SECONDS)


def progress_line(job: JobRow, last: str) -> str:
    """How far a job is, as a bar with the last thing that happened."""
    n_steps = job.n_steps or 0
    if not n_steps:
        return f"{job.status}  {last}"
    full = BAR_WIDTH * job.step // n_steps
    return f"{job.status}  [{'#' * full}{'.' * (BAR_WIDTH - full)}] {job.step}/{n_steps}  {last}"


def _is_terminal() -> bool:
    import sys

    return sys.stderr.isatty()


def job_row(job: JobRow) -> dict[str, Any]:
    """A job as a row for a table or for JSON."""
    return {
        "job": job.id,
        "status": job.status,
        "method": job.plan.kind,
        "model": job.plan.model,
        "step": job.step,
        "steps": job.n_steps,
        "created": Moment(job.created),
        "finished": Moment(job.finished) if job.finished is not None else None,
        "fine_tuned_model": job.plan.name if job.status == "succeeded" else None,
        "error": job.error.message if job.error else None,
    }


def details(job: JobRow) -> dict[str, Any]:
    """What a table has no room for, with the command that asks for the same job again."""
    import json
    import shlex

    from loreloop.http.openai.job_format import request_json

    plan = job.plan
    return {
        "key": job.key_id,
        "base_model": plan.base_model,
        "begins_at": plan.start_path,
        "training_file": plan.training_file,
        "validation_file": plan.validation_file,
        **plan.hyperparameters,
        "learning_rate": plan.learning_rate,
        "seed": plan.seed,
        "trained_tokens": job.trained_tokens,
        "result_file": job.result_file,
        "repeat": REPEAT + shlex.quote(json.dumps(request_json(plan))),
    }


def event_row(event: EventRow) -> dict[str, Any]:
    """An event as a row for a table or for JSON."""
    return {"time": Moment(event.created), "level": event.level, "message": event.message}
