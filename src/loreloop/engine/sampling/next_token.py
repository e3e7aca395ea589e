"""From hidden states to drawn tokens: temperature, shape, filters, one uniform number a row, log-probabilities.

Log-probabilities are those of the temperature-scaled distribution before filters (greedy rows: of temperature 1).

Legend: B rows, V vocabulary, N blocks of the vocabulary, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.engine.contract import TokenEvent
from loreloop.engine.head import Head
from loreloop.engine.sampling.logits_processors import needs_processing, processed_logits
from loreloop.engine.sampling.prompt_scores import EMPTY_LOGPROB
from loreloop.engine.sampling.sample_row import SampleRow
from loreloop.engine.sampling.token_rng import Filter, RngKey, draw_tokens, filtered, uniforms
from loreloop.engine.softmax import block_sums, softmax_of
from loreloop.model.lora import LoraBatch
from loreloop.protocol.sampling import TopK, stop_reason
from loreloop.protocol.token_ids import pack_ids, pack_logprobs


def next_tokens(head: Head, h_BD: Tensor, lora: LoraBatch, rows: Sequence[SampleRow]) -> list[TokenEvent]:
    """The next token of every row, in order."""
    keys = [RngKey(row.op.params.seed, row.sample_index, row.n_drawn) for row in rows]
    # Drawn for all rows at once, and each from its own key: a row's number does not know who shares its step.
    uniform_B = torch.from_numpy(uniforms(keys))
    events: list[TokenEvent] = []
    for span, logits_BV in head.chunks(h_BD, lora):
        events += _choose(head, logits_BV, uniform_B[span], rows[span])
    return events


def _choose(head: Head, logits_BV: Tensor, uniform_B: Tensor, rows: Sequence[SampleRow]) -> list[TokenEvent]:
    params = [row.op.params for row in rows]
    # Fixed chunks end with rows that are nobody's. They are drawn from like others, and their tokens are dropped.
    n_padding, device = logits_BV.shape[0] - len(rows), logits_BV.device
    # Greedy rows have the temperature 0, which cannot divide; their log-probabilities are reported at 1.
    temperature_B1 = torch.tensor([p.temperature or 1.0 for p in params] + [1.0] * n_padding)[:, None]
    hot = any(p.temperature not in (0, 1) for p in params)  # else dividing would be a pass over all logits for nothing
    scaled_BV = logits_BV.float() / temperature_B1.to(device) if hot else logits_BV
    softmax = softmax_of(scaled_BV)
    weight_BV, block_BN = softmax.weight_NV, softmax.block_NB
    normalizer_B1 = head.normalizer(scaled_BV, softmax.normalizer_N1)
    drawn_BV = scaled_BV
    if changed := [i for i, row in enumerate(rows) if needs_processing(row)]:
        drawn_BV = scaled_BV.float() if scaled_BV.dtype != torch.float32 else scaled_BV.clone()
        for i in changed:
            drawn_BV[i] = processed_logits(rows[i], logits_BV[i].float()) / temperature_B1[i].to(device)
            # Only what is drawn from is changed; the normalizer of reported log-probabilities stays that of the plain
            # logits.
            weight_BV[i] = (drawn_BV[i] - drawn_BV[i].amax()).exp_()
        # The draw walks over the blocks' sums, which must be those of the changed weights.
        block_BN = block_sums(weight_BV)
    filters = [Filter(p.top_k, p.top_p, p.min_p) for p in params] + [Filter()] * n_padding
    if any(f.on for f in filters):
        weight_BV = filtered(weight_BV, filters)
        block_BN = block_sums(weight_BV)
    # Greedy rows draw as well and are overwritten, so that rows need not be sorted by kind.
    token_B = draw_tokens(weight_BV, block_BN, F.pad(uniform_B, (0, n_padding)).to(device))
    greedy_B = torch.tensor([p.temperature == 0 for p in params] + [False] * n_padding, device=device)
    if bool(greedy_B.any()):
        token_B = torch.where(greedy_B, drawn_BV.argmax(-1), token_B)
    logp_B = (scaled_BV.gather(1, token_B[:, None]).float() - normalizer_B1)[:, 0]
    events = [
        _event(row, token, logp, scaled_BV[i], normalizer_B1[i])
        for i, (row, token, logp) in enumerate(zip(rows, token_B.tolist(), logp_B.tolist(), strict=False))
    ]
    for i, row in enumerate(rows):
        if row.op.filtered_logprobs:
            # The least positive fp32 number stands for a share that has been rounded away: the token was drawn, so it
            # is not zero.
            share = 1.0 if row.op.params.temperature == 0 else float(weight_BV[i, token_B[i]] / weight_BV[i].sum())
            events[i] = replace(events[i], filtered_logprob=math.log(max(share, 1e-45)))
    return events


def _event(row: SampleRow, token: int, logp: float, scaled_V: Tensor, normalizer: Tensor) -> TokenEvent:
    k = row.op.topk_sample_logprobs
    topk = None
    if k:
        top = (scaled_V.float() - normalizer).topk(min(k, len(scaled_V)))
        # Clients expect k columns even of a vocabulary that is smaller.
        ids, logprobs = np.zeros(k, np.int32), np.full(k, EMPTY_LOGPROB, np.float32)
        ids[: len(top.indices)], logprobs[: len(top.indices)] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        topk = TopK(pack_ids(ids), pack_logprobs(logprobs), k, 1)
    finished = stop_reason(row.op, token, row.n_drawn + 1)
    return TokenEvent(
        request_id=row.op.request_id,
        sample_index=row.sample_index,
        token=token,
        logprob=logp,
        finished=finished,
        topk=topk,
    )
