"""How long answers are: a log-normal law, fitted to quantiles or of a given mean, or lengths that were seen.

Few answers that are much longer than the rest hold up whoever waits for all of them, so a mean alone says too little.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loreloop.protocol.errors import WrongSettings

SPREAD = 0.5  # of the logarithm where nothing is known: one answer in twenty is then twice as long as the mean


@dataclass(frozen=True)
class LogNormal:
    """Lengths whose logarithm has this mean and this standard deviation."""

    centre: float
    spread: float

    @property
    def mean(self) -> float:
        """Of the lengths themselves."""
        return math.exp(self.centre + self.spread**2 / 2)

    def quantile(self, share: float) -> float:
        """The length that this share of answers stays below."""
        return math.exp(self.centre + self.spread * statistics.NormalDist().inv_cdf(share))


def of_mean(mean: float, spread: float = SPREAD) -> LogNormal:
    """The law of a mean, in tokens."""
    return LogNormal(math.log(mean) - spread**2 / 2, spread)


def of_quantiles(quantiles: Mapping[float, float]) -> LogNormal:
    """The law that comes nearest to quantiles, lengths in tokens by the share of answers below: least squares of the
    logarithms. WrongSettings for fewer than two, and for quantiles that do not grow."""
    shares = sorted(quantiles)
    if len(shares) < 2:
        raise WrongSettings("--quantiles wants two quantiles at least, such as 0.5=900,0.95=3200.")
    places = [statistics.NormalDist().inv_cdf(share) for share in shares]
    line = statistics.linear_regression(places, [math.log(quantiles[share]) for share in shares])
    if line.slope < 0:
        raise WrongSettings("--quantiles must grow: a larger share of answers lies below a larger length.")
    return LogNormal(line.intercept, line.slope)


def drawn(law: LogNormal, n: int, seed: int, most: int) -> list[int]:
    """So many lengths, cut where answers are cut: at `most` tokens. The same seed gives the same ones."""
    rng = random.Random(seed)
    return [min(most, max(1, round(rng.lognormvariate(law.centre, law.spread)))) for _ in range(n)]


def drawn_again(seen: Sequence[int], n: int, seed: int) -> list[int]:
    """So many of the lengths that were seen, each as likely as any other."""
    return random.Random(seed).choices(seen, k=n)


def parse_quantiles(text: str) -> dict[float, float]:
    """`0.5=900,0.95=3200` as lengths by shares. WrongSettings for what is none."""
    found: dict[float, float] = {}
    for pair in text.split(","):
        share, _, length = pair.partition("=")
        try:
            at, tokens = float(share), float(length)
        except ValueError:
            at, tokens = math.nan, math.nan
        if not (0 < at < 1 and 1 <= tokens < math.inf):
            raise WrongSettings(f"--quantiles: {pair.strip()[:40]!r} is no quantile; it is written like 0.95=3200.")
        found[at] = tokens
    return found


def parse_lengths(text: str) -> list[int]:
    """Lengths in tokens, one a line or with spaces between. WrongSettings for what is none, with its line, and for a
    text without any."""
    found: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.split():
            if not (word.isascii() and word.isdecimal() and int(word[:9]) > 0 and len(word) < 9):
                raise WrongSettings(f"--lengths: {word[:40]!r} on line {number} is no number of tokens above 0.")
            found.append(int(word))
    if not found:
        raise WrongSettings("--lengths: the file holds no lengths; write one a line.")
    return found
