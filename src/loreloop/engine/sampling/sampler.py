"""Continuous batching: every step advances all running samples, prompts in chunks beside single tokens.

One idea carries it: a sample has tokens, and a count of those computed; a step moves some counts up to the end, and
whoever arrives there draws its next token. Prefill, decoding, resuming and coming back from preemption are that.

Legend: T tokens of a step, D model width, B rows that draw, V vocabulary, N positions to score, S slots of the cache,
L layers that route, K experts a token; slots_K: one for each key.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from loreloop.engine.attention import Attention
from loreloop.engine.contract import Constrain, Constraint, PromptEvent, SampleEvent, SampleFailed, TokenEvent
from loreloop.engine.head import Head
from loreloop.engine.images import Ids, ImageTable, text_only
from loreloop.engine.sampling.paged_attention import KvCache, PagedAttention, StepRow, newest_in_place
from loreloop.engine.sampling.pages import PagePool
from loreloop.engine.sampling.prefill_budget import PrefillBudget
from loreloop.engine.sampling.prefix_tree import PrefixTree
from loreloop.engine.sampling.sample_row import BASE, SampleRow, rows_of
from loreloop.engine.sampling.step_draws import Draws, StepShare, draw
from loreloop.kernels import cpu as kernels
from loreloop.model.decoder import Decoder
from loreloop.model.expert_routes import Routes
from loreloop.model.lora import Adapters, AdapterView, LoraBatch, LoraGroup
from loreloop.model.lora_stack import StackCache, StackedLora
from loreloop.parallel.stages import Lane, Stage
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.sampling import PromptReport, SampleOp

MOST_PROMPTS = 16  # of one step: each costs calls of its own in every layer, for which those that decode wait


def refuse(grammar: str) -> Constraint:
    """The `Constrain` of a server without grammars: BadRequest for every request that has one."""
    raise BadRequest("This model is served without grammars; its server's log says why.")


@dataclass(frozen=True)
class SamplerLimits:
    """What one sampler may use: pages of the cache, tokens a page, samples at once, and prompt tokens a step; with a
    `gap_seconds` that is not 0 fewer of these, where other rows would wait longer for their next token."""

    n_pages: int
    page_tokens: int
    max_running: int
    prefill_tokens: int
    gap_seconds: float = 0.0


@dataclass(frozen=True)
class _Step:
    """Rows that are computed together; `draws` where the head is and not on another stage."""

    shares: Sequence[StepShare]
    draws: Draws | None


class Sampler:
    """All samples of one engine. Rows run in the order in which they started; the youngest gives way first."""

    def __init__(
        self,
        decoder: Decoder,
        attention: Attention,
        head: Head,
        limits: SamplerLimits,
        constrain: Constrain = refuse,
        images: ImageTable | None = None,
        *,
        stage: Stage | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.decoder, self.attention, self.head, self.limits = decoder, attention, head, limits
        self.stage, self.clock = stage or Stage(), clock
        self.prefill = PrefillBudget(limits.prefill_tokens, limits.gap_seconds)
        self.under_way: deque[_Step] = deque()  # the oldest first
        self.constrain, self.images = constrain, images or text_only()
        self.pool = PagePool(limits.n_pages)
        self.tree = PrefixTree(self.pool, limits.page_tokens)
        self.cache = KvCache(decoder.spec, limits.n_pages, limits.page_tokens, decoder.dtype, decoder.device)
        self.waiting: deque[SampleRow] = deque()
        self.running: list[SampleRow] = []
        # One question to the products decides for everything else, so that no part can be exact beside one that is not.
        self.exact = decoder.head.products.exact_rows
        self.kernels = kernels.supports(decoder.final_norm.weight_D, decoder.dtype)
        # Training has the same kernel, so both round alike; fixed shapes have none.
        self.in_place = not self.exact and newest_in_place(decoder.spec, self.cache)
        self.stacks = StackCache(decoder.head.products)
        self.n_prefilled = 0  # prompt tokens of the step
        self.lives = Counter[str]()  # by revision: how often its id was dropped

    @property
    def busy(self) -> bool:
        """Whether any sample is unfinished, running or waiting."""
        return bool(self.running or self.waiting)

    def has_room(self) -> bool:
        """Whether one more request may be admitted. A request of several samples may go beyond the bound once."""
        return len(self.running) + len(self.waiting) < self.limits.max_running

    def admit(self, op: SampleOp, adapter: AdapterView | None) -> None:
        """UserError where the request's grammar or images are wrong."""
        # The namespace has the number of the id's life, so that pages of a dropped revision are never taken for those
        # of a later one under the same id.
        name = op.revision.revision_id if op.revision else BASE
        sequence = self.images.lay_out(op.prompt)
        self.waiting.extend(rows_of(op, sequence, adapter, f"{name}#{self.lives[name]}", self.constrain))

    def finish(self, request_id: str, sample_index: int | None = None) -> None:
        """Takes out one sample of a request, or (None) all of them."""

        def leaves(row: SampleRow) -> bool:
            return row.op.request_id == request_id and sample_index in (None, row.sample_index)

        # A copy is walked, since leaving takes a row out of the list.
        for row in [row for row in self.running if leaves(row)]:
            self._leave(row)
        self.waiting = deque(row for row in self.waiting if not leaves(row))

    def drop_revision(self, revision_id: str) -> None:
        """Forgets what is cached of a revision; one that comes under the same id later shares nothing with it."""
        # Rows that still run under the old life go on undisturbed; their pages are freed when they leave.
        self.tree.drop(f"{revision_id}#{self.lives[revision_id]}")
        self.lives[revision_id] += 1

    def step(self) -> list[SampleEvent]:
        """One forward pass over every running row's share; gives what it brought forth, prompts first.

        In a pipeline rows go in as many parts as there are stages, so that each stage has one to work on: a part begins
        anew when its draws are back, and the last to begin are finished in the next step.
        """
        events: list[SampleEvent] = []
        started, self.n_prefilled = self.clock(), 0
        # Adapters' weights are plain tensors without gradients, but the autograd wrappers would be entered all the
        # same.
        with torch.no_grad():
            for _ in range(self.stage.n_stages):
                has_begun = self._begin()
                # Where nothing could begin, a draw is what all rows wait for.
                if self.under_way and (len(self.under_way) == self.stage.n_stages or not has_begun):
                    events += self._finish_oldest()
        self.prefill.took(self.n_prefilled, self.clock() - started)
        return events

    def _begin(self) -> bool:
        """Computes the layers here for rows that wait for nothing; False where there are none."""
        self._start_waiting()
        # Neighbours of one namespace use one adapter, so sorting by it makes few and long groups. Sorting is stable:
        # within a namespace the order of arrival stays.
        shares = sorted(self._shares(), key=lambda share: share.row.namespace)
        if not shares:
            return False
        x_TD, lora = self._forward(shares)
        draws = None
        if not self.stage.is_last:
            self.stage.send_on(x_TD, Lane.SAMPLING)
        else:
            draws = draw(self.head, shares, self.decoder.final(x_TD), lora)
            if self.stage.n_stages > 1:
                self.stage.tell(msgspec.msgpack.encode(draws))
        for share in shares:
            share.row.is_under_way = True
        self.under_way.append(_Step(shares, draws))
        return True

    def _finish_oldest(self) -> list[SampleEvent]:
        step = self.under_way.popleft()
        draws = step.draws or msgspec.msgpack.decode(self.stage.heard(), type=Draws)
        # A row that has left is another's business; it may even be under way again.
        current = [share for share in step.shares if share.is_current]
        for share in current:
            share.row.is_under_way = False
        return self._advance(current, draws)

    # which rows, and how much of each

    def _start_waiting(self) -> None:
        """Starts rows in order, but leaves back those whose prompt another row is computing right now."""
        held_back: deque[SampleRow] = deque()
        while self.waiting and len(self.running) < self.limits.max_running:
            row = self.waiting.popleft()
            if self._start(row):
                self.running.append(row)
            else:
                held_back.append(row)
        # Reversed twice: `extendleft` turns the order around, and those held back shall be first again.
        self.waiting.extendleft(reversed(held_back))

    def _start(self, row: SampleRow) -> bool:
        """Takes over the known part of a row's tokens, unless more of it will be known soon."""
        # What must be computed here, such as the scored part of a prompt, is not looked up at all.
        match = self.tree.match(row.namespace, tuple(row.tokens[: row.reusable_tokens]))
        n_known = len(match.pages) * self.limits.page_tokens + match.n_copied
        # Half a page is the least gain worth a wait. Without this rule a group of samples with one prompt would compute
        # it as often as there are samples.
        if row.scoring is None and self._is_coming(row, n_known + self.limits.page_tokens // 2):
            return False
        # Held before anything else is taken, because making room evicts pages that nobody holds.
        for page in match.pages:
            self.pool.hold(page)
        row.pages, row.n_computed = list(match.pages), len(match.pages) * self.limits.page_tokens
        if match.source is not None:
            self.pool.hold(match.source)  # it must not be evicted while room is made for its copy
            if self._have_free(1):
                # A page that agrees only at its beginning is copied, since the row will write its own tokens behind
                # that.
                row.pages.append(self.pool.take())
                self.cache.copy(match.source, row.pages[-1], match.n_copied)
                row.n_computed += match.n_copied
            self.pool.release(match.source)
        # Reported to the client as what it did not have to wait for.
        row.cache_hit_tokens = row.n_computed
        return True

    def _is_coming(self, row: SampleRow, n_tokens: int) -> bool:
        """Whether another row is computing a prompt that begins with more than the first n tokens of this one."""
        n_wanted = n_tokens + 1
        if n_wanted > row.reusable_tokens:
            return False
        beginning = row.tokens[:n_wanted]
        return any(
            not other.prompt_done
            and other.namespace == row.namespace
            and other.n_prompt >= n_wanted
            and other.tokens[:n_wanted] == beginning
            for other in self.running
        )

    def _shares(self) -> list[StepShare]:
        n_most = -(-len(self.running) // self.stage.n_stages)
        # Decoding rows do not draw on the budget: it bounds how long they wait for others' prompts in one step.
        most, n_prompts = self.prefill.tokens(beside_others=any(row.n_missing == 1 for row in self.running)), 0
        budget = most
        shares: list[StepShare] = []
        # A copy, since making room may take rows out while the loop runs.
        for row in list(self.running):
            if row not in self.running or row.is_under_way:  # it may have given way to an older one
                continue
            if len(shares) == n_most:
                break
            # A prompt gets what is left of the budget and goes on in the next step.
            n_tokens = min(row.n_missing, max(budget, 1)) if row.n_missing > 1 else 1
            if row.n_missing > 1 and (budget <= 0 or n_prompts == MOST_PROMPTS):
                continue
            if self._make_room(row, row.n_computed + n_tokens):
                shares.append(StepShare(row, n_tokens, row.life))
                if row.n_missing > 1:
                    budget, n_prompts = budget - n_tokens, n_prompts + 1
        self.n_prefilled += most - budget
        # A row that already had its share may have given way to an older one afterwards.
        return [share for share in shares if share.is_current]

    def _make_room(self, row: SampleRow, n_positions: int) -> bool:
        """Gives a row the pages for its first positions; younger rows give way if nothing else helps."""
        while len(row.pages) * self.limits.page_tokens < n_positions:
            if self._have_free(1):
                row.pages.append(self.pool.take())
            # The row is the youngest itself. It must not push out older ones, or two large rows would push each other
            # out forever.
            elif self.running[-1] is row:
                self._give_way(row)
                return False
            else:
                self._give_way(self.running[-1])
        return True

    def _have_free(self, n_pages: int) -> bool:
        if self.pool.n_free < n_pages:
            # More than asked for is evicted, because looking for the oldest leaves walks the whole tree.
            self.tree.evict(n_pages + self.limits.n_pages // 16)
        return self.pool.n_free >= n_pages

    def _give_way(self, row: SampleRow) -> None:
        """Back to the queue with the tokens it has; they are computed again later, or found in the tree."""
        self._leave(row)
        # No state but this number has to be undone; its tokens, drawn ones too, are simply computed again.
        row.n_computed = 0
        # To the front, as it started before everything that is waiting.
        self.waiting.appendleft(row)

    def _leave(self, row: SampleRow) -> None:
        self.running.remove(row)
        # What is still computed for it is not taken in any more.
        row.life, row.is_under_way, row.ahead = row.life + 1, False, None
        # Whoever goes on from this text, as the next turn of a conversation does, finds its pages.
        self.tree.insert(row.namespace, tuple(row.tokens[: row.n_computed]), row.pages)
        for page in row.pages:
            self.pool.release(page)
        # The pages belong to the tree and to others now; a later write through this row would spoil them.
        row.pages = []

    # the pass

    def _forward(self, shares: Sequence[StepShare]) -> tuple[Tensor, LoraBatch]:
        device = self.decoder.device
        tokens: list[int] = []
        positions: list[Ids] = []
        step_rows: list[StepRow] = []
        for share in shares:
            row, first = share.row, share.row.n_computed
            step_rows.append(
                StepRow(len(tokens), len(tokens) + share.n_tokens, self._slots(row, first + share.n_tokens))
            )
            tokens += row.tokens[first : first + share.n_tokens]
            positions.append(row.positions(first, first + share.n_tokens))
        ids_T = np.array(tokens)
        # Most steps hold no image, and then rows' images need not be looked through.
        placed = [image for share in shares for image in share.row.images] if (ids_T < 0).any() else []
        images = self.images.rows(ids_T, placed)
        if self.stage.is_first:
            x_TD = self.decoder.embed(torch.from_numpy(ids_T).to(device), images)
        else:
            x_TD = self.stage.received(len(ids_T), self.decoder.final_norm.weight_D, Lane.SAMPLING)
        rope = self.decoder.rope(torch.from_numpy(_joined(positions)).to(device))
        attend = PagedAttention(
            self.attention, self.cache, step_rows, kernels=self.kernels, in_place=self.in_place, exact=self.exact
        )
        lora = _groups(shares)
        routed = self.decoder.spec.routed_layers
        lora = replace(lora, routes=Routes(routed) if routed else None)
        # Stacking adds zeros of other adapters' columns to a row's sum, which is harmless but not the same order of
        # additions.
        adapters: Adapters = lora if self.exact else StackedLora(lora.groups, len(tokens), self.stacks, lora.routes)
        for layer in self.decoder.spec.layers:
            x_TD = self.decoder.layer(layer, x_TD, rope, attend, adapters, images)
        # Routes are stored by slot, beside the keys, and so are shared and copied with them.
        if lora.routes:
            self.cache.routes_SLK.index_copy_(0, attend.new_slots_T, lora.routes.chosen_LTK().transpose(0, 1))
        return x_TD, lora

    def _slots(self, row: SampleRow, n_positions: int) -> Tensor:
        # The slots of a row in the order of its positions; the last page may be partly used.
        size = self.limits.page_tokens
        pages = torch.tensor(row.pages, device=self.decoder.device)
        offsets = torch.arange(size, device=self.decoder.device)
        return (pages[:, None] * size + offsets).reshape(-1)[:n_positions]

    def _advance(self, shares: Sequence[StepShare], draws: Draws) -> list[SampleEvent]:
        """Counts what was computed, and gives every row at its end its token."""
        arrived = [share.row for share in shares if share.arrives]
        for share in shares:
            share.row.n_computed += share.n_tokens
        # A prompt's event must come before its first token, whichever row of the step drew first.
        events: list[SampleEvent] = [event for row in arrived if (event := self._prompt_end(row, draws.reports))]
        # A failure belongs to a request, not to a row: all samples of a request end together with it.
        there = {share.row.op.request_id for share in shares}
        failures = {request_id: failure for request_id, failure in draws.failures.items() if request_id in there}
        tokens = {(event.request_id, event.sample_index): event for event in draws.tokens}
        drawing = [row for row in arrived if row.op.request_id not in failures]
        routes = self._routes(drawing)
        for row in drawing:
            token = tokens[row.op.request_id, row.sample_index]
            events.append(self._take(row, replace(token, routes=routes[id(row)]) if id(row) in routes else token))
        # What a failed request's other samples drew in this step is not sent any more.
        events = [event for event in events if event.request_id not in failures]
        for request_id, failure in failures.items():
            self.finish(request_id)
            events.append(SampleFailed(request_id, failure))
        return events

    def _prompt_end(self, row: SampleRow, reports: Mapping[str, PromptReport]) -> PromptEvent | None:
        if row.prompt_done:
            return None
        row.prompt_done = True
        # Known from now on, so that samples that were held back for this prompt can start in the next step.
        self.tree.insert(row.namespace, tuple(row.tokens[: row.n_prompt]), row.pages)
        # The samples of a request have one prompt, and one report of it.
        if row.sample_index != 0:
            return None
        report = reports.get(row.op.request_id, PromptReport())
        return PromptEvent(row.op.request_id, report, min(row.cache_hit_tokens, row.n_prompt))

    def _routes(self, rows: Sequence[SampleRow]) -> dict[int, bytes]:
        """By row, for those that ask: where its tokens went that have not been told of, known prefixes too."""
        moe = self.decoder.spec.moe
        asking = [row for row in rows if row.op.routes]
        if moe is None or not asking:
            return {}
        slots = [self._slots(row, row.n_computed)[row.n_routed :] for row in asking]
        # Slots, layers here, and experts a token; layers of other stages are beside them in the order of stages.
        mine_SLK = self.cache.routes_SLK[torch.cat(slots)].cpu().numpy()
        said = self.stage.all_say(mine_SLK.tobytes())
        layers = [np.frombuffer(each, np.int16).reshape(len(mine_SLK), -1, moe.top_k) for each in said]
        ends = np.cumsum([len(slots_K) for slots_K in slots])
        for row in asking:
            row.n_routed = row.n_computed
        parts = np.split(np.concatenate(layers, axis=1), ends[:-1])
        return {id(row): part.tobytes() for row, part in zip(asking, parts, strict=True)}

    def _take(self, row: SampleRow, event: TokenEvent) -> TokenEvent:
        # The token's keys and values are computed in the next step; until then it is the one that is missing.
        row.take(event.token)
        if event.finished:
            self._leave(row)
        return event


def _joined(positions: Sequence[Ids]) -> Ids:
    """(T,), or (T, 3) if any share has three axes."""
    if all(p.ndim == 1 for p in positions):
        return np.concatenate(positions)
    return np.concatenate([p if p.ndim == 2 else p[:, None].repeat(3, 1) for p in positions])


def _groups(shares: Sequence[StepShare]) -> LoraBatch:
    """One group for each run of rows with the same adapter."""
    groups: list[LoraGroup] = []
    start = 0
    for share in shares:
        adapter, n_tokens = share.row.adapter, share.n_tokens
        if adapter is not None:
            # Rows of one adapter stand beside each other after sorting, and one group means one product for all of
            # them.
            if groups and groups[-1].weights is adapter and groups[-1].stop == start:
                groups[-1] = LoraGroup(groups[-1].start, start + n_tokens, adapter)
            else:
                groups.append(LoraGroup(start, start + n_tokens, adapter))
        start += n_tokens
    return LoraBatch(groups)
