"""The guards of a cycle: whether a candidate has learned its task, or only the reward that it is trained by.

Champion and candidate answer the same recorded prompts and the same golden ones. The learned reward, the second one,
which nothing optimises, and the golden answers are asked about both, and `guards.py` says where they part. Knows the
formulas of no measure, and no stage of a loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from loreloop.learn.examples import Task
from loreloop.learn.files import tasks
from loreloop.learn.loop.answering import Room
from loreloop.learn.loop.config import Gate, Loaded
from loreloop.learn.loop.gate import SHADOW_TOKENS, Gated, Sides
from loreloop.learn.loop.guard_looks import Eyes, Look, reading_of
from loreloop.learn.loop.guards import Guard, GuardLimits, Measure, Reading, measured
from loreloop.learn.loop.reward.events import LabelledEvent, Scored
from loreloop.learn.loop.reward.mix import messages_of
from loreloop.learn.loop.reward.probes import fooled
from loreloop.learn.loop.reward.stream import RewardStream
from loreloop.learn.loop.watching import Look as LookAt
from loreloop.learn.rewards.graders.similarity import fuzzy_match
from loreloop.learn.rewards.reward import Answer

FOR_A_SAY = 30  # events that the second reward has heard before its word counts
FEWEST = 10  # prompts of a measure before it may stop anybody; the errors of a few say nothing
MOST_GOLDEN = 32  # golden prompts of each kind that are answered
LONGEST = 4000  # characters of a text that is compared


@dataclass(frozen=True)
class Wanted:
    """A golden prompt, the answer that people want to it, and one that they want less, if there is one."""

    task: Task
    answer: str
    worse: str | None = None

    def nearness(self, text: str) -> float:
        """How near an answer comes to the wanted one, and by how much nearer than to the other."""
        near = fuzzy_match(text[:LONGEST], self.answer[:LONGEST])
        return near - (fuzzy_match(text[:LONGEST], self.worse[:LONGEST]) if self.worse is not None else 0.0)


@dataclass(frozen=True)
class Guards:
    """The guards of a loop whose reward learns, with the room in which they ask. `golden` gives the prompts of the
    loop's golden file that nobody was trained on, as they are now."""

    room: Room
    loaded: Loaded
    stream: RewardStream
    golden: Callable[[], Sequence[Task]] = list

    def silent(self, n_prompts: int) -> str:
        """Why the guards can stop nobody, in a sentence; "" where they can."""
        # A reward that has heard nobody is the same for every answer.
        if self.stream.proxy.version.number == 0:
            return "The guards were off: the reward has heard nobody yet."
        if n_prompts < FEWEST:
            return f"The guards were off: {n_prompts} recorded prompts could be asked, and {FEWEST} are the fewest."
        return ""

    async def look(self, sides: Sides, prompts: Sequence[Task], found: Gated) -> None:
        """Adds what the guards have measured to what the gate has found; an alarm that stops is a broken limit."""
        found.numbers["guards_prompts"] = len(prompts)
        if silent := self.silent(len(prompts)):
            found.notes.append(silent)
        if not prompts or self.stream.proxy.version.number == 0:
            return
        before, now = [await self._whole_reading(target, prompts) for target in (sides.champion, sides.candidate)]
        verdict = Guard(before, limits_of(self.loaded.config.gate)).take(now)
        found.numbers |= numbers_of(before, now) | await self._probed(self._of_people())
        for alarm in verdict.alarms if len(prompts) >= FEWEST else ():
            if alarm.stops:
                found.broken.append(f"it learned its reward and not its task: {alarm.sentence}")

    def watch(self, champion: str, prompts: Sequence[Task]) -> LookAt:
        """What looks at the weights of a training that begins with the champion: an alarm in a sentence, or ""."""
        guard: Guard | None = None

        async def look(path: str) -> str:
            nonlocal guard
            if self.silent(len(prompts)):
                return ""
            if guard is None:
                guard = Guard(await self._whole_reading(champion, prompts), limits_of(self.loaded.config.gate))
            verdict = guard.take(await self._whole_reading(path, prompts))
            return "; ".join(alarm.sentence for alarm in verdict.alarms if alarm.stops)

        return look

    async def _whole_reading(self, target: str, prompts: Sequence[Task]) -> Reading:
        golden = {"file": self._of_file(), "people": self._of_people()}
        return await self._reading(
            target, prompts, {name: each for name, each in golden.items() if len(each) >= FEWEST}
        )

    async def _reading(self, target: str, prompts: Sequence[Task], golden: Mapping[str, list[Wanted]]) -> Reading:
        answers = await self.room.answers(target, prompts, SHADOW_TOKENS)
        looks = [look_of(task, answer) for task, answer in zip(prompts, answers, strict=True)]
        second = self.stream.second if self.stream.second.version.data.n_events >= FOR_A_SAY else None
        # Models block while they score.
        reading = await asyncio.to_thread(reading_of, target, looks, Eyes(self.stream.proxy, second))
        measures: dict[str, Measure] = {}
        for name, wanted in golden.items():
            said = await self.room.answers(target, [one.task for one in wanted], SHADOW_TOKENS)
            measures[name] = measured([one.nearness(each.text) for one, each in zip(wanted, said, strict=True)])
        return msgspec.structs.replace(reading, golden=measures)

    async def _probed(self, wanted: Sequence[Wanted]) -> dict[str, Any]:
        """By which spoiled answers the reward is fooled, as shares of what people wanted. No alarm: an answer
        of one word may well be liked better."""
        good = [Scored(messages_of(one.task), one.answer) for one in wanted]
        shares = await asyncio.to_thread(fooled, self.stream.proxy, good) if good else {}
        return {f"fooled_{name}": share for name, share in shares.items()}

    def _of_file(self) -> list[Wanted]:
        asked = [task for task in self.golden() if "answer" in task.item]
        return [Wanted(task, str(task.item["answer"])) for task in asked[:MOST_GOLDEN]]

    def _of_people(self) -> list[Wanted]:
        """What people said of held-out prompts, in the newest part of the golden set."""
        part = self.stream.golden.newest
        return [wanted_of(event) for event in (part.events if part else ()) if event.value >= 0.5][-MOST_GOLDEN:]


def wanted_of(event: LabelledEvent) -> Wanted:
    """A golden statement as a prompt to answer again."""
    line = msgspec.json.encode({"messages": list(event.item.messages)})
    (task,) = tasks([line])
    return Wanted(task, event.item.answer, event.worse.answer if event.worse else None)


def look_of(task: Task, answer: Answer) -> Look:
    """One answer as the guards look at it. A call fails for certain where no such tool was offered, or where its
    arguments are no JSON; others are not made here."""
    offered = {str(tool.get("function", tool).get("name", "")) for tool in task.item.get("tools") or ()}
    failed = any(call.name not in offered or not _is_json(call.arguments) for call in answer.calls)
    return Look(Scored(messages_of(task), answer.text), answer.n_tokens, failed)


def limits_of(rules: Gate) -> GuardLimits:
    """The limits of the guards, so far as the settings of the gate speak of the same measures. How far a candidate may
    lie from the champion the gate holds by itself."""
    return GuardLimits(
        sqrt_kl=float("inf"),
        length_times=rules.length_most,
        refusals=rules.refusals_most,
        tool_errors=rules.refusals_most,
        repetition=rules.repetition_most,
    )


def numbers_of(before: Reading, now: Reading) -> dict[str, Any]:
    """The measures of both, side by side."""
    sides = {"": now, "_champion": before}
    found = {f"reward{side}": one.proxy.mean for side, one in sides.items()}
    found |= {f"second_reward{side}": one.second.mean for side, one in sides.items() if one.second}
    found |= {f"golden_{name}{side}": each.mean for side, one in sides.items() for name, each in one.golden.items()}
    return found | {f"failed_calls{side}": one.tool_errors.mean for side, one in sides.items()}


def _is_json(text: str) -> bool:
    try:
        json.loads(text or "{}")
    except ValueError:
        return False
    return True
