"""A decoder driven without an engine: attention by the plain formula, and the tiny models that the tests compare."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from loreloop.formats.load import load_decoder
from loreloop.model.attention_rules import PLAIN, AttentionRules
from loreloop.model.decoder import Decoder, LatentHeads
from loreloop.model.linear import FastProducts, Products
from loreloop.model.lora import NO_ADAPTERS, Adapters, LoraBatch
from loreloop.model.rope import Rope

CPU = torch.device("cpu")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CASES = {
    "llama-tied": ("llama", {}),
    "llama-untied": ("llama", {"tie_word_embeddings": False}),
    "llama-llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-all-kv-heads": ("llama", {"num_key_value_heads": 4, "num_hidden_layers": 3}),
    "qwen2-tied": ("qwen2", {}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3-tied": ("qwen3", {}),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False}),
}


class PlainAttention:
    """softmax(q · kᵀ / √E, causal) · v for sequences of `lengths` laid end to end."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    def __call__(
        self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rope: Rope, rules: AttentionRules = PLAIN
    ) -> Tensor:
        q_THE, k_TGE = rope.rotate(q_THE), rope.rotate(k_TGE)
        return self._all(q_THE, k_TGE, v_TGE, rules)

    def latent(self, layer: int, q_THE: Tensor, latent_TL: Tensor, heads: LatentHeads, lora: Adapters) -> Tensor:
        return self._all(heads.scaled(q_THE), *heads.expand(latent_TL, lora, layer), PLAIN)

    def _all(self, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rules: AttentionRules) -> Tensor:
        runs = zip(*(t.split(self.lengths) for t in (q_THE, k_TGE, v_TGE)), strict=True)
        return torch.cat([self._one(*run, rules) for run in runs])

    @staticmethod
    def _one(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, rules: AttentionRules) -> Tensor:
        repeats = q_THE.shape[1] // k_TGE.shape[1]
        k_THE, v_THE = k_TGE.repeat_interleave(repeats, 1), v_TGE.repeat_interleave(repeats, 1)
        score_HTT = torch.einsum("qhe,khe->hqk", q_THE, k_THE).float() / q_THE.shape[-1] ** 0.5
        if rules.cap:
            score_HTT = rules.cap * torch.tanh(score_HTT / rules.cap)
        unseen = torch.ones(score_HTT.shape[1:], dtype=torch.bool).triu(1)
        if rules.window:
            unseen |= torch.ones(score_HTT.shape[1:], dtype=torch.bool).tril(-rules.window)
        score_HTT = score_HTT.masked_fill(unseen, float("-inf"))
        if rules.sinks_H is not None:
            sink_HT1 = rules.sinks_H[:, None, None].expand(-1, score_HTT.shape[1], 1)
            score_HTT = torch.cat((score_HTT, sink_HT1), -1)
        weight_HTT = score_HTT.softmax(-1)[..., : len(k_THE)].to(v_THE.dtype)
        return torch.einsum("hqk,khe->qhe", weight_HTT, v_THE)


def load(folder: Path, *, dtype: torch.dtype = torch.float32, products: Products | None = None) -> Decoder:
    return load_decoder(folder, dtype=dtype, device=CPU, products=products or FastProducts())


def hidden(decoder: Decoder, sequences: Sequence[Sequence[int]], lora: LoraBatch = NO_ADAPTERS) -> Tensor:
    """The final hidden states of packed sequences, (T, D)."""
    rope = decoder.rope(torch.cat([torch.arange(len(s)) for s in sequences]))
    attend = PlainAttention([len(s) for s in sequences])
    x_TD = decoder.embed(torch.tensor([token for s in sequences for token in s]))
    x_TD.requires_grad_(lora is not None)  # the base has no gradients, so that only this makes adapters collect theirs
    for layer in range(decoder.spec.n_layers):
        x_TD = decoder.layer(layer, x_TD, rope, attend, lora)
    return decoder.final(x_TD)


def logprobs(decoder: Decoder, sequences: Sequence[Sequence[int]], lora: LoraBatch = NO_ADAPTERS) -> Tensor:
    """(T, V) fp32."""
    return decoder.head.forward(hidden(decoder, sequences, lora)).float().log_softmax(-1)


def tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 512, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def relative_error(own: Tensor, theirs: Tensor) -> float:
    return float((own - theirs).norm() / theirs.norm())
