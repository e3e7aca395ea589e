"""The refill over whole conversations: a chunk that an edit opens is written again and again from the same state.

Each answer is put in the chunk's place as it is, without the net of the extractive refill, and the conversation goes
on to its end. Its reward is what the text keeps of the chunk and what stands in the end, less a fine for one that was
cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.recall import recall, turns_kept
from loreloop.memory.generative import faithful, prompt_of
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.learning.groups import SampledAnswer, Tried, advantages
from loreloop.memory.learning.practice import SETTINGS
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.refill import NOWHERE, ExtractiveRefill, Place, Refill
from loreloop.memory.state import MemoryState, Segment, passage
from loreloop.memory.words import content_of

FINE = 0.5  # for an answer that its budget cut off


@dataclass(frozen=True)
class Chance:
    """A chunk to be refilled: the state before the turn whose append opened it, and what the model is asked."""

    state: MemoryState
    turn: int
    segment: Segment
    budget: int
    prompt: str
    most: int


class Noticing(ExtractiveRefill):
    """Refills extractively, and notes which chunks a model could have been asked for."""

    def __init__(self, count: CountTokens) -> None:
        super().__init__(count)
        self.noticed: list[tuple[Segment, int, Place]] = []

    def refill(self, segment: Segment, budget: int, place: Place = NOWHERE) -> Segment | None:
        """Notes the chunk where it must be shortened, then refills it as usual."""
        if 0 < budget < segment.tokens:
            self.noticed.append((segment, budget, place))
        return super().refill(segment, budget, place)


class Scripted(ExtractiveRefill):
    """Puts a given text in the place of one chunk if it fits, else nothing."""

    def __init__(self, count: CountTokens, chunk: int, text: str) -> None:
        super().__init__(count)
        self.chunk, self.text = chunk, text

    def refill(self, segment: Segment, budget: int, place: Place = NOWHERE) -> Segment | None:
        """The scripted text in the place of the one chunk, or None if it is empty or over `budget` tokens; every other
        chunk is refilled as usual."""
        if segment.id != self.chunk:
            return super().refill(segment, budget, place)
        tokens = self.count(passage(segment.head, self.text))
        if not self.text or tokens > budget:
            return None
        return msgspec.structs.replace(segment, text=self.text, tokens=tokens, form="written", rewrites=1)


@dataclass(frozen=True)
class Marks:
    """What one answer did: whether a memory would take it, the share of the chunk's content words that it keeps, how
    much of the questions' evidence stands in the end, whether it came to an end."""

    taken: bool
    words: float
    evidence: float
    ended: bool

    @property
    def kept(self) -> float:
        """The share of content words; nothing for a text that a memory would not take."""
        return self.taken * self.words

    @property
    def reward(self) -> float:
        """The words kept, plus the evidence that stands in the end, less a fine for an answer that was cut off."""
        return self.kept + self.evidence - FINE * (not self.ended)


@dataclass
class Refills:
    """Re-rolls of one conversation."""

    conversation: Conversation
    budget: int
    count: CountTokens
    chances: list[Chance] = field(init=False)

    def __post_init__(self) -> None:
        self.chances = self._chances()

    def _memory(self, state: MemoryState, refill: Refill) -> Memory:
        return Memory(state, Parts(self.count, SurfaceImportance(), refill), SETTINGS)

    def _chances(self) -> list[Chance]:
        noticing = Noticing(self.count)
        memory = self._memory(MemoryState(self.budget), noticing)
        found = []
        for number, turn in enumerate(self.conversation.turns):
            # States are frozen, so the one before the append is kept without copying.
            before = memory.state
            memory.append(turn)
            for segment, budget, place in noticing.noticed:
                most = budget - self.count(passage(segment.head, ""))
                if most > 0:
                    prompt = prompt_of(segment, most, place).rstrip()
                    found.append(
                        Chance(state=before, turn=number, segment=segment, budget=budget, prompt=prompt, most=most)
                    )
            noticing.noticed.clear()
        return found

    def marks(self, chance: Chance, answer: SampledAnswer) -> Marks:
        """What an answer to this chance did. Its evidence is that of the whole conversation, gone on with to its
        end."""
        text, chunk = " ".join(answer.text.split()), chance.segment
        fits = bool(text) and self.count(passage(chunk.head, text)) <= chance.budget
        content = content_of(chunk.text)
        words = len(content & content_of(text)) / max(1, len(content))
        return Marks(fits and faithful(text, chunk.text), words, self._evidence(chance, text), answer.ended)

    def _evidence(self, chance: Chance, text: str) -> float:
        """Of all questions, counted one by one, so that a lost fact weighs the same in long conversations."""
        opened, *later = self.conversation.turns[chance.turn :]
        memory = self._memory(chance.state, Scripted(self.count, chance.segment.id, text))
        memory.append(opened)
        # Behind the tried text the usual refill goes on, so that rewards differ by that text alone.
        memory = self._memory(memory.state, ExtractiveRefill(self.count))
        for turn in later:
            memory.append(turn)
        kept = turns_kept(memory.state.segments, self.conversation.turns)
        return sum(recall(question, kept) or 0.0 for question in self.conversation.questions)

    def tried(self, chances: Sequence[Chance], answers: Sequence[Sequence[SampledAnswer]]) -> tuple[list[Tried], float]:
        """All answers with their advantages within their chance's group, and the mean of what they keep."""
        found, kept = [], []
        for chance, group in zip(chances, answers, strict=True):
            marks = [self.marks(chance, answer) for answer in group]
            values = advantages([mark.reward for mark in marks])
            found += [Tried(chance.prompt, answer, value) for answer, value in zip(group, values, strict=True)]
            kept += [mark.kept for mark in marks]
        return found, fmean(kept)
