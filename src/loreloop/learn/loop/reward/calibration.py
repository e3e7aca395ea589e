"""How much to believe a reward: from a difference of rewards to the chance of what people say, and how right that is.

    p = noise + (1 − 2·noise) · σ(slope · z)

where `noise` is the share of statements that are said the wrong way round (flipped labels, Natarajan et al. 2013);
without it, a slope alone (temperature scaling, Guo et al. 2017, arXiv 1706.04599) has to be too flat in the middle for
its ends not to be too sure. Both are fitted to events that were scored before they were learned from: progressive
validation (Blum, Kalai & Langford 1999), which holds events out without losing any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 40  # outcomes before a fit; until then rewards are log-odds as they are
NOISES = np.linspace(0.0, 0.35, 15)
SLOPES = np.geomspace(0.05, 20.0, 61)  # over the spread of the scores
EXPECTED_NOISE, ITS_SPREAD = 0.1, 0.1  # of labels from people; a few dozen outcomes alone say little of it
FARTHEST = 30.0


@dataclass(frozen=True)
class Outcome:
    """A score, the difference of two for a pair, from before its event was learned from; and what was then said, from
    0 to 1."""

    score: float
    said: float


@dataclass(frozen=True)
class Link:
    """From scores to chances."""

    slope: float = 1.0
    noise: float = 0.0

    def __call__(self, score: float) -> float:
        """The chance that somebody says so."""
        return float(self.of(np.array([score]))[0])

    def of(self, scores: Floats) -> Floats:
        """The same for many."""
        clear = 1 / (1 + np.exp(-np.clip(self.slope * scores, -FARTHEST, FARTHEST)))
        return self.noise + (1 - 2 * self.noise) * clear


def fitted_link(outcomes: Sequence[Outcome]) -> Link:
    """The link of greatest posterior over a grid; that of log-odds where there are few outcomes."""
    if len(outcomes) < FEWEST:
        return Link()
    scores, said = np.array([one.score for one in outcomes]), np.array([one.said for one in outcomes])
    slopes = SLOPES / (float(np.sqrt((scores**2).mean())) or 1.0)
    # A grid and no descent: the likelihood has two hills where slope and noise can stand for one another.
    clear = 1 / (1 + np.exp(-np.clip(slopes[:, None] * scores, -FARTHEST, FARTHEST)))
    best, found = -np.inf, Link()
    for noise in NOISES:
        chances = np.clip(noise + (1 - 2 * noise) * clear, 1e-9, 1 - 1e-9)
        likelihoods = np.log(chances) @ said + np.log1p(-chances) @ (1 - said)
        likelihoods -= ((noise - EXPECTED_NOISE) / ITS_SPREAD) ** 2 / 2
        if likelihoods.max() > best:
            best, found = likelihoods.max(), Link(float(slopes[likelihoods.argmax()]), float(noise))
    return found


def slope_of(outcomes: Sequence[Outcome]) -> float:
    """The slope alone, of any sign, a little drawn towards 0: below 0, the scores run backwards."""
    scores, said = np.array([one.score for one in outcomes]), np.array([one.said for one in outcomes])
    slope = 0.0
    for _ in range(50):
        chances = 1 / (1 + np.exp(-np.clip(slope * scores, -FARTHEST, FARTHEST)))
        step = (scores @ (said - chances) - 0.5 * slope) / (scores**2 @ (chances * (1 - chances)) + 0.5)
        slope += float(np.clip(step, -1, 1))
    return slope


def log_loss(link: Link, outcomes: Sequence[Outcome]) -> float:
    """The mean of −log of the chance that was given to what was said, in nats; a coin has 0.693."""
    chances = np.clip(link.of(np.array([one.score for one in outcomes])), 1e-9, 1 - 1e-9)
    said = np.array([one.said for one in outcomes])
    return float(-(said * np.log(chances) + (1 - said) * np.log1p(-chances)).mean())


def accuracy(outcomes: Sequence[Outcome]) -> float:
    """The share of outcomes on whose side the score was; a score of 0 is half right."""
    signs = [np.sign(one.score) * np.sign(one.said - 0.5) for one in outcomes]
    return float((np.array(signs).mean() + 1) / 2)


def calibration_error(chances: Floats, said: Floats, n_bins: int = 10) -> float:
    """Expected calibration error: |mean chance − share of what was said|, over bins of equal width, weighted by how
    many are in each (Naeini et al. 2015)."""
    bins = np.minimum((chances * n_bins).astype(int), n_bins - 1)
    parts = [abs(chances[bins == one].sum() - said[bins == one].sum()) for one in range(n_bins)]
    return float(sum(parts) / len(chances))


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The chance that a positive one has a higher score than a negative one; equal scores count half."""
    order = np.argsort(scores, kind="stable")
    _, where, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = np.empty(len(scores))
    ranks[order] = (ends - (counts - 1) / 2)[where]
    n_positive = int(positive.sum())
    n_negative = len(scores) - n_positive
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
