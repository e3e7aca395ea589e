"""Routed experts in 4 bits on a GPU at Kimi K2's dimensions, against the least time that bytes and products take.

48 of 384 experts, an eighth of the model's; a token uses 8. Either the tokens are those of all eight GPUs, and one of
their choices falls here on average, or all their choices do. Knows no models; part of `bench.gpu`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.rig import Figure, timed
from loreloop.kernels.int4_gpu import FORWARD, Int4GpuGroup, Int4GpuWeight, Tile

FEW = (1, 16, 64, 256)  # tokens whose time should be that of reading the weights
MANY = 8192  # tokens whose time should be that of the products
TURNS = 10  # calls in one graph


@dataclass(frozen=True)
class Shape:
    d_model: int = 7168
    d_expert: int = 2048
    n_experts: int = 48
    top_k: int = 8


TINY = Shape(128, 64, 4, 2)


class Layer:
    """The experts' two products; what is between them is others' work."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape, self.device = shape, torch.device(device)
        self.gate_up = self._group(2 * shape.d_expert, shape.d_model)
        self.down = self._group(shape.d_model, shape.d_expert)

    def _group(self, d_out: int, d_in: int) -> Int4GpuGroup:
        weights = []
        for _ in range(self.shape.n_experts):
            weight = Int4GpuWeight.empty((d_out, d_in), torch.bfloat16, self.device, offsets=False)
            weight.codes.random_(0, 256)
            weight.scales.uniform_(0, 0.01)
            weights.append(weight)
        return Int4GpuGroup(weights)

    def starts(self, n_tokens: int, *, everywhere: bool) -> Tensor:
        """Where each expert's rows start when tokens choose evenly: among all eight GPUs' experts, or among these."""
        n_all = self.shape.n_experts * (8 if everywhere else 1)
        draw = torch.Generator().manual_seed(0)
        ids_TK = torch.rand(n_tokens, n_all, generator=draw).topk(self.shape.top_k).indices
        counts_E = torch.bincount(ids_TK.flatten(), minlength=n_all)[: self.shape.n_experts]
        if not counts_E.sum():
            counts_E[0] = 1  # a token that chose none of these would cost nothing
        return torch.nn.functional.pad(counts_E.cumsum(0), (1, 0)).int().to(self.device)

    def work(self, starts_E1: Tensor, tile: Tile | None = None) -> Callable[[], object]:
        n_rows = int(starts_E1[-1])
        x_ND = torch.randn(n_rows, self.shape.d_model, device=self.device).bfloat16()
        inner_NF = torch.randn(n_rows, self.shape.d_expert, device=self.device).bfloat16()
        return lambda: (self.gate_up.product(x_ND, starts_E1, tile), self.down.product(inner_NF, starts_E1, tile))

    def work_back(self, starts_E1: Tensor) -> Callable[[], object]:
        n_rows = int(starts_E1[-1])
        dout_ND = torch.randn(n_rows, self.shape.d_model, device=self.device).bfloat16()
        dgate_up_NO = torch.randn(n_rows, 2 * self.shape.d_expert, device=self.device).bfloat16()
        return lambda: (self.down.input_grad(dout_ND, starts_E1), self.gate_up.input_grad(dgate_up_NO, starts_E1))

    def least_bytes(self, starts_E1: Tensor) -> int:
        """Weights that have rows read once, rows read and written once."""
        n_rows, n_used = int(starts_E1[-1]), int((starts_E1.diff() > 0).sum())
        weights = [group.first for group in (self.gate_up, self.down)]
        a_pair = sum(w.codes.numel() + 2 * w.scales.numel() for w in weights)
        return n_used * a_pair + n_rows * sum(2 * (w.d_in + w.d_out) for w in weights)

    def flops(self, starts_E1: Tensor) -> int:
        return 2 * int(starts_E1[-1]) * 3 * self.shape.d_model * self.shape.d_expert


def kernel_seconds(work: Callable[[], object], device: str) -> float:
    """Median of five. On a GPU calls are replayed from a graph: what the host does beside them is not measured."""
    work()
    if device != "cuda":
        return timed(work)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(TURNS):
            work()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    replay()
    return statistics.median(timed(replay) for _ in range(5)) / TURNS


def int4_figures(flops: float, bandwidth: float, device: str, *, tiny: bool) -> Iterator[Figure]:
    layer = Layer(TINY if tiny else Shape(), device)
    for everywhere, where in ((True, "of eight GPUs"), (False, "of one GPU")):
        for n_tokens in (1, 16) if tiny else FEW:
            starts_E1 = layer.starts(n_tokens, everywhere=everywhere)
            share = layer.least_bytes(starts_E1) / bandwidth / kernel_seconds(layer.work(starts_E1), device)
            yield Figure(f"{n_tokens} tokens {where}: of bytes", share, "x", at_least=0.6)
        n_tokens = 40 if tiny else MANY
        starts_E1 = layer.starts(n_tokens, everywhere=everywhere)
        least = layer.flops(starts_E1) / flops
        share = least / kernel_seconds(layer.work(starts_E1), device)
        yield Figure(f"{n_tokens} tokens {where}: of products", share, "x", at_least=0.4)
        share = least / kernel_seconds(layer.work_back(starts_E1), device)
        yield Figure(f"{n_tokens} tokens {where}, back: of products", share, "x")


def tile_times(device: str, *, tiny: bool) -> list[str]:
    """Each forward tile at several numbers of rows, a line each: what `sheets.FORWARD` is to be chosen by."""
    layer = Layer(TINY if tiny else Shape(), device)
    lines = []
    for n_tokens in (1, 16) if tiny else (*FEW, 1024, MANY):
        starts_E1 = layer.starts(n_tokens, everywhere=False)
        rows = int(starts_E1[-1]) / layer.shape.n_experts
        for tile in FORWARD.values():
            seconds = kernel_seconds(layer.work(starts_E1, tile), device)
            lines.append(f"{rows:8.1f} rows an expert, {tile}: {seconds * 1e6:.0f} us")
    return lines
