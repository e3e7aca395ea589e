"""A job with a grader: answers to each task are sampled, graded and compared (GRPO), as the job's key.

A grader that gives no reward at all ends its job, with its own words and the example at which it failed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from loreloop.learn.clients import Clients
from loreloop.learn.environments.environment import OneAnswer
from loreloop.learn.examples import Task
from loreloop.learn.jobs.worker import JobFailed
from loreloop.learn.learners.from_rewards import Sampling, Ways, reward_learner
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.reinforce_loop import RewardLearner
from loreloop.learn.plan import Moment, Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.graders.grader import Chat, Embed, Means
from loreloop.learn.rewards.graders.reading import GraderReward, grader_of
from loreloop.learn.rewards.reward import Answer, Reward, Score
from loreloop.learn.rewards.sandbox import CodeSandbox, Limits
from loreloop.learn.rollouts.collect import Collector
from loreloop.learn.rollouts.drawing import AnswerLimits
from loreloop.learn.runner import Metrics
from loreloop.protocol.jobs import JobError, JobPlan

GROUP_SIZE = 8  # answers to a task, times the job's compute_multiplier
MOST_TROUBLES = 16  # in a row without any reward: the grader is then not asked again


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


@dataclass
class Watched:
    """A reward that remembers why it could not be given, and gives up where it never is."""

    reward: Reward
    numbers: dict[int, int] = field(default_factory=dict)  # of examples in their file, by the identity of their fields
    n_given: int = 0
    n_troubles: int = 0
    first: str = ""

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The score of an answer to a task."""
        if not self.n_given and self.n_troubles >= MOST_TROUBLES:
            # Each further answer might take as long as the sandbox lets it.
            return Score(0.0, trouble=self.first)
        score = await self.reward(answer, task)
        if score.trouble is None:
            self.n_given += 1
        else:
            self.n_troubles += 1
            self.first = self.first or f"Example {self.numbers.get(id(task.item), 0)}: {score.trouble}"
        return score

    def check(self) -> None:
        """JobFailed where no answer at all could be graded."""
        if self.n_troubles and not self.n_given:
            message = f"The grader gave no reward to any of {self.n_troubles} answers. {self.first}"
            raise JobFailed(JobError("invalid_grader", message, "method.reinforcement.grader"))


@dataclass
class GradedJob:
    """A learner for the runner: `learner`, whose grader is watched, and which answers held-out tasks `eval_samples`
    times."""

    learner: RewardLearner
    watched: Watched
    eval_samples: int

    def __post_init__(self) -> None:
        self.ahead = self.learner.ahead

    def prepare(self, batch: Sequence[Task], at: Moment) -> None:
        """Told of a batch that comes."""
        self.learner.prepare(batch, at)

    async def step(self, batch: Sequence[Task], at: Moment) -> Awaitable[Metrics]:
        """One step of the learner."""
        handed_in = await self.learner.step(batch, at)
        self.watched.check()
        return handed_in

    async def evaluate(self, examples: Sequence[Task]) -> Metrics:
        """`valid_reward_mean` of held-out tasks: of their likeliest answers, or the mean over several drawn ones."""
        if self.eval_samples == 1:
            return await self.learner.evaluate(examples)
        player = replace(self.learner.player, group_size=self.eval_samples)  # type: ignore[type-var]
        collector = Collector(play=player.group, pace=replace(self.learner.pace, staleness=0), revision=lambda: 0)
        collector.add(0, examples)
        rewards = [each.reward for one in await collector.take(0) for each in one.group.graded]
        return {"valid_reward_mean": sum(rewards) / len(rewards)} if rewards else {}

    def state(self) -> dict[str, Any]:
        """What beside the clients' states a resumption needs."""
        return self.learner.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        if state:
            self.learner.restore(state)

    async def close(self) -> None:
        """Gives up what is still being sampled."""
        await self.learner.close()


async def graded_job(
    job: JobPlan, plan: Plan, clients: Clients, renderer: Renderer, tasks: Sequence[Task], means: Means
) -> GradedJob:
    """The learner of a job with a grader."""
    given = job.hyperparameters
    reward = GraderReward(grader_of(job.grader), means)
    watched = Watched(reward, {id(task.item): number for number, task in enumerate(tasks, 1)})
    make: Callable[[], OneAnswer] = lambda: OneAnswer(watched)  # noqa: E731
    sampling = Sampling(
        group_size=max(2, round(GROUP_SIZE * given["compute_multiplier"])),
        limits=AnswerLimits(most_tokens=given["max_completion_tokens"]),
    )
    # The mean over tokens, by which long answers count as much as short ones (DAPO).
    learner = await reward_learner(plan, clients, renderer, make, Ways(Grpo(normalisation="tokens")), sampling)
    return GradedJob(learner, watched, given["eval_samples"])


def thinking(tasks: Sequence[Task], effort: str) -> Sequence[Task]:
    """Tasks whose prompts tell the model's template how much to think; as they are where nothing is said."""
    if effort == "default":
        return tasks
    settings = {"reasoning_effort": effort}
    return [replace(task, prompt=replace(task.prompt, settings={**task.prompt.settings, **settings})) for task in tasks]


def means_of(tools: Tools, chat: Chat) -> Means:
    """What the graders of one job may use."""
    return Means(tools.sandbox, chat, tools.embed, tools.limits)
