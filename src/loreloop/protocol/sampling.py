"""Sampling operations, the events that a running one produces, and its result.

Log-probabilities are those of the temperature-scaled, unfiltered distribution (temperature 0: of temperature 1).
Sampled ids include the stop token, or the tokens that completed a stop string.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from loreloop.protocol.tensors import Tensor
from loreloop.protocol.token_ids import Logprobs, TokenIds
from loreloop.protocol.training import Chunk

StopReason = Literal["stop", "length"]
Thoughts = Literal["none", "possible", "opened"]


class SamplingParams(msgspec.Struct, frozen=True):
    """`temperature` 0 is greedy; `top_k` -1 is off; `max_tokens` is never None here (the window was filled in).

    `stop_tokens` hold the whole list of ids that end a sequence (the implicit end-of-sequence ids included where
    the client asked for them); `stop_strings` are looked for in the text. `seed` is always set: the draw of
    position p of sample i depends on (seed, i, p) alone.

    What follows `stop_strings` changes what is drawn, not the log-probabilities that are reported: tokens less likely
    than `min_p` times the likeliest are dropped; presence and frequency penalties are taken off the logits of tokens
    that were drawn (the second times their number); `repetition_penalty` divides positive and multiplies negative
    logits of tokens in prompt or answer; `logit_bias` adds; `grammar` (empty: none) admits only what it can read.
    `thoughts` say where `stop_strings` count: not in what the model thinks, which its prompt may have `opened`.
    """

    max_tokens: int
    seed: int  # with the index of the sample and the position, all that a draw depends on
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str = ""
    thoughts: Thoughts = "none"


class PromptScores(msgspec.Struct, frozen=True):
    """What to report about prompt positions. Position 0 has no prediction; `last_n` None scores all the others."""

    logprobs: bool = False
    last_n: int | None = None
    top_k: int = 0  # likeliest tokens of each position
    alt_tokens_k: int = 0
    targets: Tensor | None = None  # int64 (L-1, K), -1 where nothing is asked

    @property
    def wanted(self) -> bool:
        """Whether anything about the prompt is to be reported, so that its logits have to be computed."""
        return self.logprobs or self.top_k > 0 or self.alt_tokens_k > 0 or self.targets is not None


class Revision(msgspec.Struct, frozen=True):
    """An immutable adapter: its id, and the folder it can be loaded from at any time."""

    revision_id: str
    folder: str


class Partial(msgspec.Struct, frozen=True, array_like=True):
    """What a stream had already sent of one sample before its engine died."""

    tokens: TokenIds
    logprobs: Logprobs


class SampleOp(msgspec.Struct, frozen=True, tag="sample"):
    """`owner` is the key's id, for fairness. `revision` None samples the bare base."""

    request_id: str
    owner: str
    revision: Revision | None
    prompt: tuple[Chunk, ...]
    num_samples: int  # share the prompt's pages, and are drawn independently
    params: SamplingParams
    scores: PromptScores = PromptScores()
    topk_sample_logprobs: int = 0  # alternatives that are reported for each drawn token
    filtered_logprobs: bool = False  # report those of the distribution that was drawn from, too
    stream: bool = False
    routes: bool = False  # tell which experts tokens went to, where the model has any
    resume: tuple[Partial, ...] = ()  # of each sample; empty for a request that begins


def stop_reason(op: SampleOp, token: int, n_drawn: int) -> StopReason | None:
    """Why a sample ends with this token, its n-th, as far as ids can tell; or None."""
    if token in op.params.stop_tokens:
        return "stop"
    # A stop token goes before the length, so that an answer whose last token ends it is not reported as cut.
    return "length" if n_drawn >= op.params.max_tokens else None


class TopK(msgspec.Struct, frozen=True):
    """Both dense, (length, k); empty cells hold token 0 and -99999.0."""

    token_ids: TokenIds
    logprobs: Logprobs
    k: int
    length: int


class SampledSequence(msgspec.Struct, frozen=True):
    """One finished sample: N tokens, N log-probabilities, and why it ended. `topk` has a row for each token, and
    `filtered_logprobs` N values, where the request wanted them."""

    tokens: TokenIds
    logprobs: Logprobs
    stop_reason: StopReason
    topk: TopK | None = None
    filtered_logprobs: Logprobs | None = None
    routes: bytes | None = None  # as in `Datum`, of prompt and output but for the last token


class PromptReport(msgspec.Struct, frozen=True):
    """`logprobs` of length L, NaN where undefined or not asked."""

    logprobs: Logprobs | None = None
    topk: TopK | None = None
    targets: Tensor | None = None  # float32 (L-1, K), 0.0 where -1 was asked
    alt_tokens: Tensor | None = None  # int64 (L-1, K)
    alt_logprobs: Tensor | None = None  # float32 (L-1, K)


class SampleResult(msgspec.Struct, frozen=True, tag="sample_result"):
    """What a sampling request ends with: its `num_samples` sequences in order. `cache_hit_tokens` counts the
    prompt's positions whose keys and values were already in pages."""

    sequences: tuple[SampledSequence, ...]
    prompt: PromptReport = PromptReport()
    cache_hit_tokens: int = 0
