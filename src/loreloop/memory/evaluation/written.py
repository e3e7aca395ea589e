"""Baselines in which a model writes what is remembered: a running summary, overwriting, notes that are reflected on.

The model is passed in as a sampler. What it writes comes from all turns that it was shown, directly or through its own
earlier text, and never exceeds the budget: what is too long is cut behind a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.contenders import Blind, segments_of
from loreloop.memory.generative import Sampler
from loreloop.memory.state import Segment, passage
from loreloop.protocol.errors import BadRequest

SUMMARY_SHARE = 0.5  # of the budget; the newest turns stand in the rest
OVERWRITE_CHUNK = 1024  # tokens of the conversation that are read at a time
THRESHOLDS = ((0.2, 0.6), (0.4, 0.6))  # shares of the budget: unread turns to observe, notes to reflect on

SUMMARISE = "Summary so far:\n{old}\n\nNew lines:\n{new}\n\nA summary of it all, with each fact that may matter:\n"
OVERWRITE = (
    "Memory:\n{old}\n\nThe next part of a conversation:\n{new}\n\nWrite the whole memory anew. Keep what may be asked "
    "for later, add what is new:\n"
)
OBSERVE = "Lines of a conversation:\n{new}\n\nNote what is worth knowing later, a line for each observation:\n"
REFLECT = "Notes on a conversation:\n{old}\n\nThe same notes, merged and shortened, without what is out of date:\n"


class Writer:
    """Holds what the model wrote last, and from which turns that came."""

    def __init__(self, head: str, count: CountTokens, sampler: Sampler) -> None:
        self.head, self.count, self.sampler = head, count, sampler
        self.text, self.turns = "", set[int]()

    @property
    def tokens(self) -> int:
        """Tokens of the written text with its head and line break; 0 where nothing is written yet."""
        return self.count(passage(self.head, self.text)) if self.text else 0

    def written(self, task: str, read: Sequence[Segment], most: int) -> str:
        """At most `most` tokens together with the head."""
        new = "".join(passage(segment.head, segment.text) for segment in read)
        self.turns.update(turn for segment in read for turn in segment.turns)
        # The head is counted as any other segment's is, so that all contenders pay for theirs.
        room = most - self.count(passage(self.head, ""))
        text = self.sampler(task.format(old=self.text, new=new), room) if room > 0 else ""
        return cut(text.strip(), self.head, most, self.count)

    def segment(self, id: int) -> list[Segment]:
        """None or one."""
        turns = tuple(sorted(self.turns))
        return (
            [
                Segment(
                    id=id,
                    head=self.head,
                    text=self.text,
                    tokens=self.tokens,
                    turns=turns,
                    role="system",
                    form="written",
                )
            ]
            if self.text
            else []
        )


def cut(text: str, head: str, most: int, count: CountTokens) -> str:
    """The longest beginning, in whole words, that fits. A tokenizer may need a token more for fewer words, so the
    search is followed by steps of one word."""
    ends = [0, *(n for n, letter in enumerate(text) if letter.isspace()), len(text)]
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(passage(head, text[: ends[middle]])) <= most else (low, middle - 1)
    while low and count(passage(head, text[: ends[low]])) > most:
        low -= 1
    return text[: ends[low]].rstrip()


def newest(segments: Sequence[Segment], budget: int) -> list[Segment]:
    """The unbroken end that fits."""
    first = len(segments)
    while first and segments[first - 1].tokens <= budget:
        first -= 1
        budget -= segments[first].tokens
    return list(segments[first:])


def running_summary(sampler: Sampler) -> Blind:
    """The newest turns stand as they are; when they outgrow their half of the budget, the older half of them is taken
    into the summary."""

    def remembered(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
        writer, recent = Writer("summary: ", count, sampler), list[Segment]()
        room = int(SUMMARY_SHARE * budget)
        for segment in segments_of(conversation.turns, count):
            recent.append(segment)
            if sum(one.tokens for one in recent) > budget - room:
                # Only half of the window is kept, so that a summary is not due again after the next turn.
                kept = newest(recent, (budget - room) // 2)
                writer.text = writer.written(SUMMARISE, recent[: len(recent) - len(kept)], room)
                recent = kept
        return [*writer.segment(len(conversation.turns)), *recent]

    return remembered


def overwrite(sampler: Sampler) -> Blind:
    """As MemAgent does (Yu et al., 2025), without its training: the conversation is read part by part, and after each
    the whole memory is written anew. Nothing stands as it was said."""

    def remembered(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
        writer, part = Writer("memory: ", count, sampler), list[Segment]()
        segments = segments_of(conversation.turns, count)
        for segment in segments:
            part.append(segment)
            if segment is segments[-1] or sum(one.tokens for one in part) >= OVERWRITE_CHUNK:
                writer.text = writer.written(OVERWRITE, part, budget)
                part = []
        return writer.segment(len(segments))

    return remembered


def observed(sampler: Sampler, observe_at: float, reflect_at: float) -> Blind:
    """Notes are added when the unread turns pass one share of the budget, and shortened to half of the other when they
    pass that. Raises BadRequest for shares that sum to more than 1: they would not fit."""
    if observe_at + reflect_at > 1:
        raise BadRequest(f"Unread turns of {observe_at} and notes of {reflect_at} of a budget exceed it; lower one.")

    def remembered(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
        writer, unread = Writer("notes: ", count, sampler), list[Segment]()
        for segment in segments_of(conversation.turns, count):
            unread.append(segment)
            if sum(one.tokens for one in unread) > observe_at * budget:
                notes = writer.written(OBSERVE, unread, int(observe_at * budget))
                writer.text, unread = f"{writer.text}\n{notes}".strip(), []
                if writer.tokens > reflect_at * budget:
                    writer.text = writer.written(REFLECT, [], int(reflect_at * budget / 2))
        return [*writer.segment(len(conversation.turns)), *unread]

    return remembered


def written_by(sampler: Sampler) -> dict[str, Blind]:
    """All of them, by the names of their rows."""
    notes = {f"notes, observed at {a:.0%}, reflected at {b:.0%}": observed(sampler, a, b) for a, b in THRESHOLDS}
    return {"running summary": running_summary(sampler), "overwriting": overwrite(sampler), **notes}
