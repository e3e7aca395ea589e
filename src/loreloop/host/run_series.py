"""Gathers what training runs measure and writes it to the store in batches, so that no step of training waits for it.

A point is made where a step of the optimizer ends, out of the passes before it. A process that is killed loses at most
what the last `FLUSH_SECONDS` brought; what was executed once is not measured again when it is replayed.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, defaultdict

import msgspec

from loreloop.host.write_behind import WriteBehind
from loreloop.protocol.errors import LoreloopError
from loreloop.protocol.link import BatchDone, OpEnd
from loreloop.protocol.paths import owner_of
from loreloop.protocol.training import OptimStep, PassResult, StepResult, TrainOp
from loreloop.store import series
from loreloop.store.series import Measured
from loreloop.store.store import Store

FLUSH_SECONDS = 2.0
MOST_KNOWN = 10_000  # runs between two steps, and steps on their way
LOSS = "loss:sum"
GRADIENT, UPDATE = "unclipped_grad_l2:mean", "update_l2:mean"
LOG = logging.getLogger(__name__)


class _Gathering(msgspec.Struct):
    """What the passes of a run have brought since its last step, which ended at `since`."""

    since: float | None = None
    loss: float = 0.0
    n_tokens: int = 0


class RunSeries:
    """One per HTTP process; lives on its event loop. Sleeps while nothing is trained."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.gathering: OrderedDict[str, _Gathering] = OrderedDict()
        self.rates: OrderedDict[str, float] = OrderedDict()  # learning rates of steps on their way, by request
        self.pending: defaultdict[str, list[Measured]] = defaultdict(list)
        self.behind = WriteBehind(FLUSH_SECONDS, self.flush)

    def asked(self, op: TrainOp) -> None:
        """Notes what a result does not tell: the learning rate of a step."""
        if isinstance(op, OptimStep):
            self.rates[op.request_id] = op.adam.learning_rate
            if len(self.rates) > MOST_KNOWN:
                self.rates.popitem(last=False)

    def batch_ended(self, done: BatchDone, now: float) -> None:
        """Takes in the ends of a batch; where a step is among them a point is written within `FLUSH_SECONDS`."""
        if done.replayed:
            return
        for end in done.ends:
            run_id, result = owner_of(end.request_id), end.result
            match result:
                case PassResult(metrics=metrics) if end.n_trained_tokens:
                    gathered = self._of(run_id)
                    gathered.loss += metrics.get(LOSS, 0.0)
                    gathered.n_tokens += end.n_trained_tokens
                case StepResult():
                    self.pending[run_id].append(Measured(now, self._values(run_id, end, result, now)))
                    self.behind.soon()

    def _of(self, run_id: str) -> _Gathering:
        found = self.gathering.setdefault(run_id, _Gathering())
        self.gathering.move_to_end(run_id)
        if len(self.gathering) > MOST_KNOWN:
            self.gathering.popitem(last=False)
        return found

    def _values(self, run_id: str, end: OpEnd, result: StepResult, now: float) -> dict[str, float]:
        gathered = self._of(run_id)
        self.gathering[run_id] = _Gathering(since=now)
        found: dict[str, float | None] = {
            "loss": gathered.loss / gathered.n_tokens if gathered.n_tokens else None,
            "gradient_norm": result.metrics.get(GRADIENT),
            "update_norm": result.metrics.get(UPDATE),
            "learning_rate": self.rates.pop(end.request_id, None),
            "trained_tokens": float(gathered.n_tokens) if gathered.n_tokens else None,
        }
        if gathered.since is not None and now > gathered.since:
            found["seconds"] = now - gathered.since
            found["tokens_per_second"] = gathered.n_tokens / (now - gathered.since)
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    async def flush(self) -> None:
        """Writes what is pending. Where the store does not take it, it is lost: a picture has a gap, and nothing else
        depends on it."""
        self.behind.call_off()
        measured, self.pending = self.pending, defaultdict(list)
        if not measured:
            return
        try:
            await self.store.write(series.add_all, measured)
        except LoreloopError as error:
            LOG.warning("what %d runs have measured is not kept: %s", len(measured), error.message)
