"""What the measurements of learners share: tasks, questions, a run against a server, and what is kept of it."""

from __future__ import annotations

import asyncio
import random
import re
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tinker

from bench.rig import MODEL, folder
from loreloop.cli.server import RunningServer
from loreloop.demo.questions import Question, one_digit, two_digit
from loreloop.learn.clients import Clients
from loreloop.learn.examples import Task
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.runner import Position, Run, StepRecord
from loreloop.text.conversation import Conversation, Turn

THINGS = (
    *("river", "mountain", "planet", "animal", "flower", "bird", "fish", "tree", "city"),
    *("country", "metal", "colour", "sport", "song", "book", "tool", "fruit", "game"),
)
ASKS = ("Tell me about a {}.", "Why do people like a {}?", "Describe a {} to a child.", "Name a famous {}.")
Make = Callable[[Plan, Clients, Renderer], Awaitable[Any]]


@dataclass
class InMemory:
    """Keeps a run's position nowhere else; a measurement is not resumed."""

    position: Position | None = None

    async def load(self) -> Position | None:
        return self.position

    async def save(self, position: Position) -> None:
        self.position = position


@dataclass
class Ran:
    records: list[StepRecord] = field(default_factory=list)
    position: Position | None = None
    learner: Any = None


def run(server: RunningServer, plan: Plan, make: Make, data: Sequence[Any], held_out: Sequence[Any] = ()) -> Ran:
    """One whole run of the learner that `make` makes."""

    async def go() -> Ran:
        ran, kept = Ran(), InMemory()
        with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
            clients = Clients(service, plan)
            ran.learner = await make(plan, clients, renderer_of(folder()))
            await Run(plan, clients, ran.learner, kept, ran.records.append).over(data, held_out)
        ran.position = kept.position
        return ran

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return asyncio.run(go())


def on_threads(n: int | None) -> list[str]:
    """What a server is told so that its engine has as many threads; nothing, where it may choose."""
    return [] if n is None else ["--threads", str(n)]


def task_of(question: Question) -> Task:
    return Task(Conversation((Turn("user", question.text),)), {"answer": question.answer})


async def exact(answer: Answer, task: Task) -> Score:
    """1 if the last number of the answer is the right one."""
    numbers = re.findall(r"\d+", answer.text)
    return Score(float(bool(numbers) and numbers[-1] == task.item["answer"]))


@dataclass(frozen=True)
class Curriculum:
    """Steps of one digit, then steps of two of which `review` tasks a step are of one digit still."""

    one_steps: int
    two_steps: int
    batch: int
    review: int

    def tasks(self, seed: int) -> list[Task]:
        """In the order in which a file would have them."""
        rng = random.Random(seed)
        one, two = one_digit(seed=1).train, two_digit(seed=1).train
        tasks = [task_of(q) for _ in range(self.one_steps) for q in rng.sample(one, self.batch)]
        for _ in range(self.two_steps):
            mixed = [*rng.sample(two, self.batch - self.review), *rng.sample(one, self.review)]
            rng.shuffle(mixed)
            tasks += [task_of(question) for question in mixed]
        return tasks


def held_out(n: int = 200) -> list[Task]:
    """Two-digit sums that are never trained on."""
    return [task_of(question) for question in two_digit(seed=1).held_out[:n]]


def questions(n: int) -> list[Conversation]:
    """So many questions about things, always the same, mixed so that the first and the last are of every kind."""
    asked = [ask.format(thing) for ask in ASKS for thing in THINGS]
    return [Conversation((Turn("user", text),)) for text in random.Random(0).sample(asked, n)]


async def sampler_of(service: tinker.ServiceClient, path: str | None) -> tinker.SamplingClient:
    """A client of saved weights, or of the base model."""
    if path is None:
        return await service.create_sampling_client(base_model=MODEL)
    return await service.create_sampling_client(model_path=path)
