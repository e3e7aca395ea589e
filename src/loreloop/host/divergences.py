"""How far each run's trainer is from whoever samples for it, as passes tell, and an alarm where that is too far.

The last value of the runs that were trained last is kept, in memory. Says of a run when it goes over the bound, and not
again before it was below.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from loreloop.protocol.link import BatchDone
from loreloop.protocol.paths import owner_of

MOST_RUNS = 64
LOG = logging.getLogger(__name__)


@dataclass
class Divergences:
    """One per HTTP process. `alarm_nats` 0: there is no alarm. `last` are nats by run, `models` their base models."""

    alarm_nats: float
    last: dict[str, float] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    n_alarms: Counter[str] = field(default_factory=Counter)  # by base model

    def batch_ended(self, base_model: str, done: BatchDone) -> None:
        """Takes what the passes of a batch tell; those of a replay told it before."""
        for end in () if done.replayed else done.ends:
            if end.sampler_kl is not None:
                self._note(base_model, owner_of(end.request_id), end.sampler_kl)

    def _note(self, base_model: str, run: str, nats: float) -> None:
        before = self.last.pop(run, 0.0)
        self.last[run], self.models[run] = nats, base_model
        while len(self.last) > MOST_RUNS:
            oldest = next(iter(self.last))  # dictionaries keep the order in which runs came in last
            del self.last[oldest], self.models[oldest]
        # A value that is no number is too far away as well.
        if self.alarm_nats and not nats <= self.alarm_nats:
            self.n_alarms[base_model] += 1
            if before <= self.alarm_nats:
                LOG.warning(
                    "%s has moved away from its sampler: %.3g nats, more than engine.sampler_kl_alarm_nats (%g)",
                    run,
                    nats,
                    self.alarm_nats,
                )
