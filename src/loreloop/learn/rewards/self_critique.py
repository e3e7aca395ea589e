"""A judge that is kept honest: where an answer can be verified, its score is compared with the truth and its scale
fitted anew.

The judge may be the policy itself, asked by a rubric (the self-critique of Kimi K2, arXiv 2507.20534). Its raw scores
drift as it learns; what is given out is the chance that an answer with such a score is right, by the last `window`
verified answers.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from loreloop.learn.examples import Task
from loreloop.learn.rewards.calibration import Form, Scale, Seen, brier, fitted
from loreloop.learn.rewards.reward import Answer, Reward, Score

FEWEST = 20  # verified answers before the first fit; the scores themselves are given out until then


@dataclass(frozen=True)
class ScaleReport:
    """How the judge stands: verified answers in the window, and its mean squared distance from the truth as it scored
    and as the scale has it (Brier, 1950; both on the answers that the scale was fitted to). None: not fitted yet."""

    n_verified: int
    raw: float | None = None
    fitted: float | None = None


class SelfCritique:
    """A judge's reward on a fitted scale. `verifier` is asked too, for tasks that it can verify: its trouble means that
    it cannot, and its score, from 0 to 1, is the truth. Where it can, the truth itself is the reward."""

    def __init__(
        self, judge: Reward, verifier: Reward, *, form: Form = "logistic", window: int = 1000, refit_every: int = 50
    ) -> None:
        self.judge, self.verifier, self.form, self.refit_every = judge, verifier, form, refit_every
        self.seen: deque[Seen] = deque(maxlen=window)
        self.scale: Scale | None = None
        self.n_since = 0

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The truth where it can be told, else the judge's score on its scale; both are among the parts."""
        # The verifier comes first because its word decides, and the judge's is only compared with it.
        truth = await self.verifier(answer, task)
        judged = await self.judge(answer, task)
        if truth.trouble is None:
            # A truth outside of 0 to 1 would be no chance, and a scale fitted to it no scale.
            outcome = min(1.0, max(0.0, truth.value))
            if judged.trouble is None:
                self.observe(Seen(judged.value, outcome))
            return Score(outcome, {**truth.parts, "verified": outcome, "judge": judged.value})
        if judged.trouble is not None:
            return judged
        value = self.scale(judged.value) if self.scale else judged.value
        return replace(judged, value=value, parts={**judged.parts, "judge": judged.value})

    def observe(self, seen: Seen) -> None:
        """Takes in one verified answer, and fits the scale anew when enough have come."""
        # One score without a value would spoil the fit of a thousand.
        if not math.isfinite(seen.score):
            return
        self.seen.append(seen)
        self.n_since += 1
        if len(self.seen) >= FEWEST and (self.scale is None or self.n_since >= self.refit_every):
            self.scale, self.n_since = fitted(self.form, list(self.seen)), 0

    def report(self) -> ScaleReport:
        """How the judge stands now."""
        if self.scale is None:
            return ScaleReport(len(self.seen))
        seen = list(self.seen)
        return ScaleReport(len(seen), brier(lambda score: score, seen), brier(self.scale, seen))
