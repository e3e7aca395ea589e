"""The engines of one base model as the dispatcher sees them: the one that trains, and replicas that only sample.

Holds what each has in hand, and gives every sample to one of them. With no replicas the training engine is the only
one, and takes them all. Knows nothing of the store, nor of how an engine was started.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from loreloop.config import EngineConfig
from loreloop.host.counts import Counts
from loreloop.host.link import EngineConnection
from loreloop.host.placement import Candidate, KnownPrefixes, choose, prefixes_of
from loreloop.host.tickets import Ticket
from loreloop.protocol.link import EngineInfo, Meters, Queues, Sample
from loreloop.protocol.sampling import SampleOp
from loreloop.protocol.training import TextChunk

TRAINING = 0  # the number of the engine that trains; replicas count from 1
IDLE = Queues(0, 0, 0)


@dataclass
class EngineState:
    """One engine; `connection` is None while it is dead or not up yet, and `leaving` once it has said that it ends.

    `executing` are the training operations that it has in hand, `deaths` counts the engines that died with an operation
    in hand, `n_samples` the samples that were given to it and have not ended.
    """

    number: int
    outside: bool = False  # stands for a sampler that is not ours
    connection: EngineConnection | None = None
    leaving: bool = False
    queues: Queues = IDLE
    meters: Meters = field(default_factory=Meters)
    counts: Counts = field(default_factory=Counts)
    executing: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)
    n_samples: int = 0

    @property
    def takes_samples(self) -> bool:
        """Whether a sample that is sent now is likely to be drawn."""
        return self.connection is not None and not self.leaving

    def can_draw(self, op: SampleOp) -> bool:
        """A sampler outside draws tokens after tokens; what else our engines can do, it cannot."""
        more = op.params.grammar or op.scores.wanted or op.topk_sample_logprobs or op.filtered_logprobs or op.routes
        has_images = any(not isinstance(chunk, TextChunk) for chunk in op.prompt)
        return not (self.outside and (more or has_images))

    def connected(self, connection: EngineConnection) -> None:
        """A new process is there in its place."""
        self.connection, self.leaving = connection, False

    def disconnected(self) -> None:
        """The process has ended. Unless it had said that it would, what it was executing may be what kills it."""
        if not self.leaving:
            self.counts.n_deaths += 1
            self.deaths.update(self.executing)
        self.connection, self.executing = None, set()
        self.queues, self.meters = IDLE, Meters()


class EngineGroup:
    """The training engine of a base model and its replicas. `info` is what the first of them said of itself."""

    def __init__(self, config: EngineConfig) -> None:
        self.info: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self.training = EngineState(TRAINING)
        numbers = range(1, config.n_replicas + 1)
        self.replicas = tuple(EngineState(number, outside=number > config.replicas) for number in numbers)
        self._known = KnownPrefixes()

    @property
    def all(self) -> tuple[EngineState, ...]:
        """By their numbers."""
        return (self.training, *self.replicas)

    def give(self, ticket: Ticket) -> None:
        """Sends an unfinished sample to an engine, behind what its stream has shown. Where none can take it, it waits
        for the next call."""
        takers = self._takers(ticket)
        if not takers:
            return
        number = takers[0].number
        if self.replicas:
            prefixes = prefixes_of(ticket.op)
            number = choose([Candidate(e.number, e.n_samples, self._known.n_known(prefixes, e.number)) for e in takers])
            self._known.note(prefixes, number)
        engine = self.all[number]
        assert engine.connection
        engine.connection.send(Sample(ticket.resumed()))
        ticket.engine = number
        ticket.n_given += 1
        engine.n_samples += ticket.op.num_samples

    def take_back(self, ticket: Ticket) -> EngineState | None:
        """A sample is no longer in its engine's hands; gives the engine, None for one that waits."""
        if ticket.engine is None:
            return None
        engine = self.all[ticket.engine]
        engine.n_samples -= ticket.op.num_samples
        ticket.engine = None
        return engine

    def forget_prefixes(self, engine: EngineState) -> None:
        """What an engine had computed has died with it."""
        self._known.forget(engine.number)

    def waits_for_replica(self, ticket: Ticket) -> bool:
        """Whether an unfinished sample is in no engine's hands, and may go to a replica alone."""
        return ticket.result is None and ticket.engine is None and bool(ticket.n_deaths and self._able(ticket))

    def _able(self, ticket: Ticket) -> list[EngineState]:
        return [one for one in self.replicas if one.can_draw(ticket.op) and one.number not in ticket.avoided]

    def _takers(self, ticket: Ticket) -> list[EngineState]:
        """Replicas leave the training engine alone. It draws where none of them is there, but nothing that an engine
        has died with: that may be what killed it, and training should outlive it."""
        able = self._able(ticket)
        up = _up(able)
        if up or (able and ticket.n_deaths):
            return up
        return _up((self.training,))


def _up(engines: Iterable[EngineState]) -> list[EngineState]:
    return [engine for engine in engines if engine.takes_samples]
