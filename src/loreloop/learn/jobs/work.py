"""One fine-tuning job from its file to its last step, through the Tinker SDK, as any client would do it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinker

from loreloop.learn.clients import Clients, window_of
from loreloop.learn.files import read_file
from loreloop.learn.jobs.contents import READERS, Form
from loreloop.learn.jobs.look import Looked
from loreloop.learn.jobs.report import Report
from loreloop.learn.jobs.rewarded import GradedJob, Tools, graded_job, means_of, thinking
from loreloop.learn.jobs.worker import JobFailed, Orders, Send
from loreloop.learn.learners.dpo import Dpo
from loreloop.learn.learners.kto import Kto
from loreloop.learn.learners.sft import Sft
from loreloop.learn.methods import seeing
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.served_models import ServedModels
from loreloop.learn.runner import Learner, Run
from loreloop.learn.settings import DpoSettings, KtoSettings
from loreloop.protocol.jobs import Assignment, JobError, JobKind, JobPlan

SAVE_EVERY = 20  # steps: what a death costs at most
FORMS: Mapping[JobKind, Form] = {
    "supervised": "demonstrations",
    "dpo": "preferences",
    "kto": "marks",
    "reinforcement": "tasks",
}


@dataclass(frozen=True)
class Place:
    """Where jobs are done: the folders of the served base models by name, and what graders use of the machine, made
    anew for each job."""

    folders: Mapping[str, str]
    tools: Callable[[], Tools]


def do(assignment: Assignment, send: Send, orders: Orders, place: Place) -> bool:
    """Does a job; False where it was told to stop. JobFailed says in which example or request the trouble lies."""
    report = Report(assignment, send, orders.noted)
    try:
        return asyncio.run(_done(assignment, report, orders, place))
    except tinker.AuthenticationError as error:
        raise JobFailed(JobError("key_revoked", f"The key of this job is refused: {error}")) from error
    except tinker.TinkerError as error:
        raise JobFailed(JobError("server_error", f"The server refused the training: {error}")) from error


async def _done(assignment: Assignment, report: Report, orders: Orders, place: Place) -> bool:
    tools, judge = place.tools(), ServedModels(assignment.url, assignment.secret)
    # The SDK's client ends its session at its end, and with it what the session holds in memory.
    with tinker.ServiceClient(
        base_url=assignment.url, api_key=assignment.secret, user_metadata={"job": assignment.job_id}
    ) as service:
        try:
            job = Job(assignment, service, renderer_of(Path(place.folders[assignment.plan.base_model])))
            return await job.run(report, orders, means_of(tools, judge))
        finally:
            await tools.close()
            await judge.close()


@dataclass(frozen=True)
class Job:
    """A job that is being done, with the client of its own session."""

    assignment: Assignment
    service: tinker.ServiceClient
    renderer: Renderer

    async def run(self, report: Report, orders: Orders, means: Means) -> bool:
        """From where the job stands to its end; False where it was told to stop."""
        job, assignment = self.assignment.plan, self.assignment
        plan = plan_of(job)
        examples, held_out = self._read(assignment.training_path), self._read(assignment.validation_path)
        renderer = await seeing(self.renderer, self.service, plan.base_model, [*examples, *held_out])
        if assignment.resume is None:
            # Whoever resumes a job need not look at it again.
            look = Looked(renderer, await window_of(self.service, plan.base_model), orders)
            look.at(examples, "training_file")
            look.at(held_out, "validation_file")
        clients = Clients(self.service, plan, assignment.resume.states if assignment.resume else None)
        report.begin(plan.n_steps(len(examples)), self.service.holder.get_session_id())
        learner = await learner_of(job, clients, renderer, examples, means)
        run = Run(
            plan=plan,
            clients=clients,
            learner=learner,
            progress=report,
            tell=report.step,
            wish=lambda: orders.wish,
        )
        try:
            return await run.over(examples, held_out) == "finished"
        finally:
            if isinstance(learner, GradedJob):
                await learner.close()

    def _read(self, path: str | None) -> Sequence[Any]:
        """The examples of a file; none where there is no file."""
        if path is None:
            return []
        job = self.assignment.plan
        if not Path(path).is_file():
            raise JobFailed(JobError("invalid_training_data", f"The file {Path(path).name} is gone; upload it anew."))
        examples: Sequence[Any] = read_file(Path(path), READERS[FORMS[job.kind]])
        if job.kind == "reinforcement":
            examples = thinking(examples, job.hyperparameters["reasoning_effort"])
        return examples


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
        # Tasks come in the order of their file, which may go from easy ones to hard ones.
        shuffled=job.kind != "reinforcement",
        eval_every=job.hyperparameters.get("eval_interval", 0),
        save_every=SAVE_EVERY,
    )


async def learner_of(
    job: JobPlan, clients: Clients, renderer: Renderer, examples: Sequence[Any], means: Means
) -> Learner[Any]:
    """What learns by the job's method."""
    plan = clients.plan
    match job.kind:
        case "supervised":
            return await Sft.of(plan, clients, renderer)
        case "dpo":
            settings = DpoSettings(beta=job.hyperparameters["beta"])
            return await Dpo.of(plan, clients, renderer, settings)
        case "kto":
            return await Kto.of(plan, clients, renderer, KtoSettings(beta=job.hyperparameters["beta"]), examples)
        case "reinforcement":
            return await graded_job(job, plan, clients, renderer, examples, means)
