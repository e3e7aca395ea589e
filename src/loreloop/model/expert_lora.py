"""What an adapter adds to the products of routed experts, and its gradients.

Its two forms differ in the matrices on the side of the model's width. In the per-expert form each expert has its own.
In the shared-outer form the common A is multiplied once a token before tokens are dispatched, the common B once a token
after their experts' results have been weighed and summed. Knows nothing of how rows are sorted, nor of the experts' own
weights.

Legend: T tokens, E experts, N rows of one expert, D model width, F expert width, R rank, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loreloop.model.linear import Products
from loreloop.model.lora import AdapterView, LoraGroup


@dataclass(frozen=True)
class Run:
    """One expert's rows: which they are of their block, their tokens, ascending, and which of the run's rows belong to
    which adapter."""

    expert: int
    rows: slice
    tokens_N: Tensor
    spans: tuple[slice, ...]


@dataclass(frozen=True)
class _Matrices:
    """An adapter's matrices over the experts of a layer, (E, outputs, inputs) each, or (1, …) where they are common to
    all; the product that gives gates and ups has a B for either."""

    a_up: Tensor
    b_up: Sequence[Tensor]
    a_down: Tensor
    b_down: Tensor

    @staticmethod
    def of(view: AdapterView, layer: int) -> _Matrices:
        gate_up, down = (layer, "experts.gate_up"), (layer, "experts.down")
        return _Matrices(view.a(*gate_up), view.b(*gate_up), view.a(*down), *view.b(*down))


class ExpertLora:
    """One adapter over the experts of a layer, for the tokens of its group; each expert has all matrices of its own.

    Sums in `grad` are of the group's gradients, if it trains.
    """

    def __init__(self, group: LoraGroup, layer: int, products: Products, x_TD: Tensor) -> None:
        self.start, self.products = group.start, products
        self.rank, self.scale = group.weights.layout.rank, group.weights.layout.scale
        self.weights = _Matrices.of(group.weights, layer)
        self.grad = _Matrices.of(group.grad, layer) if group.grad is not None else None

    def gate_up(self, run: Run, rows: slice, x_ND: Tensor, gate_up_NO: Tensor) -> None:
        """Adds the adapter's part to the product of gates and ups (N, 2·F) at `rows` of a run, in place."""
        # A of gates and of ups stand stacked, so one product serves both and each B takes its half of the columns.
        h_NR = self._inner(run, rows, x_ND[rows])
        for part, b_EOR in enumerate(self.weights.b_up):
            self.products.add_linear(
                gate_up_NO[rows, _half(part, gate_up_NO)], h_NR[:, _half(part, h_NR)], b_EOR[run.expert]
            )

    def down(self, run: Run, rows: slice, inner_NF: Tensor, weight_N: Tensor, y_ND: Tensor) -> None:
        """Adds the adapter's part to the expert's result (N, D) at `rows` of a run, in place; not yet weighed."""
        # The token's weight is not applied here: the caller weighs the expert's result together with what the adapter
        # adds.
        q_NR = self.products.linear(inner_NF[rows], self.weights.a_down[run.expert])
        self.products.add_linear(y_ND[rows], q_NR * self.scale, self.weights.b_down[run.expert])

    def finish(self, out_TD: Tensor) -> None:
        """Adds what is common to all experts, once their results are summed."""

    def start_back(self, dout_TD: Tensor) -> None:
        """Takes the gradient of the sum, before those of single experts."""

    def down_back(
        self, run: Run, rows: slice, inner_NF: Tensor, weight_N: Tensor, dout_ND: Tensor, dinner_NF: Tensor
    ) -> None:
        """Sends the gradient of the expert's unweighed result back to `dinner_NF` (in place) and to `grad`."""
        # `dout_ND` is the gradient of the weighed sum, and `dinner_NF` is kept unweighed, as the caller needs its
        # product with the inner for the gradient of the weight itself.
        inner_NF, weight_N1, dout_ND = inner_NF[rows], weight_N[rows, None], dout_ND[rows]
        dq_NR = self.products.matmul(dout_ND, self.weights.b_down[run.expert]).mul_(self.scale)
        self._a_down_back(run.expert, inner_NF, weight_N1, dq_NR, dinner_NF[rows])
        if self.grad is not None:
            # Computed again rather than kept from the forward pass: R numbers a row are cheap to make and many to hold.
            q_NR = self.products.linear(inner_NF, self.weights.a_down[run.expert]) * (weight_N1 * self.scale)
            # Gradients are summed in fp32, which is the dtype of `grad`; only the product itself is in the compute
            # dtype.
            self.grad.b_down[run.expert].add_(dout_ND.T @ q_NR.to(dout_ND.dtype))

    def gate_up_back(self, run: Run, rows: slice, x_TD: Tensor, dgate_up_NO: Tensor, dx_ND: Tensor) -> None:
        """Sends the gradient of gates and ups back to `dx_ND` (in place) and to `grad`; x is gathered again."""
        # The rows were gathered in the forward pass too, but keeping them would cost as much memory as all hidden
        # states of the layer times the experts a token.
        x_ND = x_TD.index_select(0, run.tokens_N[rows])
        dh_NR = self._b_up_back(run.expert, self._inner(run, rows, x_ND), dgate_up_NO[rows]).mul_(self.scale)
        dx_ND[rows] += self.products.matmul(dh_NR, self.weights.a_up[run.expert])
        if self.grad is not None:
            self.grad.a_up[run.expert].add_(dh_NR.T @ x_ND)

    def finish_back(self, x_TD: Tensor, dx_TD: Tensor) -> None:
        """Adds the gradients of what is common to all experts, after those of single ones."""

    def _inner(self, run: Run, rows: slice, x_ND: Tensor) -> Tensor:
        """32/rank · x · Aᵀ of a run's rows, (N, 2·R)."""
        return self.products.linear(x_ND, self.weights.a_up[run.expert]).mul_(self.scale)

    def _a_down_back(self, expert: int, inner_NF: Tensor, weight_N1: Tensor, dq_NR: Tensor, dinner_NF: Tensor) -> None:
        dinner_NF += self.products.matmul(dq_NR, self.weights.a_down[expert])
        if self.grad is not None:
            # Here the weight of the token comes in, since this gradient is final and nobody weighs it afterwards.
            self.grad.a_down[expert].add_((dq_NR * weight_N1).to(inner_NF.dtype).T @ inner_NF)

    def _b_up_back(self, expert: int, h_NR: Tensor, dgate_up_NO: Tensor) -> Tensor:
        """The gradient of x · Aᵀ, not yet scaled."""
        dh_NR = torch.empty_like(h_NR)
        for part, b_EOR in enumerate(self.weights.b_up):
            dy_NO, ranks = dgate_up_NO[:, _half(part, dgate_up_NO)], _half(part, h_NR)
            dh_NR[:, ranks] = self.products.matmul(dy_NO, b_EOR[expert])
            if self.grad is not None:
                self.grad.b_up[part][expert].add_(dy_NO.T @ h_NR[:, ranks])
        return dh_NR


class SharedOuterLora(ExpertLora):
    """One whose matrices on the side of the model's width are common to all experts.

    `h_TR` is 32/rank · x · Aᵀ with the common A, `z_TR` the weighed sum of experts' inner · Aᵀ that the common B takes;
    `dh_TR` and `dz_TR` are their gradients.
    """

    def __init__(self, group: LoraGroup, layer: int, products: Products, x_TD: Tensor) -> None:
        super().__init__(group, layer, products, x_TD)
        self.rows = slice(group.start, group.stop)
        self.h_TR = products.linear(x_TD[self.rows], self.weights.a_up[0]).mul_(self.scale)
        # In fp32: a token's experts are summed here, and the sum is rounded only once, in `finish`.
        self.z_TR = torch.zeros(len(self.h_TR), self.rank, device=x_TD.device)
        self.dh_TR = self.dz_TR = x_TD.new_empty(0)  # there is no way back until `start_back`

    def down(self, run: Run, rows: slice, inner_NF: Tensor, weight_N: Tensor, y_ND: Tensor) -> None:
        """Only gathers weighed inner products, since the common B is applied once a token in `finish`."""
        # B is common, so Σ weight · (inner · Aᵀ) · Bᵀ is (Σ weight · inner · Aᵀ) · Bᵀ: one product with B a token, not
        # one an expert.
        q_NR = self.products.linear(inner_NF[rows], self.weights.a_down[run.expert])
        self.z_TR.index_add_(0, self._own(run, rows), q_NR.float() * weight_N[rows, None])

    def finish(self, out_TD: Tensor) -> None:
        """Applies the common B to what all experts gathered, and adds it to the sum at the group's rows."""
        # Kept for the way back, where it is the input of the common B.
        self.z_TR = (self.z_TR * self.scale).to(out_TD.dtype)
        self.products.add_linear(out_TD[self.rows], self.z_TR, self.weights.b_down[0])

    def start_back(self, dout_TD: Tensor) -> None:
        """Sends the gradient of the sum through the common B, before single experts need it."""
        dout_TD = dout_TD[self.rows]
        self.dz_TR = self.products.matmul(dout_TD, self.weights.b_down[0]).mul_(self.scale)
        # In fp32, as a token's experts are summed here; and made only now, since a pass without a way back has no need
        # of it.
        self.dh_TR = torch.zeros(self.h_TR.shape, device=dout_TD.device)
        if self.grad is not None:
            self.grad.b_down[0].add_(dout_TD.T @ self.z_TR)

    def down_back(
        self, run: Run, rows: slice, inner_NF: Tensor, weight_N: Tensor, dout_ND: Tensor, dinner_NF: Tensor
    ) -> None:
        """Takes the row's gradient from `start_back`, so that only A of the expert itself is left to pass."""
        dq_NR = self.dz_TR[self._own(run, rows)]
        self._a_down_back(run.expert, inner_NF[rows], weight_N[rows, None], dq_NR, dinner_NF[rows])

    def gate_up_back(self, run: Run, rows: slice, x_TD: Tensor, dgate_up_NO: Tensor, dx_ND: Tensor) -> None:
        """Gathers the gradient of x · Aᵀ over a token's experts; `finish_back` sends it on to x."""
        own = self._own(run, rows)
        self.dh_TR.index_add_(0, own, self._b_up_back(run.expert, self.h_TR[own], dgate_up_NO[rows]).float())

    def finish_back(self, x_TD: Tensor, dx_TD: Tensor) -> None:
        """Sends the gathered gradient through the common A, once a token, to x and to `grad`."""
        dh_TR = (self.dh_TR * self.scale).to(x_TD.dtype)
        dx_TD[self.rows] += self.products.matmul(dh_TR, self.weights.a_up[0])
        if self.grad is not None:
            self.grad.a_up[0].add_(dh_TR.T @ x_TD[self.rows])

    def _inner(self, run: Run, rows: slice, x_ND: Tensor) -> Tensor:
        return self.h_TR[self._own(run, rows)]

    def _own(self, run: Run, rows: slice) -> Tensor:
        """Where the rows' tokens are among those of the group."""
        return run.tokens_N[rows] - self.start


def expert_lora(group: LoraGroup, layer: int, products: Products, x_TD: Tensor) -> ExpertLora:
    """A group's adapter over the experts of a layer, in the form that it has."""
    form = SharedOuterLora if group.weights.layout.lora.experts == "shared_outer" else ExpertLora
    return form(group, layer, products, x_TD)


def _half(part: int, y_NO: Tensor) -> slice:
    """The columns of the gates (0) or of the ups (1) among those of both."""
    width = y_NO.shape[1] // 2
    return slice(part * width, (part + 1) * width)
