"""How many bytes a layer keeps of its way forward for the way back, from a spec alone: nothing is computed.

Follows what the layers of `model/` save, tensor by tensor; a test holds it to what autograd is measured to keep. Knows
no processes: of a cut layer, the local spec is asked.
"""

from __future__ import annotations

from loreloop.model.lora import site_shapes
from loreloop.model.spec import DecoderSpec, LatentSpec, MoeSpec
from loreloop.protocol.training import LoraSpec

STATE_BYTES = 4  # fp32, in which the residual stream and scores are
ID_BYTES = 8


def kept_a_row(spec: DecoderSpec, lora: LoraSpec, layer: int, n_bytes: int, stream_share: float = 1.0) -> float:
    """Bytes that a layer keeps of one row, its input among them. `n_bytes` is the size of a number in the compute
    dtype, `stream_share` the part of the residual stream's rows that is here. Of routed experts the even share of those
    that are here counts."""
    # The residual stream before both parts, and their normed inputs.
    kept = 2.0 * spec.d_model * (stream_share * STATE_BYTES + n_bytes)
    attention = _latent(spec, spec.latent) if spec.latent else _grouped(spec)
    kept += n_bytes * attention
    if spec.moe and spec.routes(layer):
        kept += _routed(spec.moe, n_bytes)
    else:
        kept += n_bytes * 3 * spec.d_ff  # gates, ups, and what goes into `down`
    return kept + _inner(spec, lora, layer, n_bytes)


def _grouped(spec: DecoderSpec) -> int:
    """The fused product, turned queries and keys, and what attention gives."""
    return (spec.d_q + 2 * spec.d_kv) + (spec.d_q + spec.d_kv) + spec.d_attended


def _latent(spec: DecoderSpec, latent: LatentSpec) -> int:
    """The first products, latents as keys take them, keys and values by head, and what attention gives."""
    heads = spec.n_heads
    queries = heads * spec.d_head if latent.q_rank is None else 2 * latent.q_rank  # as they come, and normed
    latents = 2 * (latent.kv_rank + latent.d_rope)
    expanded = heads * (latent.d_nope + latent.d_value)
    # Values are filled up to the width of keys, as attention's kernels want them.
    return queries + latents + expanded + 3 * heads * spec.d_head + spec.d_attended


def _routed(moe: MoeSpec, n_bytes: int) -> float:
    """Scores and choices, and the gates and ups of experts, of which all else is computed again."""
    choices = moe.n_experts * STATE_BYTES + moe.top_k * (STATE_BYTES + ID_BYTES) + moe.normalize * STATE_BYTES
    # The shared expert is computed for as large a share of the rows as of the routed ones is here.
    share = len(moe.here) / moe.n_experts
    return choices + n_bytes * share * (moe.top_k * 2 * moe.d_expert + 3 * moe.d_shared)


def _inner(spec: DecoderSpec, lora: LoraSpec, layer: int, n_bytes: int) -> float:
    """x · Aᵀ of each site. Of routed experts, it is kept where all have one A."""
    kept = 0.0
    for site, shape in site_shapes(spec, lora, layer).items():
        if not site.startswith("experts.") or lora.experts == "shared_outer":
            kept += n_bytes * lora.rank * len(shape.parts)
    return kept
