"""How many bytes the ranks of a tensor group say to one another, by formula; a test holds it to what is measured.

Counted as `collectives.SENT` counts: the bytes of a summed tensor in fp32, of a gathered one as every rank has it
afterwards, of a scattered sum as every rank has it before. Knows no processes.

Legend: T rows of a micro-batch, S rows of a rank filled up to a whole number, U scored pairs, D model width, R ranks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch

from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.mesh import Axis
from loreloop.parallel.shares import Share
from loreloop.parallel.vocabulary import vocabulary_borders

FP32 = 4
PARTS = 2  # of a layer: attention and feed-forward


@dataclass(frozen=True)
class Work:
    """A micro-batch or a step of sampling: its rows T, the pairs U that are scored (or the rows that draw), the targets
    of each, the bytes of a number in the compute dtype, and whether activations are computed twice."""

    rows: int
    pairs: int
    targets: int = 1
    n_bytes: int = 2
    recomputed: bool = False


def training_bytes(spec: DecoderSpec, n_ranks: int, work: Work, *, cuts_rows: bool = False) -> Counter[str]:
    """A micro-batch there and back, without the optimizer's step."""
    rows = -(-work.rows // n_ranks) * n_ranks if cuts_rows else work.rows
    numbers, passes = rows * spec.d_model, len(spec.layers) * PARTS
    forward, backward = passes * (2 if work.recomputed else 1), passes
    said: Counter[str] = Counter()
    if cuts_rows:
        # There: rows are gathered and the sum is scattered. Back: the other way round.
        said["gather"] += (forward + backward + 1) * numbers * work.n_bytes  # and the final norm's rows, there alone
        said["scatter"] += (forward + backward + 1) * numbers * FP32  # and the embeddings
    else:
        said["sum"] += (forward + backward + 1) * numbers * FP32  # and the embeddings
    if spec.qk_norm == "whole":
        # Of queries and of keys, one number a row: there, and its gradient.
        said["sum"] += len(spec.layers) * 2 * work.rows * FP32 * (3 if work.recomputed else 2)
    said["gather"] += n_ranks * work.pairs * (1 + work.targets) * FP32
    said["sum"] += work.pairs * spec.d_model * FP32
    return said


def step_bytes(share: Share, layout: LoraLayout, n_ranks: int, axis: Axis = "tp") -> Counter[str]:
    """An optimizer's step: the gradients of factors that `n_ranks` ranks along an axis hold copies of. `layout` is that
    of the rank's adapter."""
    # On the meta device an adapter of any size has shapes and no numbers.
    view = AdapterView(layout, torch.empty(layout.size, device="meta"))
    n_numbers = sum(matrix.numel() for matrix in share.matrices(view, axis, "partial"))
    n_numbers += sum(n_ranks // rows.copies * rows.rows.numel() for rows in share.shared(view, axis))
    return Counter({"sum": n_numbers * FP32})


def sampling_bytes(spec: DecoderSpec, n_ranks: int, work: Work) -> Counter[str]:
    """A step of sampling; `pairs` are its rows that draw. Their logits are gathered whole."""
    widest = max(stop - start for start, stop in pairwise(vocabulary_borders(spec.vocab_size, n_ranks)))
    said: Counter[str] = Counter()
    said["sum"] += (len(spec.layers) * PARTS + 1) * work.rows * spec.d_model * FP32
    if spec.qk_norm == "whole":
        said["sum"] += len(spec.layers) * 2 * work.rows * FP32
    said["gather"] += n_ranks * work.pairs * widest * work.n_bytes
    return said


def on_the_wire(said: Counter[str], n_ranks: int) -> float:
    """Bytes that each rank sends where collectives go round a ring (Patarasuk and Yuan 2009); an exchange and a
    hand-over count what is sent already."""
    ring = (n_ranks - 1) / n_ranks * (2 * said["sum"] + said["gather"] + said["scatter"])
    return ring + said["exchange"] + said["hand"]
