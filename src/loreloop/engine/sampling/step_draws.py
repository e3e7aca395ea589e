"""What a step gives behind its last layer: prompts' scores, and the next token of every row that is at its end.

It is drawn where the head is, and a row's tokens are not changed by it: whoever has the same rows takes the same in.
Its grammar is followed there as well, and nowhere else, so that one process says what it lets through and when it is
over. It goes on in a copy, which is the row's own once the token is taken in; a row that leaves before loses nothing.

Legend: T tokens of a step, D model width, B rows that draw, N positions to score, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from loreloop.engine.contract import TokenEvent
from loreloop.engine.head import Head, groups_at
from loreloop.engine.sampling.next_token import next_tokens
from loreloop.engine.sampling.sample_row import SampleRow
from loreloop.model.lora import LoraBatch
from loreloop.protocol.errors import UserError
from loreloop.protocol.sampling import PromptReport
from loreloop.protocol.training import Failure

DIVERGED = Failure(
    "user",
    "The weights give numbers that are not finite, so nothing can be drawn from them; load an earlier checkpoint, "
    "or train with a smaller learning rate.",
)


@dataclass(frozen=True)
class StepShare:
    """How many tokens of a row a step computes, and in which of the row's lives: one that has left begins another."""

    row: SampleRow
    n_tokens: int
    life: int

    @property
    def is_current(self) -> bool:
        """Whether the row has not left since."""
        return self.row.life == self.life

    @property
    def arrives(self) -> bool:
        """Whether the step computes all that the row has, so that it draws."""
        return self.n_tokens == self.row.n_missing


class Draws(msgspec.Struct, frozen=True):
    """Drawn tokens in the order of rows, prompts' reports, and what fails whole requests; those by request."""

    tokens: list[TokenEvent]
    reports: dict[str, PromptReport]
    failures: dict[str, Failure]


def draw(head: Head, shares: Sequence[StepShare], h_TD: Tensor, lora: LoraBatch) -> Draws:
    """Of a step's hidden states."""
    offset = 0
    drawing: list[SampleRow] = []
    last_rows: list[int] = []
    for share in shares:
        _score_prompt(head, share, h_TD, offset, lora)
        offset += share.n_tokens
        if share.arrives:
            drawing.append(share.row)
            last_rows.append(offset - 1)
    reports = {
        row.op.request_id: row.scoring.report()
        for row in drawing
        if row.scoring and not row.prompt_done and row.sample_index == 0
    }
    failures = _constrained(drawing)
    kept = [i for i, row in enumerate(drawing) if row.op.request_id not in failures]
    if not kept:
        return Draws([], reports, failures)
    picked_B = torch.tensor([last_rows[i] for i in kept], device=h_TD.device)
    rows = [drawing[i] for i in kept]
    choices = next_tokens(head, h_TD[picked_B], groups_at(lora, picked_B), rows)
    # Weights that have diverged give NaN. Their request must not take the others of the step along.
    failures |= {choice.request_id: DIVERGED for choice in choices if not math.isfinite(choice.logprob)}
    choices = [_followed(row, choice, failures) for row, choice in zip(rows, choices, strict=True)]
    return Draws([choice for choice in choices if choice.request_id not in failures], reports, failures)


def _followed(row: SampleRow, choice: TokenEvent, failures: dict[str, Failure]) -> TokenEvent:
    """A row's token, which ends it where its grammar is over then; notes a grammar that cannot be followed there."""
    if row.constraint is None or choice.finished or choice.request_id in failures:
        return choice
    row.ahead = row.constraint.copy()
    try:
        row.ahead.take(choice.token)
    except UserError as error:  # its grammar went beyond what is followed
        failures[choice.request_id] = Failure(error.category, error.message)
        return choice
    return replace(choice, finished="stop") if row.ahead.over else choice


def _constrained(rows: Sequence[SampleRow]) -> dict[str, Failure]:
    """Asks each row's grammar what may follow; gives the requests whose grammar fails."""
    failures: dict[str, Failure] = {}
    for row in rows:
        if row.constraint is not None:
            try:
                row.allowed_V = row.constraint.allowed()
            except UserError as error:
                failures[row.op.request_id] = Failure(error.category, error.message)
    return failures


def _score_prompt(head: Head, share: StepShare, h_TD: Tensor, offset: int, lora: LoraBatch) -> None:
    row = share.row
    if row.scoring is None or row.prompt_done:
        return
    wanted = row.scoring.wanted(row.n_computed, row.n_computed + share.n_tokens)
    picked = torch.tensor([offset + position - row.n_computed for position in wanted], dtype=torch.int64)
    if len(picked) == 0:
        return
    # Made on the host, where it costs nothing to see that it is empty.
    picked = picked.to(h_TD.device)
    for rows, logits_NV in head.chunks(h_TD[picked], groups_at(lora, picked)):
        normalizer_N1 = head.normalizer(logits_NV)
        for position, logits_V, normalizer in zip(wanted[rows], logits_NV, normalizer_N1[:, 0], strict=False):
            row.scoring.add(position, logits_V.float(), normalizer)
