"""The products of routed experts: tokens sorted by expert, each expert's rows in one product.

Experts whose weights lie in sheets (a GPU's 4-bit weights) share one product, of all rows; of others each has its own.
What adapters add is in `expert_lora.py`. Tokens add up their experts in ascending order, so that the sum does not
depend on the batch. The backward pass keeps gates and ups and computes the rest again.

Legend: T tokens, K experts a token, P pairs of the two, E experts, N rows of a block or of one expert, D model width,
F expert width, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from loreloop.model.expert_lora import ExpertLora, Run, expert_lora
from loreloop.model.gates import GATES, Gate
from loreloop.model.linear import BaseLinear, PanelLinear
from loreloop.model.lora import Adapters, LoraGroup
from loreloop.model.packed_weights import PackedGroup

# oneDNN prepares a product for every number of rows when it first meets it, 0.5 ms each. Experts have other numbers of
# rows in every step; rounded, they are soon all known.
ROW_STEP = 32


@dataclass(frozen=True)
class Expert:
    """The two frozen products of one expert."""

    gate_up: BaseLinear
    down: BaseLinear

    def at(self, site: str) -> BaseLinear:
        """The product of a site, `gate_up` or `down`."""
        return self.down if site == "down" else self.gate_up


@dataclass(frozen=True)
class _Block:
    """The rows of a product: of one expert, or of all, sorted by expert. They have tokens, and places among all (token,
    choice) pairs; the place after the last is that of rows that only fill up, and weighs nothing. Of all experts also:
    where each one's rows start, and each token's rows, ascending. With `some_elsewhere` the row behind the last stands
    for choices whose experts are not here."""

    runs: Sequence[Run]
    tokens_N: Tensor
    pairs_N: Tensor
    starts_E1: Tensor | None = None
    rows_TK: Tensor | None = None
    some_elsewhere: bool = False

    def add_up(self, sum_TD: Tensor, y_ND: Tensor, weight_N: Tensor | None = None) -> None:
        """Adds each row, weighed, to that of its token, in fp32."""
        if self.rows_TK is None:
            # In fp32, so that the order in which blocks come cannot be seen in a sum that is rounded to bf16 between
            # them.
            y_ND = y_ND.float() if weight_N is None else y_ND.float() * weight_N[:, None]
            sum_TD.index_add_(0, self.tokens_N, y_ND)
            return
        # `index_add_` on a GPU adds in any order. A token's rows in ascending order, one of each token at a time,
        # always give the same sum.
        if self.some_elsewhere:
            y_ND = F.pad(y_ND, (0, 0, 0, 1))
            weight_N = None if weight_N is None else F.pad(weight_N, (0, 1))
        for row_T in self.rows_TK.unbind(1):
            y_TD = y_ND[row_T].float()
            sum_TD += y_TD if weight_N is None else y_TD * weight_N[row_T, None]


class ExpertProducts:
    """The base products of a layer's experts, and the gate between them. `first` is the number of the first one where
    not all of the layer's are here, else None."""

    def __init__(self, experts: Sequence[Expert], gate: Gate = GATES["silu"], first: int | None = None) -> None:
        self.experts, self.gate, self.first = experts, gate, first
        one = experts[0].gate_up
        self.biased = one.bias_O is not None
        # All experts of a layer are alike, so the first one speaks for them.
        plain = isinstance(one.weight, Tensor) and one.weight.device.type == "cpu"
        by_kernel = isinstance(one.forward, PanelLinear)  # which prepares nothing, and adds up in one order
        self.fills_up = plain and not by_kernel and not one.products.exact_rows
        self._groups = {site: _group([expert.at(site) for expert in experts]) for site in ("gate_up", "down")}

    def together(self, x: Tensor) -> bool:
        """Whether all rows go through one product."""
        # Both products or none: a block is either of one expert or of all, and cannot change between them. Besides, the
        # kernel for all of them adds no biases.
        return not self.biased and all(group is not None and group.serves(x) for group in self._groups.values())

    def forward(self, block: _Block, site: str, x_NI: Tensor) -> Tensor:
        """The base product of a block's rows at a site, (N, O): of one expert, or of all in one launch."""
        if block.starts_E1 is None:
            return self._alone(block, site).forward(x_NI)
        return self._group(site).product(x_NI, block.starts_E1)

    def input_grad(self, block: _Block, site: str, dy_NO: Tensor) -> Tensor:
        """The gradient of the block's inputs at a site, (N, I), from that of its outputs."""
        if block.starts_E1 is None:
            return self._alone(block, site).input_grad(dy_NO)
        return self._group(site).input_grad(dy_NO, block.starts_E1)

    def down_bias(self, block: _Block) -> Tensor:
        """What the expert of a block adds to its result whatever its input, (D,) fp32."""
        bias_D = self._alone(block, "down").bias_O
        assert bias_D is not None
        return bias_D.float()

    def _alone(self, block: _Block, site: str) -> BaseLinear:
        # Such a block has exactly one run.
        return self.experts[block.runs[0].expert].at(site)

    def _group(self, site: str) -> PackedGroup:
        group = self._groups[site]
        assert group is not None
        return group


def _group(linears: Sequence[BaseLinear]) -> PackedGroup | None:
    return PackedGroup.of([linear.weight for linear in linears], exact=linears[0].products.exact_rows)


def experts_sum(
    x_TD: Tensor, weight_TK: Tensor, ids_TK: Tensor, experts: ExpertProducts, lora: Adapters, layer: int
) -> Tensor:
    """Σ weight · expert(x) over those of each token's experts that are here, (T, D) in the dtype of x; `weight_TK` is
    fp32."""
    # An adapter trains both sites of experts or neither, so one of them is asked.
    groups = lora.at(layer, "experts.gate_up")
    blocks = _blocks(ids_TK, experts, groups, together=experts.together(x_TD))
    plan = _Plan(blocks, experts, groups, layer, lora.pause)
    if torch.is_grad_enabled():
        return _Experts.apply(x_TD, weight_TK, plan)
    return _Pass(x_TD, weight_TK, plan).forward(keep=False)


def _blocks(ids_TK: Tensor, experts: ExpertProducts, groups: Sequence[LoraGroup], *, together: bool) -> list[_Block]:
    n_experts, top_k, flat = len(experts.experts), ids_TK.shape[1], ids_TK.flatten()
    if experts.first is not None:
        # All experts that are elsewhere count as one behind the last.
        flat = flat - experts.first
        flat = torch.where((flat >= 0) & (flat < n_experts), flat, n_experts)
    # Stable, so that an expert's rows stay in the order of their tokens: adapters' spans and the order of sums rely on
    # it.
    sorted_P, pairs = flat.sort(stable=True)
    # One number more than experts: the last is the end of all rows.
    starts_E1 = torch.searchsorted(sorted_P, torch.arange(n_experts + 1, device=flat.device))
    if experts.first is not None and len(pairs := pairs[: int(starts_E1[-1])]) == 0:
        return []
    tokens = pairs // top_k
    if together and not groups:  # nothing goes by expert then, and the device need not be waited for
        return [_whole([], pairs, tokens, starts_E1, ids_TK)]
    # Tokens of a group are a run of the batch, and an expert's tokens ascend, so a group's rows are a run of the
    # expert's.
    edges = torch.tensor([edge for group in groups for edge in (group.start, group.stop)], device=flat.device)
    # The place behind the last pair, whose weight is the zero that `_Pass` appends.
    nowhere = flat.new_tensor(len(flat))
    blocks, runs, start = [], [], 0
    # Here the host waits for the device: from now on work goes by expert, and its sizes must be known.
    counts = starts_E1.diff().tolist()
    for expert, (tokens_N, pairs_N) in enumerate(zip(tokens.split(counts), pairs.split(counts), strict=True)):
        if len(tokens_N):
            # Filling rows repeat the last token, which keeps the list ascending.
            if experts.fills_up:
                tokens_N, pairs_N = _filled_up(tokens_N, tokens_N[-1]), _filled_up(pairs_N, nowhere)
            bounds = torch.searchsorted(tokens_N, edges).tolist() if groups else []
            spans = tuple(slice(*bounds[i : i + 2]) for i in range(0, len(bounds), 2))
            # Within one block of all experts a run's rows are counted from the block's start.
            first = start if together else 0
            runs.append(Run(expert, slice(first, first + len(tokens_N)), tokens_N, spans))
            blocks.append(_Block(runs=runs[-1:], tokens_N=tokens_N, pairs_N=pairs_N))
            start += len(tokens_N)
    return [_whole(runs, pairs, tokens, starts_E1, ids_TK)] if together else blocks


def _filled_up(rows_N: Tensor, filler: Tensor) -> Tensor:
    """More rows than ROW_STEP to a multiple of it, and one to two: the library may add up a single row's inputs in
    another order than those of several, and what samples one token at a time shall agree with what trains on many."""
    n = len(rows_N)
    wanted = -(-n // ROW_STEP) * ROW_STEP if n > ROW_STEP else max(n, 2)
    return torch.cat((rows_N, filler.expand(wanted - n))) if wanted > n else rows_N


def _whole(runs: Sequence[Run], pairs_N: Tensor, tokens_N: Tensor, starts_E1: Tensor, ids_TK: Tensor) -> _Block:
    """All rows in one block."""
    # The inverse of the sorting: for each (token, choice) pair the row where it went, or the one behind the last.
    row_P = torch.full_like(ids_TK.flatten(), len(pairs_N))
    row_P[pairs_N] = torch.arange(len(pairs_N), device=pairs_N.device)
    rows_TK = row_P.view(ids_TK.shape).sort(1).values
    return _Block(
        runs=runs,
        tokens_N=tokens_N,
        pairs_N=pairs_N,
        starts_E1=starts_E1,
        rows_TK=rows_TK,
        some_elsewhere=len(pairs_N) < len(row_P),
    )


@dataclass(frozen=True)
class _Plan:
    """What a pass goes through: the rows in their blocks, the experts, and the adapters of the layer. `pause` is called
    after each block."""

    blocks: Sequence[_Block]
    experts: ExpertProducts
    groups: Sequence[LoraGroup]
    layer: int
    pause: Callable[[], None]

    def adapters(self, x_TD: Tensor) -> list[ExpertLora]:
        products = self.experts.experts[0].gate_up.products
        return [expert_lora(group, self.layer, products, x_TD) for group in self.groups]


class _Present(NamedTuple):
    """An adapter, and which of a run's rows have it."""

    run: Run
    adapter: ExpertLora
    rows: slice


class _Pass:
    """One pass over the experts of a layer, there and back."""

    def __init__(self, x_TD: Tensor, weight_TK: Tensor, plan: _Plan) -> None:
        self.x_TD, self.blocks, self.experts, self.pause = x_TD, plan.blocks, plan.experts, plan.pause
        # One weight of zero at the end, for rows that only fill up.
        self.weight_P1 = F.pad(weight_TK.flatten(), (0, 1))
        self.top_k = weight_TK.shape[1]
        self.adapters = plan.adapters(x_TD)
        self.gate_ups: list[Tensor] = []

    def forward(self, *, keep: bool) -> Tensor:
        """With `keep`, `gate_ups` holds each block's gates and ups afterwards."""
        # fp32, whatever the dtype of x: `torch.zeros` is left at its default on purpose.
        sum_TD = torch.zeros(self.x_TD.shape, device=self.x_TD.device)
        for block in self.blocks:
            weight_N = self.weight_P1[block.pairs_N]
            x_ND = self.x_TD.index_select(0, block.tokens_N)
            gate_up_NO = self.experts.forward(block, "gate_up", x_ND)
            for run, adapter, rows in self._present(block):
                adapter.gate_up(run, rows, x_ND[run.rows], gate_up_NO[run.rows])
            inner_NF = self.experts.gate.forward(gate_up_NO)
            y_ND = self.experts.forward(block, "down", inner_NF)
            for run, adapter, rows in self._present(block):
                adapter.down(run, rows, inner_NF[run.rows], weight_N[run.rows], y_ND[run.rows])
            block.add_up(sum_TD, y_ND, weight_N)
            # Gates and ups are all that is kept: everything behind them is cheap to make again from these.
            if keep:
                self.gate_ups.append(gate_up_NO)
            self.pause()
        # Shared-outer adapters add their part after the sum is rounded, as an adapter does to any other base product.
        out_TD = sum_TD.to(self.x_TD.dtype)
        for adapter in self.adapters:
            adapter.finish(out_TD)
        return out_TD

    def backward(self, dout_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x and of the weights; those of adapters are added to theirs."""
        dx_TD = torch.zeros(self.x_TD.shape, device=self.x_TD.device)
        dweight_P1 = torch.zeros_like(self.weight_P1)
        for adapter in self.adapters:
            adapter.start_back(dout_TD)
        for block, gate_up_NO in zip(self.blocks, self.gate_ups, strict=True):
            weight_N = self.weight_P1[block.pairs_N]
            dout_ND = dout_TD.index_select(0, block.tokens_N)
            inner_NF = self.experts.gate.forward(gate_up_NO)
            # Of the expert's result by itself, not yet weighed.
            dinner_NF = self.experts.input_grad(block, "down", dout_ND)
            for run, adapter, rows in self._present(block):
                span = run.rows
                adapter.down_back(run, rows, inner_NF[span], weight_N[span], dout_ND[span], dinner_NF[span])
            # ∂/∂weight is the gradient of the result, dotted with the expert's unweighed result. Sent back through
            # `down`, that is the dot product of both inners, and the result itself need not be computed again.
            dweight_N = (dinner_NF.float() * inner_NF.float()).sum(-1)
            if self.experts.biased:
                dweight_N += dout_ND.float() @ self.experts.down_bias(block)
            dweight_P1[block.pairs_N] = dweight_N
            # Only now weighed, for what follows is about x, which the weight does act on.
            dinner_NF = (dinner_NF.float() * weight_N[:, None]).to(dinner_NF.dtype)
            dgate_up_NO = self.experts.gate.backward(gate_up_NO, dinner_NF)
            dx_ND = self.experts.input_grad(block, "gate_up", dgate_up_NO)
            for run, adapter, rows in self._present(block):
                adapter.gate_up_back(run, rows, self.x_TD, dgate_up_NO[run.rows], dx_ND[run.rows])
            # Not weighed again: the gradient carries the weight since the line for inners above.
            block.add_up(dx_TD, dx_ND)
            self.pause()
        dx = dx_TD.to(self.x_TD.dtype)
        for adapter in self.adapters:
            adapter.finish_back(self.x_TD, dx)
        # The last place gathered what filling rows wrote, and nobody asked for that.
        return dx, dweight_P1[:-1].view(-1, self.top_k)

    def _present(self, block: _Block) -> Iterator[_Present]:
        """The adapters that a block's rows have, run by run."""
        for run in block.runs:
            for adapter, rows in zip(self.adapters, run.spans, strict=True):
                # Many experts see no token of a given adapter, and an empty product still costs a call.
                if rows.stop > rows.start:
                    yield _Present(run, adapter, rows)


class _Context(FunctionCtx):
    """What autograd carries from the way there to the way back."""

    work: _Pass


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x_TD: Tensor, weight_TK: Tensor, plan: _Plan) -> Tensor:
        ctx.work = _Pass(x_TD, weight_TK, plan)
        return ctx.work.forward(keep=True)

    @staticmethod
    def backward(ctx: _Context, dout_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.work.backward(dout_TD), None
