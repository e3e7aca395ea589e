"""Which waiting sample is admitted next. Pure.

The owner with the fewest samples running comes first, among equals the one served longest ago; each owner's own
requests stay in order. So nobody starves, and a lone owner gets the whole machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from loreloop.protocol.sampling import SampleOp


@dataclass
class _Owner:
    queue: deque[SampleOp] = field(default_factory=deque)
    n_running: int = 0
    served: int = 0


class FairQueue:
    """Requests from `add` over `admit` to `end`."""

    def __init__(self) -> None:
        self.owners: dict[str, _Owner] = {}
        self.admitted: dict[str, SampleOp] = {}
        self.known: dict[str, SampleOp] = {}
        self.clock = 0

    @property
    def waiting(self) -> int:
        """How many requests have not been admitted yet."""
        return len(self.known) - len(self.admitted)

    @property
    def running(self) -> int:
        """How many requests are admitted and have not ended."""
        return len(self.admitted)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.known

    def add(self, op: SampleOp) -> None:
        """Takes a request in, behind all others of its owner."""
        self.known[op.request_id] = op
        # A newcomer stands behind those who wait already, so that leaving and coming back gains nothing.
        self.owners.setdefault(op.owner, _Owner(served=self.clock)).queue.append(op)

    def front(self) -> SampleOp | None:
        """The request whose turn it is, or None."""
        waiting = [owner for owner in self.owners.values() if owner.queue]
        if not waiting:
            return None
        return min(waiting, key=lambda owner: (owner.n_running, owner.served)).queue[0]

    def admit(self, op: SampleOp) -> None:
        """The front one runs from now on."""
        owner = self.owners[op.owner]
        assert owner.queue[0] is op, op.request_id
        owner.queue.popleft()
        owner.n_running += op.num_samples
        self.clock += 1
        owner.served = self.clock
        self.admitted[op.request_id] = op

    def end(self, request_id: str) -> None:
        """A request is over, whether it ran or still waited."""
        op = self.known.pop(request_id)
        owner = self.owners[op.owner]
        if self.admitted.pop(request_id, None):
            owner.n_running -= op.num_samples
        else:
            owner.queue.remove(op)
        # Owners without requests are forgotten, or the table would grow with every key that ever came.
        if not owner.queue and not owner.n_running:
            del self.owners[op.owner]
