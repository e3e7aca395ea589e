"""What a request does to a row's logits before its distribution is formed: bias, penalties, a grammar's mask.

Reported log-probabilities are of the logits as they were; only the draw feels this.

Legend: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loreloop.engine.sampling.sample_row import SampleRow


def needs_processing(row: SampleRow) -> bool:
    """Whether the row's request changes its logits at all; most do not, and are then left in the compute dtype."""
    penalized = row.drawn is not None or row.seen is not None
    return penalized or bool(row.op.params.logit_bias) or row.allowed_V is not None


def processed_logits(row: SampleRow, logits_V: Tensor) -> Tensor:
    """New logits, fp32. Presence and frequency count drawn tokens, repetition those of the prompt too:
    of a repeated token positive logits are divided by it, negative ones multiplied."""
    p = row.op.params
    # The caller's logits are those that log-probabilities are reported of.
    logits_V = logits_V.clone()
    if row.seen is not None:
        seen = torch.from_numpy(row.seen.ids).to(logits_V.device)
        # Read before it is written: the penalty must act once, however often the token stands in the text.
        old = logits_V[seen]
        logits_V[seen] = torch.where(old > 0, old / p.repetition_penalty, old * p.repetition_penalty)
    if row.drawn is not None:
        cost = torch.from_numpy(p.presence_penalty + p.frequency_penalty * row.drawn.counts).to(logits_V)
        logits_V[torch.from_numpy(row.drawn.ids).to(logits_V.device)] -= cost
    if p.logit_bias:
        ids, biases = zip(*p.logit_bias, strict=True)
        logits_V[torch.tensor(ids, device=logits_V.device)] += torch.tensor(biases).to(logits_V)
    if row.allowed_V is not None:
        allowed_V = torch.from_numpy(row.allowed_V).to(logits_V.device)
        # The mask may be shorter than the vocabulary, whose padding ids no grammar knows; they are never drawn.
        logits_V[: len(allowed_V)].masked_fill_(~allowed_V, float("-inf"))
        logits_V[len(allowed_V) :] = float("-inf")
    return logits_V
