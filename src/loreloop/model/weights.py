"""Every tensor of a decoder: its role, its shape, and the published tensors that fill its rows.

Follows from a spec and a family's names alone. Knows no files and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loreloop.model.families.family import WeightNames
from loreloop.model.lora import SiteShape, attention_sites, feed_forward_sites
from loreloop.model.spec import DecoderSpec, LatentSpec, MoeSpec


@dataclass(frozen=True)
class Piece:
    """A published tensor, and the rows that it fills."""

    name: str
    rows: slice


@dataclass(frozen=True)
class Weight:
    """One tensor of the decoder. Routers that score in fp32 are kept in it; `bits` is what it may be packed into, 0 for
    never."""

    role: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    fp32: bool = False
    bits: int = 0


def decoder_weights(spec: DecoderSpec, names: WeightNames) -> Iterator[Weight]:
    """Every weight of the decoder, in the order of its layers; of experts those that are here. Roles are unique; a
    fused one has several pieces."""
    # Embedding and head keep 8 bits where other matrices go to 4: an error in them reaches every token's logits.
    yield _whole("embedding", names.embedding, (spec.vocab_size, spec.d_model), bits=8)
    yield _whole("final_norm", names.final_norm, (spec.d_model,))
    if not spec.tie_embeddings:
        yield _whole("head", names.head, (spec.vocab_size, spec.d_model), bits=8)
    for layer in range(spec.n_layers):
        yield from _layer(spec, names, layer)


def _layer(spec: DecoderSpec, names: WeightNames, layer: int) -> Iterator[Weight]:
    for role, width in _vectors(spec):
        yield _whole(f"{layer}.{role}", getattr(names, role).format(layer=layer), (width,))
    sites = attention_sites(spec)
    if spec.latent:
        yield from _latent(spec, spec.latent, names, layer)
    if spec.moe and spec.routes(layer):
        yield from _experts(spec, spec.moe, names, layer)
        if spec.moe.d_shared:
            # The shared expert is an ordinary feed-forward of its own width, under a name of its own.
            sites |= feed_forward_sites(spec, spec.moe.d_shared, "shared.", "mlp.shared_experts")
    else:
        sites |= feed_forward_sites(spec, spec.d_ff)
    for site, shape in sites.items():
        yield _fused(f"{layer}.{site}", shape, names, layer, "weight")
        if _biased(spec, site):
            yield _fused(f"{layer}.{site}.bias", shape, names, layer, "bias")


def _vectors(spec: DecoderSpec) -> Iterator[tuple[str, int]]:
    """The role and width of each vector of a layer: its norms, and what scores of attention have besides."""
    if spec.norms != "after":
        yield from (("attention_norm", spec.d_model), ("feed_forward_norm", spec.d_model))
    if spec.norms != "before":
        yield from (("attention_after", spec.d_model), ("feed_forward_after", spec.d_model))
    if spec.qk_norm == "head":
        yield from (("q_norm", spec.d_head), ("k_norm", spec.d_head))
    elif spec.qk_norm == "whole":
        yield from (("q_norm", spec.d_q), ("k_norm", spec.d_kv))
    if spec.attention.sinks:
        yield "sinks", spec.n_heads


def _biased(spec: DecoderSpec, site: str) -> bool:
    """Whether a site's product has a bias."""
    if site == "qkv":
        return spec.qkv_bias
    return spec.o_bias if site == "o" else spec.mlp_bias and site in ("gate_up", "down")


def _latent(spec: DecoderSpec, latent: LatentSpec, names: WeightNames, layer: int) -> Iterator[Weight]:
    if latent.q_rank is not None:
        yield _whole(f"{layer}.q_a_norm", names.q_a_norm.format(layer=layer), (latent.q_rank,))
        yield _whole(f"{layer}.q_b", names.q_b.format(layer=layer), (spec.n_heads * spec.d_head, latent.q_rank), bits=4)
    yield _whole(f"{layer}.kv_a_norm", names.kv_a_norm.format(layer=layer), (latent.kv_rank,))
    d_up = spec.n_heads * (latent.d_nope + latent.d_value)
    # Never packed: sampling splits this weight by heads and multiplies queries with it directly.
    yield _whole(f"{layer}.kv_b", names.kv_b.format(layer=layer), (d_up, latent.kv_rank))


def _experts(spec: DecoderSpec, moe: MoeSpec, names: WeightNames, layer: int) -> Iterator[Weight]:
    # Families with sigmoid scores publish and compute the router in fp32.
    fp32 = moe.scoring == "sigmoid"
    yield _whole(f"{layer}.router", names.router.format(layer=layer), (moe.n_experts, spec.d_model), fp32=fp32)
    if moe.scoring == "sigmoid":
        yield _whole(f"{layer}.router_bias", names.router_bias.format(layer=layer), (moe.n_experts,), fp32=True)
    if moe.biases:
        yield _whole(f"{layer}.router.bias", names.router_linear_bias.format(layer=layer), (moe.n_experts,))
    for expert in moe.here:
        # Gate and up are published apart and fused here, since both multiply the same input.
        gate, up, down = (names.expert.format(layer=layer, expert=expert, part=part) for part in names.expert_parts)
        yield Weight(f"{layer}.{expert}.gate_up", (2 * moe.d_expert, spec.d_model), _halves(gate, up, moe), bits=4)
        yield _whole(f"{layer}.{expert}.down", down, (spec.d_model, moe.d_expert), bits=4)
        if moe.biases:
            gate, up, down = (names.expert_bias.format(layer=layer, expert=expert, part=p) for p in names.expert_parts)
            yield Weight(f"{layer}.{expert}.gate_up.bias", (2 * moe.d_expert,), _halves(gate, up, moe))
            yield _whole(f"{layer}.{expert}.down.bias", down, (spec.d_model,))


def _halves(gate: str, up: str, moe: MoeSpec) -> tuple[Piece, Piece]:
    """Gates above ups, however they are published."""
    return Piece(gate, slice(0, moe.d_expert)), Piece(up, slice(moe.d_expert, 2 * moe.d_expert))


def _whole(role: str, name: str, shape: tuple[int, ...], *, fp32: bool = False, bits: int = 0) -> Weight:
    return Weight(role, shape, (Piece(name, slice(0, shape[0])),), fp32, bits)


def _fused(role: str, shape: SiteShape, names: WeightNames, layer: int, kind: str) -> Weight:
    """The weights (O, I) or biases (O,) of a site's parts, one under another."""
    pieces = tuple(
        Piece(
            f"{names.projection.format(layer=layer, part=part.name)}.{kind}",
            slice(part.start, part.start + part.d_out),
        )
        for part in shape.parts
    )
    if kind == "weight":
        return Weight(role, (shape.d_out, shape.d_in), pieces, bits=4)
    return Weight(role, (shape.d_out,), pieces)
