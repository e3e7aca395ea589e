"""The KV cache's tensors, and attention over them: new keys and values go into pages, queries read them back.

Plain: the pages of all decoding rows are gathered in one indexing operation.

Legend: L layers, S slots (pages × tokens a page), T tokens of a step, B decoding rows, K keys, G key/value heads,
H query heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loreloop.engine.attention import KEY_BLOCK, Attention, Reach
from loreloop.model.spec import DecoderSpec


class KvCache:
    """Keys and values of every page, in the compute dtype. Untouched ones cost little memory."""

    def __init__(
        self, spec: DecoderSpec, n_pages: int, page_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (spec.n_layers, n_pages * page_tokens, spec.n_kv_heads, spec.d_head)
        self.k_LSGE = torch.empty(shape, dtype=dtype, device=device)
        self.v_LSGE = torch.empty(shape, dtype=dtype, device=device)
        self.page_tokens = page_tokens

    def copy(self, source_page: int, target_page: int, n_tokens: int) -> None:
        """Copies the first tokens of one page into another."""
        source, target = source_page * self.page_tokens, target_page * self.page_tokens
        for cache in (self.k_LSGE, self.v_LSGE):
            cache[:, target : target + n_tokens] = cache[:, source : source + n_tokens]


def page_bytes(spec: DecoderSpec, page_tokens: int, dtype: torch.dtype) -> int:
    return 2 * spec.n_layers * page_tokens * spec.d_kv * dtype.itemsize


@dataclass(frozen=True)
class StepRow:
    """One sample's share of a step: tokens start…stop, and the slots of all its positions up to the last of them."""

    start: int
    stop: int
    slots_K: Tensor


class PagedAttention:
    """An `Attend` for the decoder, for one sampling step."""

    def __init__(self, attention: Attention, cache: KvCache, rows: Sequence[StepRow]) -> None:
        self.attention, self.cache = attention, cache
        self.new_slots_T = torch.cat([row.slots_K[-(row.stop - row.start) :] for row in rows])
        self.chunks = [row for row in rows if row.stop - row.start > 1]
        single = [row for row in rows if row.stop - row.start == 1]
        if single:
            self.single_rows_B = torch.tensor([row.start for row in single], device=self.new_slots_T.device)
            last_B = torch.tensor([len(row.slots_K) - 1 for row in single], device=self.new_slots_T.device)
            self.slots_BK = _padded_slots([row.slots_K for row in single])
            self.reach = Reach(last_B, 1, self.slots_BK.shape[1])
        self.has_single = bool(single)

    def __call__(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        k_SGE, v_SGE = self.cache.k_LSGE[layer], self.cache.v_LSGE[layer]
        k_SGE[self.new_slots_T] = k_TGE
        v_SGE[self.new_slots_T] = v_TGE
        if not self.chunks:  # every token is a row's newest: nothing to pick apart
            return self._newest(q_THE, k_SGE, v_SGE)
        o_THE = torch.empty_like(q_THE)
        for row in self.chunks:
            q = q_THE[row.start : row.stop]
            o_THE[row.start : row.stop] = self.attention.causal(
                q, k_SGE.index_select(0, row.slots_K), v_SGE.index_select(0, row.slots_K)
            )
        if self.has_single:
            o_THE[self.single_rows_B] = self._newest(q_THE[self.single_rows_B], k_SGE, v_SGE)
        return o_THE

    def _newest(self, q_BHE: Tensor, k_SGE: Tensor, v_SGE: Tensor) -> Tensor:
        """Each decoding row's one query over all its keys, (B, H, E)."""
        slots = self.slots_BK.flatten()
        k_BKGE, v_BKGE = (x.index_select(0, slots).unflatten(0, self.slots_BK.shape) for x in (k_SGE, v_SGE))
        return self.attention.batched(q_BHE[:, None], k_BKGE, v_BKGE, self.reach)[:, 0]


def _padded_slots(slots: Sequence[Tensor]) -> Tensor:
    """(B, K), K a multiple of the key block. Padding repeats a row's first slot, whose numbers are finite."""
    longest = max(map(len, slots))
    width = longest + -longest % KEY_BLOCK
    return torch.stack([torch.cat((row, row[:1].expand(width - len(row)))) for row in slots])
