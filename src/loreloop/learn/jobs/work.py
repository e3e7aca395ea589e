"""One fine-tuning job from its file to its last step, through the Tinker SDK, as any client would do it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tinker

from loreloop.learn.clients import Clients
from loreloop.learn.files import read_file
from loreloop.learn.jobs.contents import READERS, Form
from loreloop.learn.jobs.look import Looked, window_of
from loreloop.learn.jobs.report import Report
from loreloop.learn.jobs.worker import JobFailed, Orders, Send
from loreloop.learn.learners.dpo import Dpo, DpoSettings
from loreloop.learn.learners.kto import Kto, KtoSettings
from loreloop.learn.learners.sft import Sft
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.runner import Learner, Run
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.jobs import Assignment, JobError, JobKind, JobPlan

SAVE_EVERY = 20  # steps: what a death costs at most
FORMS: Mapping[JobKind, Form] = {
    "supervised": "demonstrations",
    "dpo": "preferences",
    "kto": "marks",
    "reinforcement": "tasks",
}


def do(assignment: Assignment, send: Send, orders: Orders, folders: Mapping[str, str]) -> bool:
    """Does a job; False where it was told to stop. `folders` are those of the served base models. JobFailed says in
    which example or request the trouble lies."""
    report = Report(assignment, send, orders.noted)
    try:
        return asyncio.run(_done(assignment, report, orders, Path(folders[assignment.plan.base_model])))
    except tinker.AuthenticationError as error:
        raise JobFailed(JobError("key_revoked", f"The key of this job is refused: {error}")) from error
    except tinker.TinkerError as error:
        raise JobFailed(JobError("server_error", f"The server refused the training: {error}")) from error


async def _done(assignment: Assignment, report: Report, orders: Orders, folder: Path) -> bool:
    plan = plan_of(assignment.plan)
    service = tinker.ServiceClient(
        base_url=assignment.url, api_key=assignment.secret, user_metadata={"job": assignment.job_id}
    )
    renderer = renderer_of(folder)
    look = Looked(renderer, await window_of(service, plan.base_model), orders)
    examples = _read(assignment.plan.kind, assignment.training_path, "training_file", look)
    held_out = _read(assignment.plan.kind, assignment.validation_path, "validation_file", look)
    clients = Clients(service, plan, assignment.resume.states if assignment.resume else None)
    report.begin(plan.n_steps(len(examples)), service.holder.get_session_id())
    run = Run(
        plan=plan,
        clients=clients,
        learner=await learner_of(assignment.plan, plan, clients, renderer, examples),
        progress=report,
        tell=report.step,
        wish=lambda: orders.wish,
    )
    return await run.over(examples, held_out) == "finished"


def plan_of(job: JobPlan) -> Plan:
    """The runner's plan of a job. What OpenAI's API does not name follows the runner's own values."""
    return Plan(
        base_model=job.base_model,
        name="job",
        start=job.start_path,
        seed=job.seed,
        batch_size=job.hyperparameters["batch_size"],
        epochs=job.hyperparameters["n_epochs"],
        learning_rate=job.learning_rate,
        save_every=SAVE_EVERY,
    )


async def learner_of(
    job: JobPlan, plan: Plan, clients: Clients, renderer: Renderer, examples: Sequence[Any]
) -> Learner[Any]:
    """What learns by the job's method."""
    match job.kind:
        case "supervised":
            return await Sft.of(plan, clients, renderer)
        case "dpo":
            settings = DpoSettings(beta=job.hyperparameters["beta"])
            return await Dpo.of(plan, clients, renderer, settings)
        case "kto":
            return await Kto.of(plan, clients, renderer, KtoSettings(beta=job.hyperparameters["beta"]), examples)
    raise BadRequest(f"Jobs of the method {job.kind} are not done by this version.")


def _read(kind: JobKind, path: str | None, field: str, look: Looked) -> Sequence[Any]:
    """The examples of a file, each looked at; none where there is no file."""
    if path is None:
        return []
    examples = read_file(Path(path), READERS[FORMS[kind]])
    look.at(examples, field)
    return examples
