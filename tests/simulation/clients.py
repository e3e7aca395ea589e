"""Clients of a simulated world. They outlive the server, ask again where they got no answer, and tell the ledger what
they were told.

As the SDK does, a training client sends an operation again until it is acknowledged, under the same sequence id, and
asks for its end until it hears of it; a sample that the server has forgotten is asked for anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loreloop.protocol.errors import Conflict, Gone, LoreloopError, NotFound, UserError
from loreloop.protocol.paths import CheckpointKind, CheckpointPath
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.training import Failure, LoadState, SaveState, SkipSeq, TrainOp
from loreloop.store import sessions
from loreloop.store.files import Files
from loreloop.store.rows import Acceptance, AddCheckpoint, CheckpointRow
from tests.scheduler.ops import create, forward_backward, rid, sample, skip, step
from tests.simulation.ledger import Ledger, expected_tokens

if TYPE_CHECKING:
    from tests.simulation.server import Server

KINDS = ("pass", "pass", "pass", "step", "step", "save", "load", "skip", "wrong")


def script(run_id: str, seed: int, kinds: Sequence[str], data: Path) -> list[TrainOp]:
    """A run's operations. A load takes up what the run has saved last."""
    ops: list[TrainOp] = [create(run_id, seed=seed)]
    saved = ""
    for seq, kind in enumerate(kinds, start=1):
        match kind:
            case "step":
                ops.append(step(run_id, seq))
            case "skip":
                ops.append(skip(run_id, seq))
            case "save":
                saved = str(Files(data).checkpoint(CheckpointPath(run_id, CheckpointKind.TRAINING, f"s{seq}")))
                ops.append(SaveState(run_id, seq, rid(run_id, seq), saved))
            case "load" if saved:
                ops.append(LoadState(run_id, seq, rid(run_id, seq), saved, True))
            case "wrong":
                ops.append(forward_backward(run_id, seq, loss="unheard_of"))
            case _:
                ops.append(forward_backward(run_id, seq))
    return ops


@dataclass
class TrainingClient:
    """Sends a run's operations up to `n_allowed`; `leaves_after` operations it ends its session, where that is set."""

    key_id: str
    session_id: str
    ops: list[TrainOp]
    ledger: Ledger
    chance: random.Random
    n_allowed: int
    leaves_after: int | None = None
    has_left: bool = False

    @property
    def is_done(self) -> bool:
        """Whether all that is allowed by now has been sent and has ended."""
        if self.leaves_after is not None:
            return self.has_left and not self._unended()
        sent = all(op.request_id in self.ledger.acknowledged for op in self.ops[: self.n_allowed])
        return sent and not self._unended()

    def _unended(self) -> list[TrainOp]:
        known = (op for op in self.ops if op.request_id in self.ledger.acknowledged)
        return [op for op in known if op.request_id not in self.ledger.ends and not isinstance(op, SkipSeq)]

    async def live(self, server: Server) -> None:
        """With one server, for as long as that lives."""
        await asyncio.gather(self._send_all(server), self._hear_all(server))

    async def _send_all(self, server: Server) -> None:
        while not self.has_left:
            todo = [op for op in self.ops[: self.n_allowed] if op.request_id not in self.ledger.acknowledged]
            n_sent = sum(op.request_id in self.ledger.acknowledged for op in self.ops)
            if self.leaves_after is not None and (n_sent >= self.leaves_after or not todo):
                await self._leave(server)
                return
            group = todo[: self.chance.randint(1, 4)]
            self.chance.shuffle(group)
            await asyncio.gather(*(self._send(server, op) for op in group))
            await asyncio.sleep(self.chance.choice((0.0, 0.01, 0.3)) if group else 0.5)

    async def _send(self, server: Server, op: TrainOp) -> None:
        after, reply = self._effect(op)
        while True:
            try:
                await server.dispatcher.submit(op, Acceptance("fake", repr(op), after, reply))
            except LoreloopError as error:
                if isinstance(error, UserError):
                    self.ledger.problem(f"{op.request_id} was refused: {error.message}")
                await asyncio.sleep(self.chance.uniform(0.05, 1.0))
                continue
            if server.is_alive:
                self.ledger.acknowledge(op)
            return

    def _effect(self, op: TrainOp) -> tuple[tuple[AddCheckpoint, ...], dict[str, str]]:
        if not isinstance(op, SaveState):
            return (), {}
        row = CheckpointRow(
            run_id=op.model_id,
            kind=CheckpointKind.TRAINING,
            name=Path(op.folder).name,
            key_id=self.key_id,
            folder=op.folder,
            created=0.0,
            size_bytes=0,
            expires=None,
            user_metadata=None,
        )
        return (AddCheckpoint(row, None),), {"path": str(row.path)}

    async def _hear_all(self, server: Server) -> None:
        while True:
            unended = self._unended()
            if not unended:
                await asyncio.sleep(0.3)
                continue
            op = unended[0]
            if len(unended) > 1 and self.chance.random() < 0.2:
                op = self.chance.choice(unended)
            try:
                outcome = await server.dispatcher.outcome(op.request_id, self.chance.choice((0.2, 2.0, 20.0)))
            except (NotFound, Gone, Conflict) as error:
                self.ledger.problem(f"{op.request_id} was acknowledged, then: {error.message}")
                return
            except LoreloopError:
                await asyncio.sleep(0.2)
                continue
            if outcome is not None and server.is_alive:
                self.ledger.ended(op, outcome.result)

    async def _leave(self, server: Server) -> None:
        """Says so until it is written down, and cares no more: what is left to do is the server's."""
        try:
            is_first = await server.store.write(sessions.end, self.key_id, self.session_id, "finished", None)
        except LoreloopError:
            await asyncio.sleep(0.3)
            return await self._leave(server)
        self.has_left |= server.is_alive
        if is_first:
            with contextlib.suppress(LoreloopError):
                await server.dispatcher.close_session(self.session_id)


@dataclass
class SamplingClient:
    """Asks for samples, some as streams, and cancels a few."""

    ops: list[SampleOp]
    ledger: Ledger
    chance: random.Random
    cancelled: set[str] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        return all(op.request_id in self.ledger.sampled for op in self.ops)

    async def live(self, server: Server) -> None:
        """With one server, for as long as that lives."""
        turns = asyncio.Semaphore(3)

        async def in_turn(op: SampleOp) -> None:
            async with turns:
                await self._ask(server, op)
                await asyncio.sleep(self.chance.uniform(0.0, 0.5))

        await asyncio.gather(*(in_turn(op) for op in self.ops if op.request_id not in self.ledger.sampled))

    async def _ask(self, server: Server, op: SampleOp) -> None:
        while True:
            try:
                server.dispatcher.sample(op, "fake")
                if self.chance.random() < 0.1:
                    self.cancelled.add(op.request_id)
                    server.dispatcher.cancel(op.request_id)
                result = await (self._streamed(server, op) if op.stream else self._polled(server, op))
            except (Gone, LoreloopError):
                await asyncio.sleep(0.3)
                continue
            if server.is_alive:
                may_fail = op.request_id in self.cancelled or server.n_engine_deaths >= 3
                self.ledger.sample_ended(op, result, may_fail=may_fail)
                server.dispatcher.forget(op.request_id)
            return

    async def _polled(self, server: Server, op: SampleOp) -> SampleResult | Failure:
        while (result := await server.dispatcher.sample_result(op.request_id, self.chance.choice((0.1, 5.0)))) is None:
            pass
        return result

    async def _streamed(self, server: Server, op: SampleOp) -> SampleResult | Failure:
        shown: dict[int, list[int]] = {index: [] for index in range(op.num_samples)}
        async for piece in server.dispatcher.stream(op.request_id):
            if isinstance(piece, SampleResult | Failure):
                if isinstance(piece, SampleResult):
                    self._check_shown(op, shown)
                return piece
            shown[piece.sample_index].append(piece.token)
        raise AssertionError("a stream has ended without a result")

    def _check_shown(self, op: SampleOp, shown: dict[int, list[int]]) -> None:
        if list(shown.values()) != expected_tokens(op):
            self.ledger.problem(f"the stream of {op.request_id} has shown {shown}")


def sample_script(session_id: str, key_id: str, chance: random.Random, n_ops: int) -> list[SampleOp]:
    """Requests of one sampler, streams among them."""
    return [
        sample(
            f"{session_id}:sample:0:{number}",
            key_id,
            n=chance.randint(1, 3),
            max_tokens=chance.randint(1, 6),
            stream=chance.random() < 0.4,
            seed=chance.randrange(600),
        )
        for number in range(n_ops)
    ]
