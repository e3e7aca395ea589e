"""Corrections beside general prompts: the lines of a cycle's file of these, and the run that learns both.

Knows no champion; what it said is in the lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tinker

from loreloop.learn.clients import Clients
from loreloop.learn.examples import Task
from loreloop.learn.files import read_file, tasks
from loreloop.learn.learners.rehearsal import Rehearsed, SftWithRehearsal
from loreloop.learn.methods import Keeping, Order, seeing
from loreloop.learn.runner import Run


def line_of(task: Task, tokens: Sequence[int], likely: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """A prompt with what was said to it, as a line of the file."""
    shares = [[(token, round(share, 6)) for token, share in row] for row in likely]
    # All of the line that was asked: tools and settings of the template are a part of the prompt.
    return {**task.item, "tokens": list(tokens), "likely": shares}


def rehearsed_of(file: Path) -> list[Rehearsed]:
    """The file's lines; none where there is no file, or an empty one."""
    if not file.exists() or not file.stat().st_size:
        return []
    return [
        Rehearsed(
            prompt=task.prompt,
            tokens=tuple(task.item["tokens"]),
            likely=tuple(tuple((token, share) for token, share in row) for row in task.item["likely"]),
        )
        for task in read_file(file, tasks)
    ]


async def train_beside(
    order: Order, rehearsed: Sequence[Rehearsed], service: tinker.ServiceClient, keeping: Keeping
) -> None:
    """An order of SFT from where its run stands, with as many rehearsed prompts in each step as it has lines."""
    plan, examples = order.plan, order.examples
    position = await keeping.progress.load()
    clients = Clients(service, plan, position.states if position else None)
    # The renderer is that for pictures of both.
    both = replace(order, examples=[*examples, *rehearsed])
    renderer = await seeing(both, service)
    learner = SftWithRehearsal(plan, await clients.training(), renderer, rehearsed, plan.batch_size)
    run = Run(plan=plan, clients=clients, learner=learner, progress=keeping.progress, tell=keeping.tell)
    run.wish = keeping.wish
    if keeping.look is not None:
        run.look = partial(keeping.look, clients)
    await run.over(examples)
