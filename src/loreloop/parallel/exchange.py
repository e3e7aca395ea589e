"""What ranks that hold different experts say to one another about the rows of a batch.

Every rank has every row and knows where all of them are routed. So a row is not sent to its experts, and no counts are
exchanged: a rank computes what its experts make of the rows that chose them, and sends those results, and only those,
to the row's *home*. Homes are equal runs of rows in the order of ranks. A home adds up what it was sent in the order of
ranks, in fp32, and tells everyone. On the way back the same is done with the gradients of rows.

Legend: T rows (tokens), K experts a row, D model width, N ranks, H rows of a home, M rows that are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.parallel.collectives import SENT


@dataclass(frozen=True)
class Exchange:
    """The results of one batch's rows in one layer. `touched_TN` says for which rows which rank has any."""

    group: dist.ProcessGroup
    touched_TN: Tensor

    @property
    def n_rows(self) -> int:
        """All rows of the batch."""
        return len(self.touched_TN)

    @property
    def n_homed(self) -> int:
        """Rows whose home is one rank; the last homes may have fewer, or none."""
        return -(-self.n_rows // self.touched_TN.shape[1])

    @property
    def own(self) -> slice:
        """The rows whose home is this rank."""
        return self._homed(self.group.rank())

    def summed(self, part_TD: Tensor, own_part: Tensor | None = None) -> Tensor:
        """The sum of all ranks' parts, (T, D), the same bits on each. A part holds nothing for rows that its rank does
        not touch, unless they are its own; to these `own_part` is added besides."""
        rank, own = self.group.rank(), self.own
        # By source, and places among this home's rows, ascending. What is here already is not sent.
        sources = [self._rows(source, rank) - own.start for source in range(self.group.size())]
        sent_M = torch.cat([self._rows(rank, home) for home in range(self.group.size())])
        received = _sent_on(part_TD[sent_M], self._n_sent(rank), [len(rows) for rows in sources], self.group)
        sum_HD = torch.zeros(self.n_homed, part_TD.shape[1], device=part_TD.device)
        for source, (rows, y_MD) in enumerate(zip(sources, received, strict=True)):
            if source == rank:
                sum_HD[: own.stop - own.start] += part_TD[own].float()
            else:
                # A row comes once from a source, so this adds in one order.
                sum_HD[rows] += y_MD.float()
        # Rounded before the other part is added, as one process does it.
        sum_HD = sum_HD.to(part_TD.dtype)
        if own_part is not None:
            sum_HD[: len(own_part)] += own_part
        return _gathered(sum_HD, self.group)[: self.n_rows]

    def _homed(self, home: int) -> slice:
        return slice(min(home * self.n_homed, self.n_rows), min((home + 1) * self.n_homed, self.n_rows))

    def _rows(self, source: int, home: int) -> Tensor:
        """Which rows of a home another rank has results for, ascending; none for a home itself."""
        if source == home:
            return torch.arange(0, device=self.touched_TN.device)
        rows = self._homed(home)
        return rows.start + self.touched_TN[rows, source].nonzero().flatten()

    def _n_sent(self, source: int) -> list[int]:
        return [len(self._rows(source, home)) for home in range(self.group.size())]


def exchange_of(ids_TK: Tensor, n_here: int, group: dist.ProcessGroup) -> Exchange:
    """The exchange of rows that are routed so, where each rank of the group has `n_here` experts."""
    touched_TN = torch.zeros(len(ids_TK), group.size(), dtype=torch.bool, device=ids_TK.device)
    return Exchange(group, touched_TN.scatter_(1, ids_TK // n_here, True))


def _sent_on(rows_MD: Tensor, n_sent: Sequence[int], n_received: Sequence[int], group: dist.ProcessGroup) -> Any:
    """What every rank has sent to this one, by rank. The first `n_sent[0]` rows go to rank 0, and so on."""
    received = rows_MD.new_empty(sum(n_received), rows_MD.shape[1])
    SENT["exchange"] += rows_MD.nbytes  # none of them stay here
    # As bytes, which every backend sends whatever they stand for.
    dist.all_to_all_single(_bytes(received), _bytes(rows_MD), list(n_received), list(n_sent), group=group)
    return received.split(list(n_received))


def _gathered(rows_HD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The rows of all ranks, in their order; each has as many."""
    whole = rows_HD.new_empty(group.size() * len(rows_HD), rows_HD.shape[1])
    SENT["exchange"] += rows_HD.nbytes * (group.size() - 1)
    # Into views of one tensor, which then is the whole.
    dist.all_gather(list(_bytes(whole).chunk(group.size())), _bytes(rows_HD), group=group)
    return whole


def _bytes(rows_MD: Tensor) -> Tensor:
    return rows_MD.view(torch.uint8)
