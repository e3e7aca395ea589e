"""What a request wants to know about its prompt, gathered while the prompt is computed.

Position p of a prompt of length L is predicted by position p-1; position 0 by none. Log-probabilities here are at
temperature 1; alternative tokens are drawn at the request's temperature.

Legend: L prompt length, V vocabulary, K columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from loreloop.engine.sampling.token_rng import ALTERNATIVE_STREAM, RngKey, draw_tokens, uniforms
from loreloop.engine.softmax import softmax_of
from loreloop.protocol.sampling import PromptReport, SampleOp, TopK
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.token_ids import pack_ids, pack_logprobs

EMPTY_LOGPROB = -99999.0


class PromptScoring:
    """Collects one request's prompt report. `first` is the first position to be scored."""

    def __init__(self, op: SampleOp, tokens: list[int]) -> None:
        self.scores, self.params, self.tokens = op.scores, op.params, tokens
        length = len(tokens)
        last_n = op.scores.last_n
        self.first = max(1, length - last_n) if last_n is not None else 1
        # NaN stands for positions without a value: the first one, and those before the wanted end of the prompt.
        self.logprobs_L = np.full(length, np.nan, np.float32)
        self.top_ids = np.zeros((length, op.scores.top_k), np.int32)
        self.top_logprobs = np.full((length, op.scores.top_k), EMPTY_LOGPROB, np.float32)
        self.targets = op.scores.targets.numpy().astype(np.int64) if op.scores.targets else None
        self.target_logprobs = np.zeros(self.targets.shape if self.targets is not None else (0, 0), np.float32)
        self.alt_ids = np.zeros((max(0, length - 1), op.scores.alt_tokens_k), np.int64)
        self.alt_logprobs = np.zeros(self.alt_ids.shape, np.float32)

    def wanted(self, start: int, stop: int) -> range:
        """Which of the positions start…stop, once computed, predict a token to be scored."""
        return range(max(start, self.first - 1), min(stop, len(self.tokens) - 1))

    def add(self, position: int, logits_V: Tensor, normalizer: Tensor) -> None:
        """Takes in the logits after `position`, which predict the token at `position + 1`, and their log-sum-exp."""
        logp_V = logits_V - normalizer
        predicted = position + 1
        if self.tokens[predicted] >= 0:  # an image's tokens are of no vocabulary
            self.logprobs_L[predicted] = float(logp_V[self.tokens[predicted]])
        if self.scores.top_k:
            top = logp_V.topk(min(self.scores.top_k, len(logp_V)))
            self.top_ids[predicted, : len(top.indices)] = top.indices.cpu().numpy()
            self.top_logprobs[predicted, : len(top.indices)] = top.values.cpu().numpy()
        if self.targets is not None:
            # Targets below zero ask for nothing; they look up id 0 and are overwritten.
            ids_K = self.targets[position]
            picked = logp_V[torch.from_numpy(ids_K.clip(min=0)).to(logp_V.device)].cpu().numpy()
            self.target_logprobs[position] = np.where(ids_K >= 0, picked, 0.0)
        if self.scores.alt_tokens_k:
            self._draw_alternatives(position, logits_V)

    def _draw_alternatives(self, position: int, logits_V: Tensor) -> None:
        k = self.scores.alt_tokens_k
        scaled_1V = logits_V[None] / (self.params.temperature or 1.0)
        softmax = softmax_of(scaled_1V)
        # A stream of their own, so that alternatives never repeat the numbers that samples are drawn with.
        keys = [RngKey(self.params.seed, i, position, ALTERNATIVE_STREAM) for i in range(k)]
        uniform_K = torch.from_numpy(uniforms(keys)).to(logits_V.device)
        ids_K = draw_tokens(softmax.weight_NV.expand(k, -1), softmax.block_NB.expand(k, -1), uniform_K)
        if self.params.temperature == 0:
            ids_K = logits_V.argmax().expand(k)
        self.alt_ids[position] = ids_K.cpu().numpy()
        self.alt_logprobs[position] = (scaled_1V - softmax.normalizer_N1)[0, ids_K].cpu().numpy()

    def report(self) -> PromptReport:
        """What has been gathered; a part that was not asked for is None. Meant to be called once all positions have
        been added."""
        scores, length = self.scores, len(self.tokens)
        return PromptReport(
            logprobs=pack_logprobs(self.logprobs_L) if scores.logprobs else None,
            topk=TopK(pack_ids(self.top_ids), pack_logprobs(self.top_logprobs), scores.top_k, length)
            if scores.top_k
            else None,
            targets=tensor_of(self.target_logprobs) if self.targets is not None else None,
            alt_tokens=tensor_of(self.alt_ids) if scores.alt_tokens_k else None,
            alt_logprobs=tensor_of(self.alt_logprobs) if scores.alt_tokens_k else None,
        )
