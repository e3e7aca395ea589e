"""The last steps that the policy learners share: penalty, correction, mean, datum, in this order.

Pure functions; knows no client.
"""

from __future__ import annotations

from collections.abc import Sequence

import tinker

from loreloop.learn.corrections import Correction
from loreloop.learn.learners.kl import KlPenalty
from loreloop.learn.learners.policy import Need, Normalisation, Weighted, datums_of, normalised


def shaped(
    rows: Sequence[Weighted], correction: Correction, kl: KlPenalty, normalisation: Normalisation
) -> list[tinker.Datum]:
    """The datums of rows that hold plain advantages."""
    # The penalty is a part of what a token is worth, so the correction weighs it too, and the mean divides it.
    weighed = [corrected(kl.taken_off(row), correction) for row in rows]
    return datums_of(normalised(weighed, normalisation))


def needs_of(correction: Correction, kl: KlPenalty) -> frozenset[Need]:
    """What a correction and a penalty must know of each trace."""
    needs: set[Need] = set()
    if correction.rule != "none":
        needs.add("trainer")
    if kl.strength:
        needs.add("reference")
    return frozenset(needs)


def corrected(row: Weighted, correction: Correction) -> Weighted:
    """The row with each advantage times the weight of its token."""
    if correction.rule == "none":
        return row
    # The penalty's reference is of no matter here: a correction is between sampler and trainer alone.
    trace = row.scored.trace
    weights = correction.weights(row.scored.known("trainer"), trace.logprobs, trace.learned)
    return Weighted(row.scored, row.advantages * weights)
