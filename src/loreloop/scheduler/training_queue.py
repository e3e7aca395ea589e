"""In which order training operations run, and which share a batch. Pure: operations in, batches out.

One rule per model: operations run by `seq_id`, without gaps. An optim_step, a save or a load is a barrier; passes
between two barriers may share a batch with one another and with other models' passes. Models take turns: the one
served longest ago is next, so that sending far ahead gains nothing. The optim_step right behind a batch's passes
belongs to the turn: the model is in memory then, and might have to be read again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loreloop.protocol.training import ForwardBackward, OptimStep, SkipSeq, TrainOp, length_of


@dataclass
class _Queue:
    """A model's operations that have arrived and not run. `next_seq` is the one that must run next."""

    next_seq: int = 0
    settled_seq: int = -1  # `next_seq` at the last snapshot
    served: int = 0  # when it last had its turn
    waiting: dict[int, TrainOp] = field(default_factory=dict)
    arrivals: dict[int, int] = field(default_factory=dict)

    @property
    def head(self) -> TrainOp | None:
        return self.waiting.get(self.next_seq)

    def consume(self, op: TrainOp) -> None:
        self.waiting.pop(op.seq_id, None)
        self.arrivals.pop(op.seq_id, None)
        self.next_seq = max(self.next_seq, op.seq_id + 1)
        self.skip_consumed()

    def skip_consumed(self) -> None:
        while isinstance(self.head, SkipSeq):
            del self.waiting[self.next_seq], self.arrivals[self.next_seq]
            self.next_seq += 1

    def ready_passes(self) -> list[ForwardBackward]:
        """The passes that can run now: neighbours in order, up to a gap or a barrier."""
        passes: list[ForwardBackward] = []
        seq = self.next_seq
        # The look ahead consumes nothing: what does not fit into this batch stays where it is.
        while isinstance(op := self.waiting.get(seq), ForwardBackward | SkipSeq):
            if isinstance(op, ForwardBackward):
                passes.append(op)
            seq += 1
        return passes


class TrainingQueue:
    """All models' queues. A batch holds passes of at most `max_models` models and `batch_tokens` tokens (a larger
    pass runs alone); without `share` it holds one operation."""

    def __init__(self, *, share: bool, max_models: int, batch_tokens: int) -> None:
        self.share, self.max_models, self.batch_tokens = share, max_models, batch_tokens
        self.queues: dict[str, _Queue] = {}
        self.dropped: set[str] = set()
        self.alone: set[str] = set()  # requests that share a batch with no other
        self.behind: deque[str] = deque()  # models whose passes ran last, each until the operation behind them
        self.n_arrived = self.n_turns = 0

    @property
    def waiting(self) -> int:
        """How many operations have arrived and not run, those that wait for a predecessor included."""
        return sum(len(queue.waiting) for queue in self.queues.values())

    def ready(self) -> bool:
        """Whether any model's next operation has arrived."""
        return any(queue.head is not None for queue in self.queues.values())

    def is_dropped(self, model_id: str) -> bool:
        """Whether a model was forgotten, so that nothing of it may run."""
        return model_id in self.dropped

    def add(self, op: TrainOp, *, alone: bool = False) -> bool:
        """Takes an operation in; False: it has run already, or its model is gone."""
        queue = self.queues.get(op.model_id)
        if op.model_id in self.dropped or (queue and (op.seq_id < queue.next_seq or op.seq_id in queue.waiting)):
            return False
        # A newcomer's first turn is the next one, not one for each that the others had before.
        queue = queue or self.queues.setdefault(op.model_id, _Queue(served=self.n_turns))
        queue.waiting[op.seq_id] = op
        queue.arrivals[op.seq_id] = self.n_arrived
        self.n_arrived += 1
        queue.skip_consumed()
        if alone:
            self.alone.add(op.request_id)
        return True

    def resume(self, model_id: str, next_seq: int) -> None:
        """A restored model goes on here."""
        self.queues[model_id] = _Queue(next_seq=next_seq, settled_seq=next_seq)

    def drop(self, model_id: str) -> tuple[TrainOp, ...]:
        """Forgets a model for good; gives what still waited, in order."""
        # Remembered for good, since operations of the model may still be on their way over the link.
        self.dropped.add(model_id)
        queue = self.queues.pop(model_id, _Queue())
        return tuple(queue.waiting[seq] for seq in sorted(queue.waiting))

    def take(self, request_ids: Iterable[str]) -> tuple[TrainOp, ...]:
        """These operations, taken out, as a journaled batch had them; those of forgotten models are left out, as are
        those that failed, whose places are skipped."""
        waiting = (op for queue in self.queues.values() for op in queue.waiting.values())
        wanted = {op.request_id: op for op in waiting if not isinstance(op, SkipSeq)}
        return self._taken([wanted[request_id] for request_id in request_ids if request_id in wanted])

    def next_batch(self) -> tuple[TrainOp, ...]:
        """The next batch, taken out; empty if nothing can run."""
        while self.behind:
            queue = self.queues.get(self.behind.popleft())
            if queue and isinstance(queue.head, OptimStep):
                return self._taken([queue.head])
        queues = [queue for queue in self.queues.values() if queue.head is not None]
        # By turns first and by arrival among equals, so that the order is the same at every run.
        queues.sort(key=lambda queue: (queue.served, queue.arrivals[queue.next_seq]))
        if not queues:
            return ()
        first = queues[0].head
        assert first is not None
        if not isinstance(first, ForwardBackward):
            return self._taken([first])
        return self._taken(self._fitting([op for queue in queues for op in queue.ready_passes()]))

    def moved(self) -> dict[str, int]:
        """The next sequence id of every model that executed something since `mark_snapshotted`."""
        return {m: q.next_seq for m, q in self.queues.items() if q.next_seq not in (0, q.settled_seq)}

    def mark_snapshotted(self, moved: Mapping[str, int]) -> None:
        """Notes that a snapshot holds what `moved` gave before it was taken: operations may have arrived meanwhile."""
        for model_id, next_seq in moved.items():
            self.queues[model_id].settled_seq = next_seq

    def _taken(self, ops: list[TrainOp]) -> tuple[TrainOp, ...]:
        self.n_turns += 1
        if any(isinstance(op, ForwardBackward) for op in ops):
            self.behind = deque(dict.fromkeys(op.model_id for op in ops))
        for op in ops:
            self.alone.discard(op.request_id)
            self.queues[op.model_id].consume(op)
            self.queues[op.model_id].served = self.n_turns
        return tuple(ops)

    def _fitting(self, passes: list[ForwardBackward]) -> list[TrainOp]:
        """As many of the passes, in order, as one batch holds; a model's later pass never overtakes its earlier one."""
        chosen: list[TrainOp] = [passes[0]]
        models, closed = {passes[0].model_id}, set[str]()
        n_tokens = count_tokens(passes[0])
        for op in passes[1:] if self._may_share(passes[0]) else []:
            fits = n_tokens + count_tokens(op) <= self.batch_tokens and len(models | {op.model_id}) <= self.max_models
            # Once a model's pass was left out, its later ones are too, however small they are.
            if op.model_id in closed or not fits or not self._may_share(op):
                closed.add(op.model_id)
            else:
                chosen.append(op)
                models.add(op.model_id)
                n_tokens += count_tokens(op)
        return chosen

    def _may_share(self, op: TrainOp) -> bool:
        return self.share and op.request_id not in self.alone


def count_tokens(op: ForwardBackward) -> int:
    """How many positions all sequences of a pass have together."""
    return sum(length_of(datum.chunks) for datum in op.data)
