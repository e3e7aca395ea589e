"""One sample on its way: its tokens, how many of them are computed, and the pages that hold them.

    tokens      [ prompt ............... | drawn so far .... ]
    computed     n_computed ^            wanted: all but none of the rest

A row that lost its pages begins again at 0 and needs no other bookkeeping. Knows no tensors but its adapter's.

Legend: N positions of the sample, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loreloop.engine.contract import Constrain, Constraint
from loreloop.engine.images import Ids, PlacedImage, TokenSequence
from loreloop.engine.sampling.prompt_scores import PromptScoring
from loreloop.engine.sampling.token_counts import TokenCounts
from loreloop.model.lora import AdapterView
from loreloop.protocol.sampling import SampleOp
from loreloop.protocol.token_ids import unpack_ids

BASE = ""  # stands where a revision would for the bare base


@dataclass(eq=False)
class SampleRow:
    """One sample of a request. Compared by identity, since two samples may have equal tokens."""

    op: SampleOp
    sample_index: int
    tokens: list[int]
    n_prompt: int
    adapter: AdapterView | None
    namespace: str  # of the prefix tree: the base, or one life of a revision
    scoring: PromptScoring | None = None
    n_computed: int = 0
    n_routed: int = 0  # positions whose routes have been told
    life: int = 0  # how often it has left the running ones
    is_under_way: bool = False  # a step computes it, and has not been finished
    pages: list[int] = field(default_factory=list)
    prompt_done: bool = False
    cache_hit_tokens: int = 0
    prompt: TokenSequence | None = None  # where images stand in it
    constraint: Constraint | None = None  # at the end of its tokens; in a pipeline, where tokens are drawn
    ahead: Constraint | None = None  # behind a token that was drawn and is not taken in yet
    allowed_V: NDArray[np.bool_] | None = None  # what the constraint lets through now
    drawn: TokenCounts | None = None  # what presence and frequency penalties count
    seen: TokenCounts | None = None  # what the repetition penalty is about: the prompt's too

    def __post_init__(self) -> None:
        # Counted only where a penalty reads it, for most requests have none.
        p = self.op.params
        if p.presence_penalty or p.frequency_penalty:
            self.drawn = TokenCounts(self.tokens[self.n_prompt :])
        if p.repetition_penalty != 1:
            self.seen = TokenCounts([token for token in self.tokens if token >= 0])  # below are those of images

    def take(self, token: int) -> None:
        """The next token, which has been drawn."""
        self.tokens.append(token)
        if self.ahead is not None:
            self.constraint, self.ahead = self.ahead, None
        for counts in (self.drawn, self.seen):
            if counts is not None:
                counts.add(token)

    @property
    def n_missing(self) -> int:
        """Tokens whose keys and values are not computed yet; one is the normal state of a sample that decodes."""
        return len(self.tokens) - self.n_computed

    @property
    def n_drawn(self) -> int:
        """How many tokens have been drawn, those of a resumed sample's earlier life included."""
        return len(self.tokens) - self.n_prompt

    def positions(self, first: int, stop: int) -> Ids:
        """Those of tokens first…stop: (n,), or (n, 3) where rows and columns of images count."""
        if self.prompt is None:
            return np.arange(first, stop)
        # Behind an image positions lag behind the number of tokens, so drawn tokens count on from where the prompt
        # ended.
        after_N = np.arange(max(first, self.n_prompt), stop) - self.n_prompt + self.prompt.next_position
        if self.prompt.positions_N3 is None or first >= self.n_prompt:
            return after_N if first >= self.n_prompt else np.arange(first, stop)
        return np.concatenate((self.prompt.positions_N3[first:stop], after_N[:, None].repeat(3, 1)))

    @property
    def images(self) -> tuple[PlacedImage, ...]:
        """The images of the prompt; empty for text."""
        return self.prompt.images if self.prompt else ()

    @property
    def reusable_tokens(self) -> int:
        """How long a known prefix may be taken over: the last token, and what is scored, must be computed here."""
        # The last token's hidden state is what the next one is drawn from, and the cache does not keep hidden states.
        limit = len(self.tokens) - 1
        return min(limit, self.scoring.first - 1) if self.scoring and not self.prompt_done else limit


def rows_of(
    op: SampleOp, sequence: TokenSequence, adapter: AdapterView | None, namespace: str, constrain: Constrain
) -> list[SampleRow]:
    """The samples of a request; the first one also reports on the prompt. UserError where its grammar is wrong."""
    prompt = sequence.tokens.tolist()
    fresh = constrain(op.params.grammar) if op.params.grammar else None  # built once: that may take a while
    rows = []
    for index in range(op.num_samples):
        drawn = unpack_ids(op.resume[index].tokens).tolist() if index < len(op.resume) else []
        scoring = PromptScoring(op, prompt) if index == 0 and op.scores.wanted else None
        row = SampleRow(
            op=op,
            sample_index=index,
            tokens=prompt + drawn,
            n_prompt=len(prompt),
            adapter=adapter,
            namespace=namespace,
            scoring=scoring,
        )
        row.prompt = sequence if sequence.images else None
        if fresh is not None:
            # A copy for each sample: they share what was compiled, and each follows its own text.
            row.constraint = fresh.copy()
            for token in drawn:
                row.constraint.take(token)
        rows.append(row)
    return rows
