"""Who hears of what happens beside the clients that asked: series of measures, the list of happenings, alarms."""

from __future__ import annotations

from dataclasses import dataclass

from loreloop.config import Config
from loreloop.host.divergences import Divergences
from loreloop.host.happenings import Happenings
from loreloop.host.run_series import RunSeries
from loreloop.protocol.link import BatchDone
from loreloop.store.store import Store


@dataclass(frozen=True)
class Observers:
    """One per HTTP process."""

    series: RunSeries
    happenings: Happenings
    divergences: Divergences

    @staticmethod
    def of(store: Store, config: Config) -> Observers:
        """With nothing heard yet."""
        return Observers(RunSeries(store), Happenings(), Divergences(config.engine.sampler_kl_alarm_nats))

    def batch_ended(self, base_model: str, done: BatchDone, now: float) -> None:
        """All of them hear of a batch; `now` in seconds since 1970."""
        self.series.batch_ended(done, now)
        self.happenings.batch_ended(done)
        self.divergences.batch_ended(base_model, done)
