"""The products of a training step timed alone, at their shapes, with the model's own weights: what cannot be saved.

Base forward and input gradient, head, LoRA, attention; no norms, no gates, no loss, no bookkeeping.

Legend: T rows of a micro-batch, I inputs, O outputs, R rank, P parts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.engine.local import LocalEngine
from loreloop.engine.training.packing import Segment
from loreloop.engine.training.tree_attention import TreeAttention
from loreloop.engine.training.tree_backward import Attended, tree_gradients
from loreloop.model.linear import BaseLinear
from loreloop.model.lora import UNEMBED, AdapterView


def step_products(running: LocalEngine, lengths: Sequence[int], model: str = "m") -> None:
    """One micro-batch of causal sequences of these lengths, forward and backward."""
    decoder, weights = running.decoder, running.bank.get(model).weights
    n_rows = sum(lengths)
    for layer in range(decoder.spec.n_layers):
        for site, base in _sites(running, layer):
            _linear(n_rows, base, weights, layer, site)
        _attention(running, lengths)
    head = decoder.head
    x_TD = torch.randn(n_rows, head.d_in).to(decoder.dtype)
    for rows in x_TD.split(running.trainer.head.chunk_rows):
        logits_TV = head.forward(rows)
        logits_TV @ head.weight_OI
    if weights.layout.has(decoder.spec.n_layers, UNEMBED):
        for rows in x_TD.split(running.trainer.head.chunk_rows):
            head.forward(rows)  # the logits are made again in the backward pass
            _lora(rows, logits_TV[: len(rows)], weights, decoder.spec.n_layers, UNEMBED)


def _sites(running: LocalEngine, layer: int) -> list[tuple[str, BaseLinear]]:
    parts = running.decoder.layers[layer]
    attention, mlp = parts.attention, parts.feed_forward
    return [("qkv", attention.qkv), ("o", attention.o), ("gate_up", mlp.gate_up), ("down", mlp.down)]  # type: ignore[attr-defined]


def _linear(n_rows: int, base: BaseLinear, weights: AdapterView, layer: int, site: str) -> None:
    x_TI = torch.zeros(n_rows, base.d_in, dtype=base.weight_OI.dtype)
    y_TO = base.forward(x_TI)
    y_TO @ base.weight_OI
    _lora(x_TI, y_TO, weights, layer, site)


def _lora(x_TI: Tensor, y_TO: Tensor, weights: AdapterView, layer: int, site: str) -> None:
    a_PRI, rank = weights.a(layer, site), weights.layout.rank
    h_TPR = F.linear(x_TI, a_PRI)
    for index, b_OR in enumerate(weights.b(layer, site)):
        h_TR = h_TPR[:, index * rank : (index + 1) * rank]
        dy_TO = y_TO[:, : b_OR.shape[0]]
        F.linear(h_TR, b_OR)
        dy_TO @ b_OR
        dy_TO.T @ h_TR
    h_TPR.T @ x_TI
    h_TPR @ a_PRI


def _attention(running: LocalEngine, lengths: Sequence[int]) -> None:
    spec, decoder, stops = running.decoder.spec, running.decoder, np.cumsum(lengths).tolist()
    segments = [Segment(stop - length, stop, -1) for stop, length in zip(stops, lengths, strict=True)]
    tree = TreeAttention(running.trainer.attention, segments, decoder.device)
    q, k, v = (
        torch.zeros(stops[-1], n, spec.d_head, dtype=decoder.dtype)
        for n in (spec.n_heads, spec.n_kv_heads, spec.n_kv_heads)
    )
    o = tree.outputs(q, k, v)
    tree_gradients(Attended(q, k, v, o), o, tree.blocks(None))


def decode_products(running: LocalEngine, n_rows: int) -> None:
    """The base products of one decoding step, head included."""
    with torch.no_grad():
        for layer in range(running.decoder.spec.n_layers):
            for _, base in _sites(running, layer):
                base.forward(torch.zeros(n_rows, base.d_in, dtype=base.weight_OI.dtype))
        head = running.decoder.head
        head.forward(torch.zeros(n_rows, head.d_in, dtype=head.weight_OI.dtype))


def library_products(running: LocalEngine, n_rows: int) -> Callable[[], None]:
    """The same by the tensor library's products, their weights packed for it beforehand."""
    ops = torch.ops.mkldnn
    layers = range(running.decoder.spec.n_layers)
    bases = [base for layer in layers for _, base in _sites(running, layer)] + [running.decoder.head]
    packed = [(ops._reorder_linear_weight(base.weight_OI, n_rows), base.d_in) for base in bases]
    x_TI = {d_in: torch.zeros(n_rows, d_in, dtype=torch.bfloat16) for _, d_in in packed}

    def multiply() -> None:
        with torch.no_grad():
            for weight, d_in in packed:
                ops._linear_pointwise(x_TI[d_in], weight, None, "none", [], "")

    return multiply
