"""One fine-tuning job from its file to its last step, through the Tinker SDK, as any client would do it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import tinker

from loreloop.learn.clients import Clients
from loreloop.learn.examples import Demonstration
from loreloop.learn.jobs.report import Report
from loreloop.learn.jobs.worker import Orders, Send
from loreloop.learn.learners.sft import Sft
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import renderer_of
from loreloop.learn.runner import Run
from loreloop.protocol.jobs import Assignment
from loreloop.protocol.openai_rest import ChatMessage
from loreloop.text.conversation import Conversation
from loreloop.text.openai_messages import turn_of

SAVE_EVERY = 20  # steps: what a death costs at most


def do(assignment: Assignment, send: Send, orders: Orders, folders: Mapping[str, str]) -> bool:
    """Does a job; False where it was told to stop. `folders` are those of the served base models."""
    report = Report(assignment, send, orders.noted)
    return asyncio.run(_done(assignment, report, orders, Path(folders[assignment.plan.base_model])))


async def _done(assignment: Assignment, report: Report, orders: Orders, folder: Path) -> bool:
    plan = _plan(assignment)
    examples = _read(Path(assignment.training_path))
    held_out = _read(Path(assignment.validation_path)) if assignment.validation_path else []
    service = tinker.ServiceClient(
        base_url=assignment.url, api_key=assignment.secret, user_metadata={"job": assignment.job_id}
    )
    states = assignment.resume.states if assignment.resume else None
    clients = Clients(service, plan, states)
    report.begin(plan.n_steps(len(examples)), service.holder.get_session_id())
    run = Run(
        plan=plan,
        clients=clients,
        learner=await Sft.of(plan, clients, renderer_of(folder)),
        progress=report,
        tell=report.step,
        wish=lambda: orders.wish,
    )
    return await run.over(examples, held_out) == "finished"


def _plan(assignment: Assignment) -> Plan:
    asked = assignment.plan.hyperparameters
    return Plan(
        base_model=assignment.plan.base_model,
        name="job",
        start=assignment.plan.start_path,
        seed=assignment.plan.seed,
        batch_size=asked["batch_size"],
        epochs=asked["n_epochs"],
        learning_rate=1e-4 * asked["learning_rate_multiplier"],
        save_every=SAVE_EVERY,
    )


def _read(file: Path) -> list[Demonstration]:
    found = []
    for line in file.read_bytes().splitlines():
        if line.strip():
            messages = msgspec.json.decode(line)["messages"]
            turns = tuple(turn_of(msgspec.convert(message, ChatMessage)) for message in messages)
            found.append(
                Demonstration(Conversation(turns), tuple(1.0 if turn.role == "assistant" else 0.0 for turn in turns))
            )
    return found
