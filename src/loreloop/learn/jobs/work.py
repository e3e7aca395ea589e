"""One fine-tuning job from its file to its last step, through the Tinker SDK, as any client would do it.

What is learned and how is an order for `learn/methods.py`, as of a command; here its troubles get the form of a job's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tinker

from loreloop.learn.breakdowns import Breakdown, LossDiverged, NothingGraded, NothingSampled, StepUngraded
from loreloop.learn.jobs.orders import Reading, order_of
from loreloop.learn.jobs.report import Report
from loreloop.learn.jobs.worker import JobFailed, Orders, Send
from loreloop.learn.methods import BadExample, Keeping, Order, train
from loreloop.learn.rendering import renderer_of
from loreloop.learn.rewards.graders.grader import Embed, Means
from loreloop.learn.rewards.sandbox import CodeSandbox, Limits
from loreloop.learn.rewards.served_models import ServedModels
from loreloop.protocol.jobs import Assignment, JobError


class Tools(Protocol):
    """What graders use of the machine; whoever starts the worker says what that is."""

    sandbox: CodeSandbox
    limits: Limits

    @property
    def embed(self) -> Embed | None:
        """Sentence embeddings, where they are installed."""
        ...

    async def close(self) -> None:
        """Ends processes."""
        ...


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
    except BadExample as error:
        field = "validation_file" if error.held_out else "training_file"
        raise JobFailed(JobError("invalid_training_data", error.message, field)) from error
    except Breakdown as error:
        raise JobFailed(broken(error)) from error
    except tinker.AuthenticationError as error:
        raise JobFailed(JobError("key_revoked", f"The key of this job is refused: {error}")) from error
    except tinker.TinkerError as error:
        raise JobFailed(JobError("server_error", f"The server refused the training: {error}")) from error


def broken(error: Breakdown) -> JobError:
    """A job's error for a run that broke off; none of these lies in the examples."""
    grader = "method.reinforcement.grader"
    match error:
        case NothingGraded():
            return JobError("invalid_grader", error.message, grader)
        case StepUngraded():
            return JobError("grader_failed", error.message, grader)
        case LossDiverged():
            return JobError("training_diverged", error.message, "hyperparameters.learning_rate_multiplier")
    assert isinstance(error, NothingSampled)
    return JobError("sampling_failed", error.message)


async def _done(assignment: Assignment, report: Report, orders: Orders, place: Place) -> bool:
    tools, judge = place.tools(), ServedModels(assignment.url, assignment.secret)
    # The SDK's client ends its session at its end, and with it what the session holds in memory.
    with tinker.ServiceClient(
        base_url=assignment.url, api_key=assignment.secret, user_metadata={"job": assignment.job_id}
    ) as service:
        try:
            renderer = renderer_of(Path(place.folders[assignment.plan.base_model]))
            means = Means(tools.sandbox, judge, tools.embed, tools.limits)
            order = order_of(assignment, Reading(renderer, means))
            return await _run(order, service, report, orders)
        finally:
            await tools.close()
            await judge.close()


async def _run(order: Order, service: tinker.ServiceClient, report: Report, orders: Orders) -> bool:
    """From where the job stands to its end; False where it was told to stop."""
    report.begin(order.plan.n_steps(len(order.examples)), service.holder.get_session_id())
    # Nobody can give a job a larger budget, so that it makes its model of what it has learned by then.
    keeping = Keeping(
        progress=report,
        tell=report.step,
        wish=lambda: orders.wish,
        spent="finish",
        say=lambda text: report.say("warn", text),
    )
    return await train(order, service, keeping) == "finished"
