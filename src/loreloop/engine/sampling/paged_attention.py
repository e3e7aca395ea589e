"""The KV cache's tensors, and attention over them: new keys and values go into pages, queries read them back.

Plain: the pages of all decoding rows are gathered in one indexing operation.

Legend: L layers (of a latent: its width), S slots (pages × tokens a page), T tokens of a step, B decoding rows, K
keys, G key/value heads, H query heads, E head width, V width of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loreloop.engine.attention import KEY_BLOCK, Attention, Reach, kernel_rules
from loreloop.kernels import attention as attention_kernels
from loreloop.kernels import cpu
from loreloop.model.attention_rules import PLAIN, AttentionRules
from loreloop.model.decoder import LatentHeads
from loreloop.model.lora import NO_ADAPTERS, Adapters
from loreloop.model.rope import Rope
from loreloop.model.spec import DecoderSpec


class KvCache:
    """Keys and values (or latents) of every page, in the compute dtype. Untouched ones cost little memory."""

    def __init__(
        self, spec: DecoderSpec, n_pages: int, page_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        kept, self.first_layer = spec.cache, spec.layers.start
        shape = (len(spec.layers), n_pages * page_tokens, kept.n_kinds, kept.n_heads, kept.d_head)
        # Not zeroed: an operating system gives memory for a page only when it is first written.
        self.kv_LS2GE = torch.empty(shape, dtype=dtype, device=device)  # a slot's keys and values side by side
        self.page_tokens = page_tokens
        moe = spec.moe  # where a slot's token was routed stays beside its keys: a known prefix has its routes as well
        routes = (n_pages * page_tokens, len(spec.routed_layers), moe.top_k) if moe else (0, 0, 0)
        self.routes_SLK = torch.empty(routes, dtype=torch.int16, device=device)

    def layer(self, layer: int) -> Tensor:
        """What one of the layers here keeps, (S, 2, G, E)."""
        return self.kv_LS2GE[layer - self.first_layer]

    def copy(self, source_page: int, target_page: int, n_tokens: int) -> None:
        """Copies the first tokens of one page into another."""
        source, target = source_page * self.page_tokens, target_page * self.page_tokens
        self.kv_LS2GE[:, target : target + n_tokens] = self.kv_LS2GE[:, source : source + n_tokens]
        self.routes_SLK[target : target + n_tokens] = self.routes_SLK[source : source + n_tokens]


def page_bytes(spec: DecoderSpec, page_tokens: int, dtype: torch.dtype) -> int:
    """The memory of one page with its tokens' keys, values and routes, by which the number of pages is chosen."""
    n_routes = len(spec.routed_layers) * spec.moe.top_k if spec.moe else 0
    return page_tokens * (len(spec.layers) * spec.cache.size * dtype.itemsize + n_routes * torch.int16.itemsize)


@dataclass(frozen=True)
class StepRow:
    """One sample's share of a step: tokens start…stop, and the slots of all its positions up to the last of them."""

    start: int
    stop: int
    slots_K: Tensor


class PagedAttention:
    """An `Attend` for the decoder, for one sampling step.

    With `kernels`, what goes into the cache goes by one; with `in_place`, newest tokens read the cache by one. Latents
    are attended as they are, or, `exact` as in training, expanded for the call.
    """

    def __init__(
        self,
        attention: Attention,
        cache: KvCache,
        rows: Sequence[StepRow],
        *,
        kernels: bool,
        in_place: bool,
        exact: bool = False,
    ) -> None:
        self.exact = exact
        self.attention, self.cache, self.kernels, self.in_place = attention, cache, kernels, in_place
        # Keys are taken in blocks that are counted from a sequence's first, by the kernels too.
        self._counts_from_the_first = exact or in_place
        # The last slots of each row are those of the tokens that this step computes.
        self.new_slots_T = torch.cat([row.slots_K[-(row.stop - row.start) :] for row in rows])
        # Chunks of prompts have a causal mask and are computed one by one; single tokens share one call.
        self.chunks = [row for row in rows if row.stop - row.start > 1]
        self.newest_rows = [row for row in rows if row.stop - row.start == 1]
        self._newest_by_window: dict[int | None, _Newest] = {}
        self.newest = self._newest_in(None) if self.newest_rows else None

    def __call__(
        self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rope: Rope, rules: AttentionRules = PLAIN
    ) -> Tensor:
        cache_S2GE = self.cache.layer(layer)
        # Stored before anything is read: a token sees itself, and a chunk's tokens see each other, through the cache.
        q_THE = self._store(q_THE, k_TGE, v_TGE, rope, cache_S2GE)
        newest, in_place = self._newest_of(rules), self.in_place
        if newest and not self.chunks and not in_place:  # nothing to pick apart
            return self._batched(q_THE, cache_S2GE, newest, rules)
        # Every row is either a chunk's or a newest token's, so all of it is written below.
        o_THE = torch.empty_like(q_THE)
        for row in self.chunks:
            n_queries = row.stop - row.start
            k_KGE, v_KGE = cache_S2GE.index_select(0, self._seen(row, n_queries, rules)).unbind(1)
            o_THE[row.start : row.stop] = self.attention.causal(q_THE[row.start : row.stop], k_KGE, v_KGE, rules)
        if newest and in_place:
            attention_kernels.attend_newest(q_THE, cache_S2GE, newest.keys, o_THE, kernel_rules(rules))
        elif newest:
            rows_B = newest.keys.rows_B
            o_THE.index_copy_(0, rows_B, self._batched(q_THE.index_select(0, rows_B), cache_S2GE, newest, rules))
        return o_THE

    def _seen(self, row: StepRow, n_queries: int, rules: AttentionRules) -> Tensor:
        """The slots of the keys that the last queries of a row can see: all, where a window lets in fewer but every sum
        must be made in the same order."""
        if rules.window is None or self._counts_from_the_first:
            return row.slots_K
        return row.slots_K[-(rules.window + n_queries - 1) :]

    def _newest_of(self, rules: AttentionRules) -> _Newest | None:
        return self._newest_in(None if self._counts_from_the_first else rules.window) if self.newest_rows else None

    def _newest_in(self, window: int | None) -> _Newest:
        """Newest tokens with the keys of their windows; made once a step for each width."""
        if window in self._newest_by_window:
            return self._newest_by_window[window]
        rules = AttentionRules(window)
        slots = [self._seen(row, 1, rules) for row in self.newest_rows]
        device = self.new_slots_T.device
        keys = attention_kernels.NewestKeys(
            torch.tensor([row.start for row in self.newest_rows], device=device),
            torch.tensor([len(slots_K) for slots_K in slots], device=device),
            _padded_slots(slots),
        )
        newest = _Newest(keys, Reach(keys.n_keys_B - 1, 1, keys.slots_BK.shape[1]))
        self._newest_by_window[window] = newest
        return newest

    def latent(self, layer: int, q_THE: Tensor, latent_TL: Tensor, heads: LatentHeads, lora: Adapters) -> Tensor:
        """The same over latents, kept once for all heads. Gives (T, H, V)."""
        cache_SL = self.cache.layer(layer).flatten(1)
        cache_SL.index_copy_(0, self.new_slots_T, latent_TL)
        q_THE = heads.scaled(q_THE) if self.exact else heads.absorb(q_THE)

        def read(slots_K: Tensor) -> tuple[Tensor, Tensor]:
            latent_KL = cache_SL.index_select(0, slots_K)
            if self.exact:
                return heads.expand(latent_KL, NO_ADAPTERS, layer)
            return latent_KL[:, None], latent_KL[:, None]

        # Outputs gather by kind of row and are put in the rows' order at the end, since values may be narrower than
        # queries.
        outputs = [self.attention.causal(q_THE[row.start : row.stop], *read(row.slots_K)) for row in self.chunks]
        rows = [torch.arange(row.start, row.stop, device=q_THE.device) for row in self.chunks]
        if self.newest:
            keys = self.newest.keys
            k_BKGE, v_BKGE = (x.unflatten(0, keys.slots_BK.shape) for x in read(keys.slots_BK.flatten()))
            q_BHE = q_THE.index_select(0, keys.rows_B)
            outputs.append(self.attention.batched(q_BHE[:, None], k_BKGE, v_BKGE, self.newest.reach)[:, 0])
            rows.append(keys.rows_B)
        o_THV = torch.cat(outputs)
        o_THV = torch.empty_like(o_THV).index_copy_(0, torch.cat(rows), o_THV)
        return o_THV if self.exact else heads.values(o_THV)

    def _store(self, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rope: Rope, cache_S2GE: Tensor) -> Tensor:
        """Turned queries; keys, turned too, and values go into the cache."""
        # The kernel turns whole heads.
        if self.kernels and rope.width == q_THE.shape[-1]:
            angles = cpu.Angles(rope.cos_T1E, rope.sin_T1E)
            return cpu.turn_and_store(q_THE, k_TGE, v_TGE, angles, self.new_slots_T, cache_S2GE)
        new_T2GE = torch.stack((rope.rotate(k_TGE), v_TGE), 1)
        cache_S2GE.index_copy_(0, self.new_slots_T, new_T2GE)
        # Layers that turn nothing give back their part of a fused product, whose rows lie apart; the kernel takes no
        # strides.
        return rope.rotate(q_THE).contiguous()

    def _batched(self, q_BHE: Tensor, cache_S2GE: Tensor, newest: _Newest, rules: AttentionRules) -> Tensor:
        """Each decoding row's one query over its keys, (B, H, E)."""
        slots_BK = newest.keys.slots_BK
        # Keys and values lie side by side in a slot, so that one gather brings both.
        kv_BK2GE = cache_S2GE.index_select(0, slots_BK.flatten()).unflatten(0, slots_BK.shape)
        # Where only the window's keys were gathered, it hides none of them.
        rules = rules if self._counts_from_the_first else rules.without_window()
        k_BKGE, v_BKGE = kv_BK2GE[:, :, 0], kv_BK2GE[:, :, 1]
        return self.attention.batched(q_BHE[:, None], k_BKGE, v_BKGE, newest.reach, rules)[:, 0]


@dataclass(frozen=True)
class _Newest:
    """The rows of newest tokens, their keys, and the mask over those, which all layers of one window share."""

    keys: attention_kernels.NewestKeys
    reach: Reach


def newest_in_place(spec: DecoderSpec, cache: KvCache) -> bool:
    """Whether newest tokens may read the cache by the kernel."""
    # The kernel reads keys and values apart, and a latent is both.
    return not spec.latent and attention_kernels.supports(cache.kv_LS2GE, spec.d_head)


def _padded_slots(slots: Sequence[Tensor]) -> Tensor:
    """(B, K), K a multiple of the key block. Padding repeats a row's first slot, whose numbers are finite."""
    longest = max(map(len, slots))
    width = longest + -longest % KEY_BLOCK
    return torch.stack([torch.cat((row, row[:1].expand(width - len(row)))) for row in slots])
