"""Hindsight self-distillation: the policy, shown what came after its answer, teaches the policy that was not.

    A_t = log π(y_t | x, o, y_<t) − log π(y_t | x, y_<t)        o: the next message, a critique, an error, an edit

Both log-probabilities are those of the same weights, so no teacher and no reward is needed: a token that looks better
once the outcome is known is made likelier, and one that looks worse less likely. Sources: SDPO, 2026
(arXiv 2601.20802; also 2603.12273).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import tinker

from loreloop.learn.learners.policy import LossName, Need, Normalisation, ScoredGroup, Weighted, datums_of, normalised
from loreloop.text.conversation import Conversation, Picture, Turn

SHOWN = "{task}\n\n(What came after an earlier answer to this: {outcome})"


@dataclass(frozen=True)
class Hindsight:
    """No advantage goes beyond ±`most` nats. `least` leaves out tokens of which both say nearly the same, as there is
    nothing to be learned about them but noise."""

    most: float = 5.0
    least: float = 0.0
    normalisation: Normalisation = "tokens"

    loss: ClassVar[LossName] = "importance_sampling"

    @property
    def config(self) -> Mapping[str, float]:
        """This loss has no settings."""
        return {}

    @property
    def needs(self) -> frozenset[Need]:
        """The same weights' log-probabilities twice: as they learn, and shown what came after."""
        return frozenset({"trainer", "hindsight"})

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        """One datum for each answer about which something was shown."""
        rows = []
        for scored in (one for group in groups for one in group):
            nats = np.clip(scored.known("hindsight") - scored.known("trainer"), -self.most, self.most)
            # Where both agree within `least`, the sign of what is left is chance.
            rows.append(Weighted(scored, np.where(scored.trace.learned & (np.abs(nats) >= self.least), nats, 0.0)))
        return datums_of(normalised(rows, self.normalisation))


def told(conversation: Conversation, outcome: str) -> Conversation:
    """The conversation with what came after it told in its last user turn, from which the answer is then judged."""
    turns = list(conversation.turns)
    # The last one: it is the question that the answer answers, and earlier turns are its history.
    place = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=None)
    if place is None:
        turns.append(Turn("user", SHOWN.format(task="", outcome=outcome).strip()))
    else:
        content = SHOWN.format(task=turns[place].content, outcome=outcome)
        turns[place] = replace(turns[place], content=content, parts=_parts(turns[place], outcome))
    return replace(conversation, turns=tuple(turns))


def _parts(turn: Turn, outcome: str) -> tuple[str | Picture, ...]:
    # A turn with pictures has its words in parts, and its content is only what is searched.
    return (*turn.parts, SHOWN.format(task="", outcome=outcome)) if turn.parts else ()
