"""`loreloop ps`: the processes of the running server and what each is busy with; sessions, runs, samples and jobs."""

from __future__ import annotations

import time
from typing import Any

import click

from loreloop.cli.models import DATA
from loreloop.cli.operator import checked, no_server, running_server_of
from loreloop.cli.tables import JSON, Moment, Size, show


@click.command()
@DATA
@JSON
def ps(data_dir: str, as_json: bool) -> None:
    """Show what the running server does now: its processes with their memory, and all that lives in it."""
    import json

    with running_server_of(data_dir) as client:
        if client is None:
            raise no_server(data_dir)
        found = checked(client.get("/loop/v1/activity")).json()
    if as_json:
        click.echo(json.dumps(found))
        return
    show(process_rows(found), False)
    for heading, rows in (
        ("Sessions", session_rows(found)),
        ("Models that can be trained", run_rows(found)),
        ("Samples", sample_rows(found)),
        ("Fine-tuning jobs", job_rows(found)),
    ):
        if rows:
            click.echo(f"\n{heading}:")
            show(rows, False)


def process_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each process, and for each engine that has none now."""
    engines = {f"{one['model']} {one['replica']}": one for one in found["engines"]}
    rows = [
        {
            "pid": str(one["pid"]),
            "process": one["engine"].removesuffix(" 0") or one["role"],
            "memory": Size(one["resident_bytes"]),
            "cpu_s": round(one["processor_seconds"]),
            "started": Moment(time.time() - one["age_seconds"]),
            "busy_with": busy_with(engines.pop(one["engine"])) if one["engine"] in engines else _others(one, found),
        }
        for one in found["processes"]
    ]
    return rows + [{"process": name.removesuffix(" 0"), "busy_with": "down"} for name in engines]


def busy_with(engine: dict[str, Any]) -> str:
    """What an engine has in hand, in some words."""
    if not engine["up"]:
        return "loading"
    parts = [
        f"{one['kind']} of {one['run']}" + (f" ({one['operations']})" if one["operations"] > 1 else "")
        for one in engine["executing"]
    ]
    for name, words in (
        ("running_samples", "samples"),
        ("waiting_samples", "waiting samples"),
        ("waiting_ops", "waiting operations"),
    ):
        if n := engine[name]:
            parts.append(f"{n} {words if n > 1 else words[:-1]}")
    return ", ".join(parts) or "idle"


def _others(process: dict[str, Any], found: dict[str, Any]) -> str:
    """The same of a process that is no engine."""
    if process["role"] == "http":
        numbers = (("session", found["living"]["n_sessions"]), ("sample", len(found["samples"])))
        return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in numbers)
    if process["role"] == "jobs":
        running = [job["id"] for job in found["living"]["jobs"] if job["status"] == "running"]
        return ", ".join(running) or "idle"
    return ""


def session_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The sessions that were heard of last."""
    return [
        {
            "session": one["id"],
            "key": one["key_name"],
            "name": one["display_name"],
            "created": Moment(one["created"]),
            "last_seen": Moment(one["last_seen"]),
        }
        for one in found["living"]["sessions"]
    ]


def run_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The live runs that were used last."""
    return [
        {
            "run": one["id"],
            "base_model": one["base_model"],
            "rank": one["rank"],
            "key": one["key_name"],
            "last_used": Moment(one["last_request"]),
        }
        for one in found["living"]["runs"]
    ]


def sample_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples that wait or run, the oldest first."""
    return [
        {
            "sample": one["request_id"],
            "key": one["key_name"],
            "weights": one["weights"] or one["model"],
            "engine": "waits" if one["engine"] is None else str(one["engine"]),
            "prompt_tokens": one["prompt_tokens"],
            "samples": one["num_samples"],
            "since": Moment(time.time() - one["seconds"]),
        }
        for one in found["samples"]
    ]


def job_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Fine-tuning jobs that are not over."""
    return [
        {"job": one["id"], "status": one["status"], "step": one["step"], "key": one["key_name"]}
        for one in found["living"]["jobs"]
    ]
