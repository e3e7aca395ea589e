"""Forward and backward passes over packed micro-batches, a layer at a time.

Passes of one or several models go in, summed losses and per-token log-probabilities come out; gradients gather in the
models' states. Between its steps the work calls back, so that sampling can slip in.

Legend: T packed rows, D model width, U unique (row, target) pairs, N positions of a datum, K targets a position; of
routes, L layers that route and K experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from loreloop.engine.attention import Attention
from loreloop.engine.contract import Pause
from loreloop.engine.head import Head, groups_at
from loreloop.engine.images import ImageTable, TokenSequence, text_only
from loreloop.engine.losses.table import LOSSES
from loreloop.engine.training.expert_load import ExpertLoad
from loreloop.engine.training.model_state import ModelState
from loreloop.engine.training.packing import Ids, Packed, PackItem, pack, split_batches
from loreloop.engine.training.route_replay import RouteReplay
from loreloop.engine.training.stage_clock import StageClock
from loreloop.engine.training.stage_results import share_results
from loreloop.engine.training.tree_attention import TreeAttention
from loreloop.model.decoder import Decoder, ImageRows, Ropes
from loreloop.model.expert_routes import Routes
from loreloop.model.lora import UNEMBED, LoraBatch, LoraGroup
from loreloop.parallel.stages import Lane, Stage
from loreloop.parallel.timetable import BACKWARD_UNITS
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import Datum, ForwardBackward, PassResult


@dataclass
class TrainPass:
    """A checked pass with its model and its data, laid out, and what has been computed of it so far."""

    op: ForwardBackward
    state: ModelState
    sequences: Sequence[TokenSequence]
    logps: dict[int, Tensor] = field(default_factory=dict)  # by datum, in the shape of its targets
    loss_sum: float = 0.0
    load: ExpertLoad | None = None  # where experts are routed to

    def result(self) -> PassResult:
        """Log-probabilities of every datum in the shape of its targets, the summed loss, and the metrics of routing.
        KeyError before all data have been computed."""
        outputs = ({"logprobs": tensor_of(self.logps[i].numpy())} for i in range(len(self.op.data)))
        load = self.load.metrics() if self.load else {}
        return PassResult(tuple(outputs), {"loss:sum": self.loss_sum} | load)


@dataclass(frozen=True)
class _Source:
    """A datum on its way into a micro-batch."""

    work: TrainPass
    datum_index: int
    sequence: TokenSequence

    @property
    def datum(self) -> Datum:
        return self.work.op.data[self.datum_index]

    def identities(self, book: RouteReplay) -> Ids:
        return book.identities(self.sequence.tokens, self.datum.routes)


@dataclass(frozen=True)
class _Member:
    """A datum's place in a micro-batch: its pass, its number there, and the pair that scores each of its targets."""

    work: TrainPass
    datum_index: int
    pairs_NK: Tensor

    @property
    def datum(self) -> Datum:
        return self.work.op.data[self.datum_index]


@dataclass(frozen=True)
class _Batch:
    packed: Packed
    positions: Tensor  # (T,), or (T, 3) where rows and columns of images count
    images: ImageRows | None
    lora: LoraBatch
    members: list[_Member]
    pair_rows_U: Tensor  # ascending
    pair_targets_UK: Tensor
    pause: Pause


class _Entered(NamedTuple):
    """A batch at the door of the first layer here."""

    x_TD: Tensor
    rope: Ropes
    attend: TreeAttention


class _Kept(NamedTuple):
    """What a layer takes, and its graph unless that is to be made again."""

    x_TD: Tensor
    out_TD: Tensor | None


@dataclass(frozen=True)
class _UnderWay:
    """A batch that has gone through the layers here, and what its way back needs; `dx_TD` is the gradient that its
    losses have at the last layer's output, where the head is."""

    batch: _Batch
    entered: _Entered
    kept: list[_Kept]
    dx_TD: Tensor | None


class Trainer:
    """Runs passes on one decoder. `max_rows` bounds an ordinary micro-batch; longer sequences and groups keep their
    activations up to `kept_rows` and compute them twice beyond."""

    def __init__(
        self,
        decoder: Decoder,
        attention: Attention,
        head: Head,
        max_rows: int,
        kept_rows: int,
        *,
        images: ImageTable | None = None,
        replay_routes: bool = True,
        stage: Stage | None = None,
    ) -> None:
        self.decoder, self.attention, self.head, self.images = decoder, attention, head, images or text_only()
        self.replay_routes, self.stage = replay_routes, stage or Stage()
        self.max_rows, self.kept_rows = max_rows, max(max_rows, kept_rows)

    def run(self, works: Sequence[TrainPass], pause: Pause = lambda: None) -> None:
        """Computes all passes; equal prefixes are computed once.

        Broken off, it leaves gradients as they were: half a batch must not count, and what was gathered before it must.
        """
        # Passes without gradients are computed apart: in a common batch their rows would be walked backwards for
        # nothing.
        training = [work for work in works if not work.op.forward_only]
        states = {id(work.state): work.state for work in training}.values()
        before = [state.copied_grad() for state in states]
        finished = False
        try:
            self._work_through([work for work in works if work.op.forward_only], pause, backward=False)
            self._work_through(training, pause, backward=True)
            share_results(works, self.stage)
            finished = True
        # Also when a pause raises, as it does when the engine is to stop in the midst of a batch.
        finally:
            for state, grad in zip(states, before, strict=True):
                if finished:
                    state.has_grad = True
                else:
                    state.put_grad_back(grad)

    def _work_through(self, works: Sequence[TrainPass], pause: Pause, *, backward: bool) -> None:
        """All micro-batches of some passes, in the order of the stage's timetable. Alone, a batch goes back as soon as
        it has gone forward."""
        alone = self.stage.n_stages == 1
        # Pauses within a product would come at other times on other stages. A stage alone has no others.
        batches = self._batches(works, pause if alone else _no_pause)
        timetable = self.stage.timetable(len(batches), backward=backward)
        clock = StageClock(timetable, self.stage.at, _no_pause if alone else pause)
        under_way: dict[int, _UnderWay] = {}
        finished = False
        try:
            for slot in clock.slots():
                if slot.backward:
                    self._walk_back(under_way.pop(slot.batch), clock)
                    continue
                batch = batches[slot.batch]()
                walked = self._walk(batch, clock, backward=backward)
                self._count_load(batch)
                if backward:
                    under_way[slot.batch] = walked
                # Otherwise these names would hold a batch's activations until the next one has been walked through.
                del batch, walked
            finished = True
        finally:
            if not finished:
                self._take_and_drop(clock, batches)

    def _take_and_drop(self, clock: StageClock, batches: Sequence[Callable[[], _Batch]]) -> None:
        """Takes what was sent here before all stages broke off, or the next batch would take it for its own."""
        left = clock.timetable.unreceived(self.stage.at, clock.now)
        like = self.decoder.final_norm.weight_D
        for index in left.forward:
            self.stage.received(self._rows_here(batches[index]()), like, Lane.TRAINING)
        for index in left.backward:
            self.stage.returned(like.new_empty(self._rows_here(batches[index]()), len(like)))

    def _rows_here(self, batch: _Batch) -> int:
        return self.decoder.rows_here(len(batch.packed.tokens_T))

    def _batches(self, works: Sequence[TrainPass], pause: Pause) -> list[Callable[[], _Batch]]:
        """What makes each micro-batch, when it is its turn."""
        # Several passes of a batch may belong to one model. They share its adapter, and so may share prefixes as well.
        states = list({id(work.state): work.state for work in works}.values())
        sources = [_Source(work, index, sequence) for work in works for index, sequence in enumerate(work.sequences)]
        # One book for the whole batch, since an identity must mean the same token and route in all of its sequences.
        book = RouteReplay(self.decoder.spec.moe)
        items = [
            # By identity and not by equality: two models may hold equal numbers and must still not share rows.
            PackItem(index, next(a for a, s in enumerate(states) if s is source.work.state), source.identities(book))
            for index, source in enumerate(sources)
        ]
        # Positions with several targets are scored differently, so such data form batches of their own.
        widths = [_targets(source.datum).shape[1] for source in sources]
        by_width = ([item for item in items if widths[item.index] == width] for width in sorted(set(widths)))
        return [
            partial(self._batch, chosen, sources, states, book, pause)
            for alike in by_width
            for chosen in split_batches(alike, self.max_rows, self.kept_rows)
        ]

    def _batch(
        self,
        items: Sequence[PackItem],
        all_sources: Sequence[_Source],
        states: Sequence[ModelState],
        book: RouteReplay,
        pause: Pause,
    ) -> _Batch:
        device, packed, sources = self.decoder.device, pack(items), [all_sources[item.index] for item in items]
        # Packing compared identities. From here on tokens are ids again, with the recorded routes beside them.
        tokens_T, given_LTK = book.read(packed.tokens_T)
        packed = replace(packed, tokens_T=tokens_T)
        rows = np.concatenate(packed.rows)
        targets_NK = np.concatenate([_targets(source.datum) for source in sources])
        # Shared rows are mostly asked for the same target by everyone: each such pair is scored once.
        pairs, inverse = np.unique(np.column_stack((rows, targets_NK)), axis=0, return_inverse=True)
        # `inverse` runs over all data's positions end to end; cut at their lengths it tells each datum its pairs.
        splits = np.split(inverse.reshape(-1), np.cumsum([len(r) for r in packed.rows])[:-1])
        # An adapter's rows are one run, because packing lays adapters out one after the other.
        groups = [
            LoraGroup(span.start, span.stop, states[a].weights, states[a].gradient)
            for a, span in packed.adapter_rows.items()
        ]
        pairs_U = torch.from_numpy(pairs).to(device)
        routes = self._routes(given_LTK)
        return _Batch(
            packed=packed,
            positions=torch.from_numpy(_positions(packed, [source.sequence for source in sources])).to(device),
            images=self.images.rows(packed.tokens_T, [image for source in sources for image in source.sequence.images]),
            lora=LoraBatch(groups, pause, routes),
            members=[_Member(s.work, s.datum_index, torch.from_numpy(p)) for s, p in zip(sources, splits, strict=True)],
            # `np.unique` sorts by row first, and `groups_at` relies on rows in ascending order.
            pair_rows_U=pairs_U[:, 0].contiguous(),
            pair_targets_UK=pairs_U[:, 1:].contiguous(),
            pause=pause,
        )

    def _routes(self, given_LTK: Tensor | None) -> Routes | None:
        """A batch's routes in the layers here; what is given is of all layers that route."""
        moe, here = self.decoder.spec.moe, self.decoder.spec.routed_layers
        if moe is None:
            return None
        if given_LTK is not None and len(here) < len(moe.layers):
            given_LTK = given_LTK[[moe.layers.index(layer) for layer in here]]
        return Routes(here, given_LTK, follow=self.replay_routes)

    def _walk(self, batch: _Batch, clock: StageClock, *, backward: bool) -> _UnderWay:
        """A batch's way through the layers here, and behind the last one through the head and its losses."""
        entered = self._enter(batch)
        x_TD, rope, attend = entered
        # Beyond the bound only each layer's input is kept, and its activations are made again on the way back: slower,
        # but memory stays bounded.
        recompute = len(batch.packed.tokens_T) > self.kept_rows
        kept: list[_Kept] = []
        for layer in self.decoder.spec.layers:
            # Every layer is a graph of its own, cut at its input. Its activations are freed as soon as it has been
            # walked back, and the work can pause between layers.
            x_TD = x_TD.detach().requires_grad_(backward)
            with torch.set_grad_enabled(backward and not recompute):
                y_TD = self.decoder.layer(layer, x_TD, rope, attend, batch.lora, batch.images)
            if backward:
                kept.append(_Kept(x_TD, None if recompute else y_TD))
            x_TD = y_TD
            clock.tick(1)
        dx_TD = None
        if not self.stage.is_last:
            self.stage.send_on(x_TD.detach(), Lane.TRAINING)
        elif backward:
            dx_TD = self._head(batch, x_TD.detach())
        else:
            self._score(batch, x_TD)
        return _UnderWay(batch, entered, kept, dx_TD)

    def _score(self, batch: _Batch, x_TD: Tensor) -> None:
        with torch.no_grad():
            h_UD = self.decoder.final(x_TD)[batch.pair_rows_U]
        lora = groups_at(batch.lora, batch.pair_rows_U)
        scores = self.head.score(h_UD, batch.pair_targets_UK, lora, None, batch.pause)
        self._losses(batch, scores.logp_NK, want_grad=False)

    def _walk_back(self, walked: _UnderWay, clock: StageClock) -> None:
        batch, (x_TD, rope, attend), kept = walked.batch, walked.entered, walked.kept
        dx_TD = self.stage.returned(x_TD) if walked.dx_TD is None else walked.dx_TD
        del x_TD, walked
        for layer in reversed(self.decoder.spec.layers):
            # Popped, not read: the list must not keep activations that are done with.
            x_in_TD, out_TD = kept.pop()
            if out_TD is None:
                out_TD = self.decoder.layer(layer, x_in_TD, rope, attend, batch.lora, batch.images)
            # Only the gradient of the residual stream comes back; adapters' gradients are added to their vectors on the
            # way.
            (dx_TD,) = torch.autograd.grad(out_TD, x_in_TD, dx_TD)
            # Otherwise these names would hold one layer's activations while the next one's are computed again.
            del x_in_TD, out_TD
            clock.tick(BACKWARD_UNITS)
        if not self.stage.is_first:
            self.stage.send_back(dx_TD)

    def _enter(self, batch: _Batch) -> _Entered:
        device = self.decoder.device
        tokens_T = torch.from_numpy(batch.packed.tokens_T).to(device)
        rope = self.decoder.rope(batch.positions)
        # Models share a batch but must not share a block of the backward pass, where an overflow of one would reach the
        # other.
        borders = [span.start for span in batch.packed.adapter_rows.values()]
        attend = TreeAttention(self.attention, batch.packed.segments, device, borders, batch.pause)
        if self.stage.is_first:
            x_TD = self.decoder.embed(tokens_T, batch.images)
        else:
            x_TD = self.stage.received(self._rows_here(batch), self.decoder.final_norm.weight_D, Lane.TRAINING)
        return _Entered(x_TD, rope, attend)

    def _head(self, batch: _Batch, x_TD: Tensor) -> Tensor:
        """Scores the batch, applies its losses, and gives their gradient at the last layer's output, (T, D) fp32."""
        # The final norm is part of this graph, so that its gradient comes with the head's.
        x_TD.requires_grad_()
        with torch.enable_grad():
            h_UD = self.decoder.final(x_TD)[batch.pair_rows_U]
        lora = groups_at(batch.lora, batch.pair_rows_U)
        assert lora is not None
        layer = self.decoder.spec.n_layers
        # The gradient that scoring can keep is that of a frozen head, of logits as it gives them, and of one target a
        # row.
        capped = self.decoder.spec.scales.logit_cap is not None
        several = batch.pair_targets_UK.shape[1] > 1
        again = capped or several or any(g.weights.layout.has(layer, UNEMBED) for g in lora.groups)
        active_U = None if again else self._active(batch)
        # Detached, for the head makes its own gradient; autograd would keep rows × vocabulary for it.
        scores = self.head.score(h_UD.detach(), batch.pair_targets_UK, lora, active_U, batch.pause)
        dlogp_UK = self._losses(batch, scores.logp_NK, want_grad=True)
        if scores.grad_ND is None:
            dh_UD = self.head.backward(
                h_UD.detach(), batch.pair_targets_UK, dlogp_UK, lora, batch.pause, scores.share_N1
            )
        else:
            # The chain rule in one scaling: ∂loss/∂h = ∂loss/∂logp · ∂logp/∂h.
            dh_UD = (scores.grad_ND.float() * dlogp_UK).to(h_UD.dtype)
        return torch.autograd.grad(h_UD, x_TD, dh_UD)[0]

    def _count_load(self, batch: _Batch) -> None:
        """Tells every pass of the batch where its rows were routed."""
        routes, moe = batch.lora.routes, self.decoder.spec.moe
        if routes is None or moe is None or not routes.layers:
            return
        ids_LTK, counts_L3T = routes.chosen_LTK(), routes.counts_L3T()
        # A row that several data share is counted once for each pass that has it, but once within a pass.
        for work in {id(member.work): member.work for member in batch.members}.values():
            own_rows = [r for r, member in zip(batch.packed.rows, batch.members, strict=True) if member.work is work]
            rows = torch.from_numpy(np.unique(np.concatenate(own_rows))).to(ids_LTK.device)
            work.load = work.load or ExpertLoad(moe.n_experts)
            work.load.add(ids_LTK[:, rows], None if counts_L3T is None else counts_L3T[..., rows])

    def _active(self, batch: _Batch) -> Tensor:
        """Which pairs can have a gradient, (U,) bool."""
        active_U = torch.zeros(len(batch.pair_rows_U), dtype=torch.bool)
        for member in batch.members:
            active_N = LOSSES[member.work.op.loss_fn].active(_inputs(member.datum)).reshape(len(member.pairs_NK), -1)
            # A pair that several data share is active if any of them wants its gradient.
            active_U[member.pairs_NK[active_N.any(-1)]] = True
        return active_U.to(self.decoder.device)

    def _losses(self, batch: _Batch, logp_UK: Tensor, *, want_grad: bool) -> Tensor:
        """Applies each datum's loss to its log-probabilities; gives ∂loss/∂logp of the pairs, (U, K)."""
        # Losses are many small operations over few numbers, which a GPU's launches would make slower.
        logp_UK = logp_UK.cpu()
        dlogp_UK = torch.zeros_like(logp_UK)
        for member in batch.members:
            op, shape = member.work.op, member.datum.inputs["target_tokens"].shape
            logp = logp_UK[member.pairs_NK].reshape(shape)
            member.work.logps[member.datum_index] = logp
            loss = LOSSES[op.loss_fn]
            with torch.set_grad_enabled(want_grad):
                # A leaf of its own, so that the loss is a closed graph and its gradient that of the log-probabilities
                # alone.
                leaf = logp.clone().requires_grad_(want_grad)
                value = loss(leaf, _inputs(member.datum), {**loss.config, **op.loss_config})
            member.work.loss_sum += value.item()
            if want_grad:
                (dlogp,) = torch.autograd.grad(value, leaf, allow_unused=True)
                # Data that share a pair add up there: their losses are summed, and so are the gradients.
                dlogp_UK.index_add_(0, member.pairs_NK, dlogp.reshape(-1, dlogp_UK.shape[1]))
        return dlogp_UK.to(self.decoder.device)


def _no_pause() -> None:
    pass


def _positions(packed: Packed, sequences: Sequence[TokenSequence]) -> Ids:
    """Each row's position: how many tokens stand before it, unless its sequence says something else.

    Rows that sequences share have one prefix, and so one position.
    """
    if all(sequence.positions_N3 is None for sequence in sequences):
        return packed.positions_T
    positions_T3 = packed.positions_T[:, None].repeat(3, 1)
    for rows, sequence in zip(packed.rows, sequences, strict=True):
        if sequence.positions_N3 is not None:
            positions_T3[rows] = sequence.positions_N3
    return positions_T3


def _targets(datum: Datum) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(N, K) int64."""
    target = datum.inputs["target_tokens"]
    return target.numpy().astype(np.int64).reshape(target.shape[0], -1)


def _inputs(datum: Datum) -> dict[str, Tensor]:
    """The loss inputs as tensors, and `sampled` where the datum says which targets a sampler drew."""
    # Copied, because the numbers lie in a received message, whose memory is read-only.
    inputs = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in datum.inputs.items()}
    if datum.sampled_spans is not None:
        sampled = torch.zeros(datum.inputs["target_tokens"].shape, dtype=torch.bool)
        for start, stop in datum.sampled_spans:
            sampled[start:stop] = True
        inputs["sampled"] = sampled
    return inputs
