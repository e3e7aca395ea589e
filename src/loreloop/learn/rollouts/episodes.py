"""Plays episodes: asks the policy what an environment asks, and keeps every token exactly as it was drawn or shown.

Between two answers only new tokens are added, so that what the model said is never tokenised again. Knows no learner.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import tinker

from loreloop.learn.environments.environment import Environment, Step
from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer
from loreloop.learn.rollouts.drawing import REFUSED, AnswerLimits, Drawn, Requests
from loreloop.learn.rollouts.settled import settled
from loreloop.learn.rollouts.traces import followed_by
from loreloop.learn.rollouts.values import Group, Observed, Rollout, Sampled, trouble_with
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Turn


class Words(Protocol):
    """Between words and tokens, by a model's own template."""

    @property
    def stop(self) -> list[int]:
        """The ids that end an answer."""
        ...

    async def prompt(self, conversation: Conversation) -> tinker.ModelInput:
        """The tokens from which a model goes on."""
        ...

    def answer(self, tokens: Sequence[int], to: Conversation, *, ended: bool | None = None) -> Answer:
        """What sampled tokens say."""
        ...

    def behind(self, conversation: Conversation, turns: Sequence[Turn], *, ended: bool) -> list[int]:
        """The tokens between an answer, which ends the conversation, and the next one: turns shown to the model."""
        ...


class Plays(Protocol):
    """What plays groups: a `Player`, or one of its own for environments of another make."""

    async def group(self, task: Any, number: int) -> Group:
        """All episodes of a task; `number` makes their random numbers their own."""
        ...

    def for_looking(self, n: int) -> Self:
        """The same for looking at weights: `n` episodes a task, or a single one at temperature 0."""
        ...


@dataclass(frozen=True)
class Begun:
    """An episode that has been reset; `conversation` is what its environment asked."""

    environment: Environment
    conversation: Conversation
    prompt: tinker.ModelInput


@dataclass
class FirstAnswers:
    """The first answers of a group. Episodes that begin with the same prompt share one request, which `asked` holds by
    the prompt's text; each takes the next answer of it."""

    asked: dict[str, asyncio.Task[list[Drawn]]]
    taken: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(
        cls, prompts: Sequence[tinker.ModelInput], requests: Requests, stop: list[int], limits: AnswerLimits
    ) -> Self:
        """Asks for as many answers to each prompt as it comes up."""
        # The server then reads a prompt once for the whole group, which for long prompts is most of the work.
        counts, by_text = Counter(map(_text, prompts)), {_text(prompt): prompt for prompt in prompts}
        return cls(
            {
                text: asyncio.ensure_future(_first(by_text[text], n, requests, stop, limits))
                for text, n in counts.items()
            }
        )

    async def take(self, prompt: tinker.ModelInput) -> Drawn:
        """The beginning of an answer that nobody else has taken."""
        text = _text(prompt)
        number, self.taken[text] = self.taken[text], self.taken[text] + 1
        # Shielded, so that one episode that is given up does not take the answers of the others along.
        return (await asyncio.shield(self.asked[text]))[number]

    def close(self) -> None:
        """Gives up what is still being asked."""
        for task in self.asked.values():
            task.cancel()


async def _first(
    prompt: tinker.ModelInput, n: int, requests: Requests, stop: list[int], limits: AnswerLimits
) -> list[Drawn]:
    within = limits.behind(prompt.length)
    if within is None:
        raise BadRequest(
            f"A task has {prompt.length} tokens with the tools and images of its environment, and the model takes "
            f"{limits.window} with the answer; shorten it, or leave it out."
        )
    return await requests.begin(prompt, n, stop, within)


def _text(prompt: tinker.ModelInput) -> str:
    return prompt.model_dump_json()


@dataclass(frozen=True)
class Player:
    """Plays groups of `group_size` episodes of one kind of environment."""

    make: Callable[[], Environment]
    words: Words
    requests: Requests
    limits: AnswerLimits
    group_size: int

    async def group(self, task: Task, number: int) -> Group:
        """The episodes of a task, all at once; those that fail are counted and do not end the others."""
        # One for each episode: an environment holds the state of a task, such as what its tools have changed.
        environments = [self.make() for _ in range(self.group_size)]
        try:
            begun = await settled((self._reset(environment, task) for environment in environments), REFUSED)
            played = await self._played(begun.results, number)
        finally:
            # An environment whose end fails has had its episode all the same.
            await settled(environment.close() for environment in environments)
        troubles = (*begun.troubles, *played.troubles)
        return replace(played, task=task, n_failed=len(troubles), troubles=tuple(dict.fromkeys(troubles)))

    def for_looking(self, n: int) -> Self:
        """`n` episodes a task; a single one at temperature 0, since several would then all be the same."""
        temperature = 0.0 if n == 1 else self.limits.temperature
        return replace(self, limits=replace(self.limits, temperature=temperature, piece=None), group_size=n)

    async def _reset(self, environment: Environment, task: Task) -> Begun:
        conversation = await environment.reset(task)
        return Begun(environment, conversation, await self.words.prompt(conversation))

    async def _played(self, begun: Sequence[Begun], number: int) -> Group:
        limits = replace(self.limits, seed=_seed(self.limits.seed, 7_919 * number), most_tokens=self.limits.left(0))
        first = FirstAnswers.of([each.prompt for each in begun], self.requests, self.words.stop, limits)
        try:
            played = await settled(
                (
                    # Members share the random numbers of the request that begins them all, and part behind it.
                    Episode(self, each, replace(limits, seed=_seed(limits.seed, 1_009 * (member + 1)))).play(
                        first, f"{number}.{member}"
                    )
                    for member, each in enumerate(begun)
                ),
                REFUSED,
            )
        finally:
            first.close()
        return Group(None, played.results, troubles=played.troubles)


def _seed(seed: int | None, beside: int) -> int | None:
    return None if seed is None else seed + beside


class Episode:
    """One episode while it is played, with its own limits and random numbers."""

    def __init__(self, player: Player, begun: Begun, limits: AnswerLimits) -> None:
        self.player, self.limits = player, limits
        self.environment, self.conversation, self.prompt = begun.environment, begun.conversation, begun.prompt
        self.turns: list[Observed | Sampled] = []
        self.parts: dict[str, float] = {}

    async def play(self, first: FirstAnswers, name: str) -> Rollout:
        """The episode from its first answer to its end."""
        words, requests = self.player.words, self.player.requests
        begun = await first.take(self.prompt)
        # Whoever has begun has room for one token at least.
        limits = self.limits.behind(self.prompt.length) or self.limits
        drawn = await requests.finish(self.prompt, begun, words.stop, limits)
        while True:
            answer = words.answer(drawn.said.tokens, self.conversation, ended=drawn.ended)
            step = await self.environment.step(answer)
            self.turns.append(drawn.said)
            self._earn(step)
            # An environment that has nothing to show cannot be answered, whether it calls itself done or not.
            if step.done or not step.turns:
                return self._rollout(drawn, step, name)
            further = self._limits_left()
            if further is not None:
                self._show(answer, step, ended=drawn.ended)
                further = further.behind(self._so_far().length)
            if further is None:
                step = await self.environment.cut_off(answer)
                self._earn(step)
                return self._rollout(drawn, step, name)
            drawn = await requests.draw(self._so_far(), words.stop, further)

    def _earn(self, step: Step) -> None:
        """Adds what a step has earned to the last answer."""
        place = max(place for place, turn in enumerate(self.turns) if isinstance(turn, Sampled))
        said = self.turns[place]
        assert isinstance(said, Sampled)
        self.turns[place] = replace(said, reward=said.reward + step.reward)
        for name, value in step.parts.items():
            # Summed over turns, as rewards are, so that the parts still add up to what they are parts of.
            self.parts[name] = self.parts.get(name, 0.0) + value

    def _show(self, answer: Answer, step: Step, *, ended: bool) -> None:
        said = Turn(role="assistant", content=answer.text, thinking=answer.thinking, calls=answer.calls)
        # The words are kept beside the tokens since the template is asked with words; the row itself is never made of
        # them.
        self.conversation = replace(self.conversation, turns=(*self.conversation.turns, said))
        self.turns.append(Observed(tuple(self.player.words.behind(self.conversation, step.turns, ended=ended))))
        self.conversation = replace(self.conversation, turns=(*self.conversation.turns, *step.turns))

    def _limits_left(self) -> AnswerLimits | None:
        """For the next answer; None where the episode has had all that it may."""
        said = [turn for turn in self.turns if isinstance(turn, Sampled)]
        left = self.player.limits.left(sum(len(turn.tokens) for turn in said))
        if not left or len(said) >= self.limits.most_turns:
            return None
        return replace(self.limits, most_tokens=left, seed=_seed(self.limits.seed, 101 * len(said)))

    def _so_far(self) -> tinker.ModelInput:
        return followed_by(self.prompt, [token for turn in self.turns for token in turn.tokens])

    def _rollout(self, drawn: Drawn, step: Step, name: str) -> Rollout:
        reward = sum(turn.reward for turn in self.turns if isinstance(turn, Sampled))
        return Rollout(
            prompt=self.prompt,
            turns=tuple(self.turns),
            reward=reward,
            parts=self.parts,
            ended=drawn.ended,
            episode=name,
            group=name.rpartition(".")[0],
            trouble=step.trouble or trouble_with(reward),
        )
