"""How evenly a pass's tokens fell on the experts, told as metrics in the names that Tinker clients know.

A layer's violation is how far its fullest (emptiest) expert lies above (below) the mean, in units of the mean; `mean`
and `max` are over layers.

Legend: L layers that route, T tokens, K experts a token, N experts chosen by all tokens (T × K), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ExpertLoad:
    """Counts of tokens by layer and expert."""

    def __init__(self, n_experts: int) -> None:
        self.n_experts = n_experts
        self.count_LE: Tensor | None = None
        self.replayed: Tensor | None = None  # sums of `Routes.counts_L3T`

    def add(self, ids_LTK: Tensor, counts_L3T: Tensor | None) -> None:
        """Takes in where some rows went, and how that compares with recorded routes."""
        if counts_L3T is not None:
            counts = counts_L3T.sum((0, 2)).cpu()
            self.replayed = counts if self.replayed is None else self.replayed + counts
        # Each layer counts in a range of its own, so that one `bincount` counts all of them.
        ids_LN = ids_LTK.flatten(1).long().cpu()
        offset_L1 = torch.arange(len(ids_LN))[:, None] * self.n_experts
        count = torch.bincount((ids_LN + offset_L1).flatten(), minlength=len(ids_LN) * self.n_experts)
        count_LE = count.view(-1, self.n_experts)
        self.count_LE = count_LE if self.count_LE is None else self.count_LE + count_LE

    def told(self) -> tuple[int, bytes, tuple[int, ...]]:
        """Experts, counts by layer and sums of replay, as `of` takes them."""
        count = b"" if self.count_LE is None else self.count_LE.numpy().tobytes()
        return self.n_experts, count, () if self.replayed is None else tuple(self.replayed.tolist())

    @classmethod
    def of(cls, parts: Sequence[tuple[int, bytes, tuple[int, ...]]]) -> ExpertLoad:
        """The load of some runs of layers one behind the other, each as `told` by whoever has it."""
        whole = cls(parts[0][0])
        counts = [torch.from_numpy(np.frombuffer(count, np.int64).copy()) for _, count, _ in parts]
        whole.count_LE = torch.cat(counts).view(-1, whole.n_experts)
        if replayed := [torch.tensor(sums) for _, _, sums in parts if sums]:
            whole.replayed = torch.stack(replayed).sum(0)
        return whole

    def metrics(self) -> dict[str, float]:
        """The metrics of all rows so far by name, and those of replay where routes were recorded; empty before any
        row."""
        if self.count_LE is None:
            return {}
        # In doubles, since counts of a long pass are beyond the whole numbers of fp32.
        share_LE = self.count_LE / self.count_LE.double().mean(-1, keepdim=True)
        most_L, least_L = share_LE.amax(-1) - 1, 1 - share_LE.amin(-1)
        return {
            "e_frac_with_tokens:mean": float((self.count_LE > 0).double().mean()),
            "e_frac_oversubscribed:mean": float((share_LE > 1).double().mean()),
            "e_max_violation:mean": float(most_L.mean()),
            "e_max_violation:max": float(most_L.max()),
            "e_min_violation:mean": float(least_L.mean()),
            **self._replay_metrics(),
        }

    def _replay_metrics(self) -> dict[str, float]:
        if self.replayed is None:
            return {}
        recorded, out, moved = self.replayed.tolist()
        return {"e_recorded:sum": recorded, "e_out_of_route:sum": out, "e_router_moved:sum": moved}
