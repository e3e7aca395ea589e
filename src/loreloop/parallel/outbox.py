"""Messages that leave in the background. Whoever sends goes on at once, and the message is kept until it has left."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from torch import Tensor
from torch import distributed as dist

MOST_KEPT = 64  # messages that have perhaps not left yet; whoever is further ahead of the others waits


@dataclass(frozen=True)
class Outbox:
    """What is being sent, the oldest first."""

    kept: deque[tuple[dist.Work, Tensor]] = field(default_factory=deque)

    def send(self, numbers: Tensor, to: int, group: dist.ProcessGroup, lane: int) -> None:
        """To a rank of the group, which takes it from the same lane. The numbers must not be changed afterwards."""
        work = dist.isend(numbers, group=group, group_dst=to, tag=lane)
        assert work is not None
        self.kept.append((work, numbers))
        self.wait(MOST_KEPT)

    def wait(self, n_left: int = 0) -> None:
        """Until no more than some are still on their way. What is forgotten before is lost."""
        while len(self.kept) > n_left:
            self.kept.popleft()[0].wait()
