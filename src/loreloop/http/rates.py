"""How often somebody may come: a bucket for each name, which fills with time up to its brim.

Times are passed in, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

MOST_BUCKETS = 10_000


class Rate(msgspec.Struct, frozen=True):
    """So many at once, and so many in a second after that."""

    per_second: float
    burst: float


class _Bucket(msgspec.Struct):
    left: float
    filled_at: float


class Rates:
    """Buckets by name, of which those that were used last are kept: one that is thrown away was full, or soon will be,
    unless ten thousand others came meanwhile."""

    def __init__(self) -> None:
        self.buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str, rate: Rate, now: float) -> float:
        """Takes one, and gives 0; where the bucket is empty takes none, and gives the seconds until there is one."""
        bucket = self._filled(name, rate, now)
        self.buckets[name] = bucket
        self.buckets.move_to_end(name)
        if len(self.buckets) > MOST_BUCKETS:
            self.buckets.popitem(last=False)
        if bucket.left < 1:
            return (1 - bucket.left) / rate.per_second
        bucket.left -= 1
        return 0.0

    def wait(self, name: str, rate: Rate, now: float) -> float:
        """The seconds until there is one to take; 0 where there is. Takes none."""
        return max(0.0, (1 - self._filled(name, rate, now).left) / rate.per_second)

    def _filled(self, name: str, rate: Rate, now: float) -> _Bucket:
        bucket = self.buckets.get(name) or _Bucket(rate.burst, now)
        bucket.left = min(rate.burst, bucket.left + (now - bucket.filled_at) * rate.per_second)
        bucket.filled_at = now
        return bucket
