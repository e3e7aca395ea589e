"""The sampling half of the loop: requests wait their fair turn, run together, and end one by one.

In: sampling requests. Out: `Tokens` of streams and one `SampleEnd` a request, cancelled ones too. It does not know how
a token is computed, nor how a stop string is recognised.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

from loreloop.engine.contract import Engine, PromptEvent, SampleEvent, SampleFailed, TokenEvent
from loreloop.protocol.link import FromEngine, SampleEnd, Token, Tokens
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.training import Failure
from loreloop.scheduler.error_boundary import ErrorBoundary
from loreloop.scheduler.fair import FairQueue
from loreloop.scheduler.sample_collector import MatcherFactory, SampleCollector


class Sampling:
    """All sampling requests of one engine. `within_boundary` wraps every call into the engine that may fail."""

    def __init__(
        self,
        engine: Engine,
        send: Callable[[FromEngine], None],
        within_boundary: ErrorBoundary,
        new_matcher: MatcherFactory,
    ) -> None:
        self._engine, self._send, self._within_boundary, self._new_matcher = engine, send, within_boundary, new_matcher
        self._fair = FairQueue()
        self._collectors: dict[str, SampleCollector] = {}  # of admitted requests

    @property
    def busy(self) -> bool:
        """Whether a step would do anything; while not, the loop may sleep."""
        return self._engine.sampling or self._fair.waiting > 0

    @property
    def waiting(self) -> int:
        """How many requests have not been handed to the engine yet."""
        return self._fair.waiting

    @property
    def running(self) -> int:
        """How many requests the engine works on."""
        return self._fair.running

    def submit(self, op: SampleOp) -> None:
        """Takes a request in; it runs once `admit` finds room for it."""
        self._fair.add(op)

    def cancel(self, request_id: str) -> None:
        """Ends a request with a failure. One that has ended already is let be, since both may have crossed on the
        link."""
        if request_id in self._collectors:
            self._within_boundary(partial(self._engine.cancel_sample, request_id))
        # Ended here and not by an event of the engine, so that a request that still waits gets its end as well.
        if request_id in self._fair:
            self._end(request_id, Failure("user", f"{request_id} was cancelled."))

    def drop_revision(self, revision_id: str) -> None:
        """Lets the engine forget an adapter's weights and what was cached of it."""
        self._within_boundary(partial(self._engine.drop_revision, revision_id))

    def admit(self) -> None:
        """Hands waiting requests to the engine, in fair order, until it has no room for the next one."""
        while (op := self._fair.front()) is not None:
            admitted = self._begin(op)
            # The front request blocks those behind it even if a smaller one would fit: a large request would otherwise
            # wait for ever.
            if admitted is False and self._collectors:
                return
            # Nothing else runs, so waiting could not make room.
            if admitted is False:
                admitted = Failure("server", f"The engine has no room for {op.request_id} with nothing else running.")
            if isinstance(admitted, Failure):
                self._end(op.request_id, admitted)

    def step(self) -> None:
        """One token, or a stretch of prompt, for all that run."""
        if not self._engine.sampling:
            return
        events = self._within_boundary(self._engine.sample_step)
        # One step computes all rows together, so its failure cannot be laid to one of them.
        if isinstance(events, Failure):
            for request_id in tuple(self._collectors):
                self._within_boundary(partial(self._engine.cancel_sample, request_id))
                self._end(request_id, events)
        else:
            self._tell(events)

    def _begin(self, op: SampleOp) -> bool | Failure:
        collector = self._within_boundary(partial(SampleCollector, op, self._new_matcher))
        if isinstance(collector, Failure):
            return collector
        if not collector.complete:
            admitted = self._within_boundary(partial(self._engine.admit, op))
            if admitted is not True:
                return admitted
        self._fair.admit(op)
        self._collectors[op.request_id] = collector
        if collector.complete:  # a resumed stream that had only its end left to say
            self._end(op.request_id, collector.result())
        else:
            for index in collector.finished():
                self._engine.finish_sample(op.request_id, index)
        return True

    def _tell(self, events: Iterable[SampleEvent]) -> None:
        streamed: defaultdict[str, list[Token]] = defaultdict(list)
        complete: list[SampleCollector] = []
        for event in events:
            collector = self._collectors.get(event.request_id)
            if collector is None:  # cancelled before the engine could say that it had failed
                continue
            match event:
                case PromptEvent():
                    collector.prompt(event)
                case SampleFailed():
                    self._end(event.request_id, event.failure)
                case TokenEvent():
                    self._add(collector, event)
                    if collector.op.stream:
                        streamed[event.request_id].append(_token(event))
                    if collector.complete:
                        complete.append(collector)
        # Sent before the ends below, since a stream must have all its tokens when it hears of its end.
        for request_id, tokens in streamed.items():
            self._send(Tokens(request_id, tuple(tokens)))
        for collector in complete:
            self._end(collector.op.request_id, collector.result())

    def _add(self, collector: SampleCollector, event: TokenEvent) -> None:
        ends_here = collector.token(event)
        if ends_here:
            self._engine.finish_sample(event.request_id, event.sample_index)

    def _end(self, request_id: str, result: SampleResult | Failure) -> None:
        self._collectors.pop(request_id, None)
        self._fair.end(request_id)
        self._send(SampleEnd(request_id, result))


def _token(event: TokenEvent) -> Token:
    return Token(event.sample_index, event.token, event.logprob, event.topk, event.filtered_logprob)
