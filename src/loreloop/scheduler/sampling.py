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
from loreloop.scheduler.assembly import Assembly, MatcherFactory
from loreloop.scheduler.attempt import Attempt
from loreloop.scheduler.fair import FairQueue


class Sampling:
    def __init__(
        self, engine: Engine, send: Callable[[FromEngine], None], attempt: Attempt, new_matcher: MatcherFactory
    ) -> None:
        self._engine, self._send, self._attempt, self._new_matcher = engine, send, attempt, new_matcher
        self._fair = FairQueue()
        self._assemblies: dict[str, Assembly] = {}  # of admitted requests

    @property
    def busy(self) -> bool:
        return self._engine.sampling or self._fair.waiting > 0

    @property
    def waiting(self) -> int:
        return self._fair.waiting

    @property
    def running(self) -> int:
        return self._fair.running

    def submit(self, op: SampleOp) -> None:
        self._fair.add(op)

    def cancel(self, request_id: str) -> None:
        if request_id in self._assemblies:
            self._attempt(partial(self._engine.cancel_sample, request_id))
        if request_id in self._fair:
            self._end(request_id, Failure("user", f"{request_id} was cancelled."))

    def drop_revision(self, revision_id: str) -> None:
        self._attempt(partial(self._engine.drop_revision, revision_id))

    def admit(self) -> None:
        """Hands waiting requests to the engine, in fair order, until it has no room for the next one."""
        while (op := self._fair.front()) is not None:
            admitted = self._begin(op)
            if admitted is False and self._assemblies:
                return
            if admitted is False:
                admitted = Failure("server", f"The engine has no room for {op.request_id} with nothing else running.")
            if isinstance(admitted, Failure):
                self._end(op.request_id, admitted)

    def step(self) -> None:
        """One token, or a stretch of prompt, for all that run."""
        if not self._engine.sampling:
            return
        events = self._attempt(self._engine.sample_step)
        if isinstance(events, Failure):
            for request_id in tuple(self._assemblies):
                self._attempt(partial(self._engine.cancel_sample, request_id))
                self._end(request_id, events)
        else:
            self._tell(events)

    def _begin(self, op: SampleOp) -> bool | Failure:
        assembly = self._attempt(partial(Assembly, op, self._new_matcher))
        if isinstance(assembly, Failure):
            return assembly
        if not assembly.complete:
            admitted = self._attempt(partial(self._engine.admit, op))
            if admitted is not True:
                return admitted
        self._fair.admit(op)
        self._assemblies[op.request_id] = assembly
        if assembly.complete:  # a resumed stream that had only its end left to say
            self._end(op.request_id, assembly.result())
        else:
            for index in assembly.finished():
                self._engine.finish_sample(op.request_id, index)
        return True

    def _tell(self, events: Iterable[SampleEvent]) -> None:
        streamed: defaultdict[str, list[Token]] = defaultdict(list)
        complete: list[Assembly] = []
        for event in events:
            assembly = self._assemblies.get(event.request_id)
            if assembly is None:  # cancelled before the engine could say that it had failed
                continue
            match event:
                case PromptEvent():
                    assembly.prompt(event)
                case SampleFailed():
                    self._end(event.request_id, event.failure)
                case TokenEvent():
                    self._add(assembly, event)
                    if assembly.op.stream:
                        streamed[event.request_id].append(_token(event))
                    if assembly.complete:
                        complete.append(assembly)
        for request_id, tokens in streamed.items():
            self._send(Tokens(request_id, tuple(tokens)))
        for assembly in complete:
            self._end(assembly.op.request_id, assembly.result())

    def _add(self, assembly: Assembly, event: TokenEvent) -> None:
        ends_here = assembly.token(event)
        if ends_here:
            self._engine.finish_sample(event.request_id, event.sample_index)

    def _end(self, request_id: str, result: SampleResult | Failure) -> None:
        self._assemblies.pop(request_id, None)
        self._fair.end(request_id)
        self._send(SampleEnd(request_id, result))


def _token(event: TokenEvent) -> Token:
    return Token(event.sample_index, event.token, event.logprob, event.topk, event.filtered_logprob)
