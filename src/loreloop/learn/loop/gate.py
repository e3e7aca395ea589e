"""The offline gate: what a candidate must hold before any user sees it, and what it says in the shadow.

Suites of tasks and golden prompts are answered by candidate and champion and compared by prompt; recorded prompts are
answered by both, unseen by users, and looked at for length, refusals and repetition. Knows neither deployments nor
files of a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from loreloop.learn.examples import Task
from loreloop.learn.loop.answering import Room
from loreloop.learn.loop.config import Gate, Loaded, Suite
from loreloop.learn.loop.paired import compare
from loreloop.learn.loop.reward.form import is_refusal
from loreloop.learn.loop.task_files import tasks_of
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.graders.reading import GraderReward, grader_of
from loreloop.learn.rewards.reward import Answer, Reward
from loreloop.learn.rewards.sandbox import CodeSandbox
from loreloop.protocol.episodes import Turn
from loreloop.protocol.errors import BadRequest

# How near an answer comes to the golden one, as OpenAI's grader has it.
NEARNESS = {
    "type": "text_similarity",
    "name": "golden",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
SHADOW_TOKENS = 128
REPEATED_WORDS, REPEATS = 4, 4  # so many words in a row, so often, are a loop


@dataclass
class Gated:
    """What the gate has measured, each limit that was broken, and what else is to be said, in sentences."""

    numbers: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def limit(self, name: str, value: float | None, fine: bool, sentence: str) -> None:
        """Notes a number, and the sentence where it is beyond its limit."""
        self.numbers[name] = value
        if not fine:
            self.broken.append(sentence)


@dataclass(frozen=True)
class Sides:
    """The two targets that are compared."""

    candidate: str
    champion: str


@dataclass(frozen=True)
class OfflineGate:
    """The gate of one loop, with the room in which it asks."""

    room: Room
    loaded: Loaded

    async def look(
        self, sides: Sides, turns: Sequence[Turn], prompts: Sequence[Task], golden: Sequence[Task] = ()
    ) -> Gated:
        """All parts of the gate. `turns` are recorded ones for the divergence, `prompts` what is answered unseen,
        `golden` are prompts that nobody was trained on, with their right answers."""
        found, rules = Gated(), self.loaded.config.gate
        means = Means(CodeSandbox())
        try:
            for suite in rules.suites:
                await self._suite(suite, sides, means, found)
            await self._golden(golden, sides, means, found)
        finally:
            if means.sandbox is not None:
                await means.sandbox.close()
        divergence = await self.room.divergence(sides.candidate, sides.champion, turns)
        fine = divergence is None or divergence <= rules.kl_most
        found.limit(
            "kl", divergence, fine, f"it lies {divergence or 0:.2f} nats a token from the champion ({rules.kl_most:g})"
        )
        if prompts:
            await self._shadow(sides, prompts, rules, found)
        return found

    async def _suite(self, suite: Suite, sides: Sides, means: Means, found: Gated) -> None:
        asked = tasks_of(self.loaded.path(suite.file), f"file of the suite {suite.name}")
        reward = GraderReward(grader_of(suite.grader), means)
        new, old = await self._scores(sides, asked, reward, suite.answer_tokens)
        found.numbers[f"{suite.name}_champion"] = mean(old)
        lost = mean(old) - mean(new)
        found.limit(
            suite.name,
            mean(new),
            lost <= suite.lose_most,
            f"it loses {lost:.3f} on {suite.name}, where {suite.lose_most:g} may be lost",
        )

    async def _golden(self, asked: Sequence[Task], sides: Sides, means: Means, found: Gated) -> None:
        rules = self.loaded.config.gate
        if not asked:
            return
        new, old = await self._scores(sides, asked, GraderReward(grader_of(NEARNESS), means), SHADOW_TOKENS)
        result = compare(new, old, rules.false_alarm, rules.golden_win_least)
        found.numbers |= {"golden_wins": result.n_wins, "golden_losses": result.n_losses, "golden_ties": result.n_ties}
        found.limit(
            "golden_win_rate",
            result.win_rate,
            not result.worse,
            f"it wins {result.win_rate:.2f} of the {result.n_wins + result.n_losses} golden prompts on which the two "
            f"differ, which shows that it does not win {rules.golden_win_least:g} of such prompts",
        )

    async def _scores(
        self, sides: Sides, asked: Sequence[Task], reward: Reward, most_tokens: int
    ) -> tuple[list[float], list[float]]:
        """The scores of candidate and champion, paired by task; a task that cannot be graded is left out of both."""
        new = await self.room.answers(sides.candidate, asked, most_tokens)
        old = await self.room.answers(sides.champion, asked, most_tokens)
        scores = [
            (await reward(one, task), await reward(other, task))
            for one, other, task in zip(new, old, asked, strict=True)
        ]
        whole = [(one.value, other.value) for one, other in scores if one.trouble is None and other.trouble is None]
        if not whole:
            raise BadRequest(f"The gate's grader gives no score to any answer: {scores[0][0].trouble}")
        return [one for one, _ in whole], [other for _, other in whole]

    async def _shadow(self, sides: Sides, prompts: Sequence[Task], rules: Gate, found: Gated) -> None:
        new = await self.room.answers(sides.candidate, prompts, SHADOW_TOKENS)
        old = await self.room.answers(sides.champion, prompts, SHADOW_TOKENS)
        length = mean(one.n_tokens for one in new) / max(1.0, mean(one.n_tokens for one in old))
        found.limit(
            "length_ratio",
            length,
            rules.length_least <= length <= rules.length_most,
            f"its answers are {length:.2f} times as long as the champion's",
        )
        for name, share, most in (
            ("refusals", refuses, rules.refusals_most),
            ("repetition", repeats, rules.repetition_most),
        ):
            now, before = mean(map(share, new)), mean(map(share, old))
            found.numbers[f"{name}_champion"] = before
            found.limit(name, now, now <= before + most, f"its share of {name} is {now:.2f} and was {before:.2f}")


def refuses(answer: Answer) -> bool:
    """Whether an answer is a refusal, by the one rule that there is of that."""
    return is_refusal(answer.text)


def repeats(answer: Answer) -> bool:
    """Whether an answer runs in a circle: the same few words in a row, again and again."""
    words = answer.text.split()
    rows = [tuple(words[place : place + REPEATED_WORDS]) for place in range(len(words) - REPEATED_WORDS + 1)]
    return any(rows.count(row) >= REPEATS for row in set(rows))
