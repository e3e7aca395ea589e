"""How often somebody may come: a bucket for each name, which fills with time up to its brim.

Times are passed in, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from loreloop.protocol.errors import Unavailable

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

    def take(self, name: str, rate: Rate, now: float) -> None:
        """Takes one; Unavailable, with the seconds until there is one, where the bucket is empty."""
        bucket = self.buckets.pop(name, None) or _Bucket(rate.burst, now)
        bucket.left = min(rate.burst, bucket.left + (now - bucket.filled_at) * rate.per_second)
        bucket.filled_at = now
        self.buckets[name] = bucket
        if len(self.buckets) > MOST_BUCKETS:
            self.buckets.popitem(last=False)
        if bucket.left < 1:
            wait = (1 - bucket.left) / rate.per_second
            raise Unavailable(
                f"Feedback comes too fast: {rate.burst:g} at once are taken, and then {rate.per_second:g} in a second. "
                "Nothing was kept of this; send it again later.",
                wait,
            )
        bucket.left -= 1
