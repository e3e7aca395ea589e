"""A training under guard: weights are looked at with each saved state, and an alarm ends it with the last good ones.

    RUN/good.json        the last good weights, and the alarm, so that no death lets the training go on

Knows neither what is looked at nor the learner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from loreloop.learn.clients import POLICY, Clients
from loreloop.learn.loop.state import read, written
from loreloop.learn.plan import Moment
from loreloop.protocol.errors import BadRequest

Look = Callable[[str], Awaitable[str]]  # of weights by their path: an alarm in a sentence, or ""


class StoppedByGuards(BadRequest):
    """An alarm has stopped a training before anything of it was good."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the looks have found: the last good weights, as they are sampled and as training goes on from them, ("" for
    none) and an alarm. `step` is behind which step they were last looked at."""

    step: int = 0
    path: str = ""
    state: str = ""
    alarm: str = ""


class TrainingWatch:
    """The watch over one run, whose folder it keeps its file in; `name` is the run's."""

    def __init__(self, folder: Path, name: str, look: Look) -> None:
        self.file, self.name, self.look = folder / "good.json", name, look
        self.seen = read(self.file, Seen) if self.file.exists() else Seen()

    def wish(self) -> Literal["go", "cancel"]:
        """What the run shall do next."""
        return "cancel" if self.seen.alarm else "go"

    async def see(self, clients: Clients, at: Moment) -> None:
        """Looks at the weights as they are behind a step. Good ones are kept until others are."""
        before, step = self.seen, at.step + 1
        if step <= before.step:
            return
        path = await clients.publish(f"{self.name}-seen-{step:06d}")
        if alarm := await self.look(path):
            sentence = f"The guards stopped the training at step {step} of {at.n_steps}: {alarm}."
            self._keep(msgspec.structs.replace(before, step=step, alarm=sentence))
            await clients.forget({"path": path})
            return
        states = await clients.save(f"{self.name}-good-{step:06d}")
        self._keep(Seen(step=step, path=path, state=states[POLICY]))
        # Only now nothing needs what was good before.
        others = {name: state for name, state in states.items() if name != POLICY}
        await clients.forget(others | {name: one for name in ("path", "state") if (one := getattr(before, name))})

    def _keep(self, seen: Seen) -> None:
        self.seen = seen
        written(self.file, msgspec.json.encode(seen))
