"""One engine that draws, in a simulated loop: answers at once, token by token, with prompts read between.

All answers of an engine go on by one token together, and how long that takes depends on how many there are. So it is
enough to count how many tokens an answer would have which was there from the start: one that comes in at count 100 and
is to have 20 tokens ends at 120, whatever happens to the seconds a token takes. Knows no steps and no trainer.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

CLOSE = 1e-6  # of a token: what rounding may leave of one

Curve = Callable[[int], float]  # seconds by a number of answers, or of rows


@dataclass
class Answer:
    """An answer under way: the number of its prompt, tokens that are left, and how many each revision has drawn.
    `revision` is the one that draws now, or has drawn last."""

    prompt: int
    left: int
    revision: int = 0
    drawn: list[Drawn] = field(default_factory=list)

    @property
    def n_drawn(self) -> int:
        """Tokens so far."""
        return sum(one.n_tokens for one in self.drawn)


@dataclass(frozen=True)
class Drawn:
    """So many tokens in a row by one revision."""

    revision: int
    n_tokens: int


@dataclass(frozen=True)
class _Asked:
    """So many of an answer's tokens, which end it or its piece."""

    answer: Answer
    n_tokens: int


class _Turn(NamedTuple):
    """What is being drawn, until the sampler's count is `end`. A tuple, since heaps compare many; no two have one
    number."""

    end: float
    number: int
    asked: _Asked


class Sampler:
    """`room` answers at once; others wait behind them, and are drawn by the `revision` that is there when they begin.
    `token_seconds` is the time of a token of so many answers, `read_seconds` that of one token of a prompt, which is
    read once for all answers to it under one revision."""

    def __init__(self, room: int, prompt: int, token_seconds: Curve, read_seconds: float) -> None:
        self.room, self.prompt = room, prompt
        self.token_seconds, self.read_seconds = token_seconds, read_seconds
        self.waiting: deque[_Asked] = deque()
        self.revision = 0  # of whatever begins now
        self.version = 0  # grows when what was said of the next end holds no more
        self.busy = 0.0  # seconds in which something was drawn or read
        self._drawing: list[_Turn] = []  # a heap, by their ends
        self._count = 0.0
        self._now = 0.0
        self._begins = 0.0  # until then nothing is drawn, since prompts are read
        self._taken = 0.0  # until then the engine is the trainer's
        self._n_turns = 0
        self._read: set[tuple[int, int]] = set()  # prompts with the revisions that have read them

    @property
    def n_in_hand(self) -> int:
        """Answers that are drawn or wait."""
        return len(self._drawing) + len(self.waiting)

    def advance(self, now: float) -> None:
        """Lets time pass."""
        if self._drawing:
            self._count += max(0.0, now - max(self._now, self._begins, self._taken)) / self._a_token()
            self.busy += max(0.0, now - max(self._now, self._taken))
        self._now = now

    def take(self, answer: Answer, n_tokens: int, *, first: bool = False) -> None:
        """Draws so many tokens of an answer, at once if there is room; `first`: before those that wait."""
        asked = _Asked(answer, n_tokens)
        if len(self._drawing) < self.room:
            self._start(asked)
        elif first:
            self.waiting.appendleft(asked)
        else:
            self.waiting.append(asked)

    def ended(self) -> list[Answer]:
        """Answers, or their pieces, that are drawn by now. Those that waited take their room when `refill` is called,
        so that a next piece can come before them."""
        found = []
        while self._drawing and self._drawing[0].end <= self._count + CLOSE:
            turn = heapq.heappop(self._drawing)
            answer, n_tokens = turn.asked.answer, turn.asked.n_tokens
            answer.left -= n_tokens
            answer.drawn.append(Drawn(answer.revision, n_tokens))
            found.append(answer)
        return found

    def refill(self) -> None:
        """Begins what waits, as far as there is room."""
        while self.waiting and len(self._drawing) < self.room:
            self._start(self.waiting.popleft())

    def next_end(self) -> float | None:
        """When the next answer or piece is drawn, if nothing comes between."""
        if not self._drawing:
            return None
        begins = max(self._now, self._begins, self._taken)
        return begins + max(0.0, self._drawing[0].end - self._count) * self._a_token()

    def give_to_trainer(self, seconds: float) -> None:
        """The engine learns for so long, and neither draws nor reads."""
        left_to_read = max(0.0, self._begins - max(self._now, self._taken))
        self._taken = self._now + seconds
        self._begins = self._taken + left_to_read

    def forget(self, prompt: int) -> None:
        """Nobody will ask for this prompt again."""
        self._read = {key for key in self._read if key[0] != prompt}

    def _start(self, asked: _Asked) -> None:
        answer = asked.answer
        answer.revision = self.revision
        key = (answer.prompt, answer.revision)
        n_to_read = 0 if key in self._read else self.prompt
        # What an older revision has drawn must be read anew: keys and values are those of its weights.
        if answer.drawn and answer.drawn[-1].revision != answer.revision:
            n_to_read += answer.n_drawn
        self._read.add(key)
        if n_to_read:
            self._begins = max(self._now, self._begins, self._taken) + n_to_read * self.read_seconds
        self._n_turns += 1
        heapq.heappush(self._drawing, _Turn(self._count + asked.n_tokens, self._n_turns, asked))

    def _a_token(self) -> float:
        return self.token_seconds(len(self._drawing))
