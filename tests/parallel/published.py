"""What ranks of Kimi K2 Thinking and of Qwen3-VL-235B hold and say, by the published numbers of their configurations
alone: written out here a second time, so that the package's formulas are held to something."""

from dataclasses import dataclass
from math import comb

from loreloop.parallel.footprint import Footprint

ROWS, CACHED, RANK = 4096, 128 * 1024, 32


@dataclass(frozen=True)
class Rank:
    """A rank among so many of each axis, with a stage's layers; the first stages have the embedding, the last the head;
    so many micro-batches are under way. `cuts_rows`: of `sp`."""

    tp: int = 1
    ep: int = 1
    routed: int = 60
    dense: int = 1
    embedding: bool = True
    head: bool = True
    under_way: int = 1
    cuts_rows: bool = False

    @property
    def layers(self) -> int:
        return self.routed + self.dense


def kimi(at: Rank) -> Footprint:
    """61 layers, 7168 wide; 384 experts in 4 bits, 2048 wide; one dense layer; latent attention of 64 heads."""
    d, f, tp, share = 7168, 2048, at.tp, at.tp * at.ep
    latents = d * (1536 + 576) + (1536 * 64 * 192 + 512 * 64 * 256 + 64 * 128 * d) // tp
    norms = at.layers * (2 * d + 1536 + 512) + d
    ends = (at.embedding + at.head) * 163840 * d // tp
    plain = ends + norms + at.layers * latents + (at.routed * 3 * d * f + at.dense * 3 * d * 18432) // tp
    attention = at.layers * (2 * d + 1536 + 576 + 8192 // tp + d)
    experts = at.routed * (3 * d + 384 * 3 * f // share)
    narrow = at.routed * (3 * d + 3 * f // tp) + at.dense * (3 * d + 3 * 18432 // tp)
    adapter = RANK * (attention + experts + narrow + at.head * (d + 163840 // tp))
    stream = (1 / tp if at.cuts_rows else 1) * 4 + 2
    heads = 64 // tp
    row = 2 * d * stream + 2 * (2 * 1536 + 2 * 576 + heads * (256 + 3 * 192 + 128)) + 64 * 3
    routed = row + 384 * 4 + 8 * 12 + 4 + 2 / at.ep * (8 * 2 * f + 3 * f) / tp + 64 * 6
    dense = row + 2 * 3 * 18432 / tp + 64 * 3
    return Footprint(
        experts=at.routed * 384 * 3 * d * f // share * 18 // 32,
        weights=2 * plain + 4 * at.routed * 384 * (d + 1),
        adapter=6 * adapter,
        moments=8 * adapter,
        gradient=4 * adapter,
        cache=CACHED * at.layers * (512 + 64) * 2,
        inputs=at.under_way * ROWS * at.layers * d * 4 // (tp if at.cuts_rows else 1),
        layer=round(ROWS * max(routed, dense * bool(at.dense))),
    )


def qwen(at: Rank) -> Footprint:
    """94 layers, 4096 wide, all routed: 128 experts, 1536 wide, in bf16; 64 heads of queries and 4 of keys."""
    d, f, tp, share, layers = 4096, 1536, at.tp, at.tp * at.ep, at.routed
    keys = max(4 // tp, 1) * 128
    attention = d * (64 * 128 // tp + 2 * keys) + 64 * 128 // tp * d
    norms = layers * (2 * d + 2 * 128) + d
    ends = (at.embedding + at.head) * 151936 * d // tp
    adapter = layers * (3 * d + 64 * 128 // tp + 2 * keys + 64 * 128 // tp + d)
    adapter += layers * (3 * d + 128 * 3 * f // share)
    adapter = RANK * (adapter + at.head * (d + 151936 // tp))
    stream = (1 / tp if at.cuts_rows else 1) * 4 + 2
    row = 2 * d * stream + 2 * (3 * 64 * 128 // tp + 3 * keys) + 64 * 4
    row += 128 * 4 + 8 * 12 + 4 + 2 / at.ep * 8 * 2 * f / tp + 64 * 3
    return Footprint(
        experts=2 * layers * 128 * 3 * d * f // share,
        weights=2 * (ends + norms + layers * (attention + 128 * d)),
        adapter=6 * adapter,
        moments=8 * adapter,
        gradient=4 * adapter,
        cache=CACHED * layers * 2 * keys * 2,
        inputs=at.under_way * ROWS * layers * d * 4 // (tp if at.cuts_rows else 1),
        layer=round(ROWS * row),
    )


@dataclass(frozen=True)
class Sent:
    """What a rank sends, in bytes: in a micro-batch along each axis, in an optimizer's step, and in a step of sampling
    in which 32 rows draw."""

    tp: float
    ep: float
    pp: float
    step: float
    sampling: float


def kimi_sends(at: Rank) -> Sent:
    """Activations are computed twice. Of a pipeline it is a stage that stands in the middle, with routed layers."""
    d, f, tp, ep, n_pipe = 7168, 2048, at.tp, at.ep, at.layers < 61
    ring = (tp - 1) / tp
    passes, scored = 6 * at.layers + at.embedding, ROWS * at.head
    summed = 4 * d * (passes * ROWS + scored)
    gathered = 8 * tp * scored
    if at.cuts_rows:
        within = ring * (2 * 4 * d * scored + (2 + 4) * d * passes * ROWS + gathered)
    else:
        within = ring * (2 * summed + gathered)
    untouched = comb(384 - 384 // ep, 8) / comb(384, 8)

    def exchanged(rows: int) -> float:
        home = -(-rows // ep)
        return 2 * d * ((rows - home) * (1 - untouched) + home * (ep - 1)) if ep > 1 else 0

    copied = at.layers * (2 * d + 1536 + 576 + d) + at.routed * 6 * d + at.dense * 3 * d + at.head * d
    outer = at.routed * (3 * d + 3 * d + 3 * f // tp)
    step = ring * 2 * 4 * RANK * copied + (ep - 1) / ep * 2 * 4 * RANK * outer
    drawn = ring * (2 * 4 * d * (2 * at.layers + at.embedding) * 32 + 2 * 163840 * 32 * at.head)
    return Sent(
        tp=within,
        ep=3 * at.routed * exchanged(ROWS),
        pp=2 * ROWS * d * 4 if n_pipe else 0,
        step=step,
        sampling=drawn + at.routed * exchanged(32) + (32 * d * 4 if n_pipe else 0),
    )
