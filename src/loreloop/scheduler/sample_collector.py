"""Puts a request's events together into its result, and notices completed stop strings.

Knows no engine; takes events, gives values.
"""

from __future__ import annotations

from collections.abc import Callable

from loreloop.engine.contract import PromptEvent, TokenEvent
from loreloop.protocol.sampling import (
    PromptReport,
    SampledSequence,
    SampleOp,
    SampleResult,
    SamplingParams,
    StopReason,
    TopK,
    stop_reason,
)
from loreloop.protocol.token_ids import join_ids, join_logprobs, pack_ids, pack_logprobs, unpack_ids, unpack_logprobs
from loreloop.text.stops import StopMatcher

MatcherFactory = Callable[[SamplingParams], StopMatcher]


class _Sample:
    """One sample as far as it has come."""

    def __init__(self, matcher: StopMatcher | None) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[TopK] = []
        self.filtered: list[float] = []
        self.routes: list[bytes] = []
        self.stop_reason: StopReason | None = None
        self.matcher = matcher

    def add(self, token: int, logprob: float, finished: StopReason | None) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.stop_reason = "stop" if self._stops(token, is_last=finished is not None) else finished

    def _stops(self, token: int, *, is_last: bool) -> bool:
        if self.matcher is None:
            return False
        # Always pushed first, because the matcher must see every token; only the last one may also settle what was held
        # back.
        return self.matcher.push(token) or (is_last and self.matcher.flush())

    def sequence(self) -> SampledSequence:
        assert self.stop_reason is not None
        return SampledSequence(
            tokens=pack_ids(self.tokens),
            logprobs=pack_logprobs(self.logprobs),
            stop_reason=self.stop_reason,
            topk=_joined(self.topk) if self.topk else None,
            filtered_logprobs=pack_logprobs(self.filtered) if self.filtered else None,
            routes=b"".join(self.routes) if self.routes else None,
        )


class SampleCollector:
    """Collects one request's samples. A resumed one begins with what a stream had shown."""

    def __init__(self, op: SampleOp, make_matcher: MatcherFactory) -> None:
        self.op = op
        stops = bool(op.params.stop_strings)
        self.samples = [_Sample(make_matcher(op.params) if stops else None) for _ in range(op.num_samples)]
        self.prompt_event: PromptEvent | None = None
        for sample, partial in zip(self.samples, op.resume, strict=False):
            tokens = unpack_ids(partial.tokens).tolist()
            logprobs = unpack_logprobs(partial.logprobs).tolist()
            # Fed through the same path as new tokens, so that a stop string across the break is found.
            for token, logprob in zip(tokens, logprobs, strict=True):
                sample.add(token, logprob, stop_reason(op, token, len(sample.tokens) + 1))

    def prompt(self, event: PromptEvent) -> None:
        """Notes what was reported of the prompt, which comes before the first token."""
        self.prompt_event = event

    def token(self, event: TokenEvent) -> bool:
        """Notes a token; True if it completed a stop string, of which the engine does not know."""
        sample = self.samples[event.sample_index]
        if event.topk:
            sample.topk.append(event.topk)
        if event.filtered_logprob is not None:
            sample.filtered.append(event.filtered_logprob)
        if event.routes is not None:
            sample.routes.append(event.routes)
        sample.add(event.token, event.logprob, event.finished)
        return sample.stop_reason is not None and event.finished is None

    def finished(self) -> list[int]:
        """Samples that have ended."""
        return [index for index, sample in enumerate(self.samples) if sample.stop_reason]

    @property
    def complete(self) -> bool:
        """Whether all samples of the request have ended."""
        return all(sample.stop_reason for sample in self.samples)

    def result(self) -> SampleResult:
        """The request's result; for a complete one only, since every sample must have its stop reason."""
        event = self.prompt_event
        report, n_hits = (event.report, event.cache_hit_tokens) if event else (PromptReport(), 0)
        return SampleResult(tuple(sample.sequence() for sample in self.samples), report, n_hits)


def _joined(parts: list[TopK]) -> TopK:
    ids = join_ids(part.token_ids for part in parts)
    return TopK(ids, join_logprobs(part.logprobs for part in parts), parts[0].k, len(parts))
