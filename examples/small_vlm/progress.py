"""One line now and then that says how far a stage is and how long it still takes."""

from __future__ import annotations

import time


class Progress:
    def __init__(self, stage: str, steps: int, seconds_between: float = 15) -> None:
        self.stage, self.steps, self.seconds_between = stage, steps, seconds_between
        self.started = self.told = time.monotonic()

    def step(self, done: int, figures: str = "") -> None:
        """`done` of the steps are over."""
        now = time.monotonic()
        if done == self.steps or now - self.told >= self.seconds_between:
            self.told = now
            left = (now - self.started) / done * (self.steps - done)
            print(f"{self.stage:<9} {done:>5}/{self.steps}  {left / 60:5.1f} min left  {figures}", flush=True)
