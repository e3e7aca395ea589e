"""Training operations and their results, as they are journaled and as they cross the link.

An operation belongs to one model and one place in its order (`seq_id`). Token alignment:
position i of `Datum.chunks` predicts `target_tokens[i]`; the client has already shifted.
Every per-token input has length N (the number of input positions) or shape (N, K).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from loreloop.protocol.tensors import Tensor
from loreloop.protocol.token_ids import TokenIds, join_ids, n_ids, no_ids


class TextChunk(msgspec.Struct, frozen=True, tag="text"):
    """A stretch of token ids; its length is their number."""

    tokens: TokenIds

    def __len__(self) -> int:
        return n_ids(self.tokens)


class ImageChunk(msgspec.Struct, frozen=True, tag="image"):
    """`expected_tokens` is what the client counted; once the chunk has been checked, it is the true number."""

    data: bytes
    format: str  # as the client calls it: png, jpeg
    expected_tokens: int | None = None
    width: int | None = None  # override_dimensions
    height: int | None = None

    def __len__(self) -> int:
        return self.expected_tokens or 0

    # An image that was not counted yet has the length 0, and would otherwise be false where chunks are looked for.
    def __bool__(self) -> bool:
        return True


Chunk = TextChunk | ImageChunk


def length_of(chunks: Sequence[Chunk]) -> int:
    """How many positions checked chunks take together."""
    return sum(len(chunk) for chunk in chunks)


def all_ids(chunks: Sequence[Chunk]) -> TokenIds:
    """The ids of all positions; -1 where an image is."""
    return join_ids(chunk.tokens if isinstance(chunk, TextChunk) else no_ids(len(chunk)) for chunk in chunks)


FREE_ROUTE = b"\xff\xff"  # -1


class Span(msgspec.Struct, frozen=True):
    """`length` positions that came from `offset` of a sampled sequence: its prompt, or its output (`sampled`)."""

    sequence_id: str
    offset: int
    length: int
    sampled: bool


class Datum(msgspec.Struct, frozen=True):
    """One sequence to learn from. `sampled_spans` are (start, stop) target positions that the sampler drew,
    None where the client gave no provenance. `routes` are the experts that a sampler's tokens went to: int16, by
    position, layer that routes, and choice; -1 where the router decides."""

    chunks: tuple[Chunk, ...]
    inputs: dict[str, Tensor]
    sampled_spans: tuple[tuple[int, int], ...] | None = None
    routes: bytes | None = None


ExpertForm = Literal["shared_outer", "per_expert"]


class LoraSpec(msgspec.Struct, frozen=True):
    """Where an adapter sits. Of routed experts each has two matrices of its own (`per_expert`), or (`shared_outer`)
    only the one on the side of its inner width, the other being common to all."""

    rank: int
    seed: int  # of the first values; the same seed gives the same adapter
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True
    experts: ExpertForm = "shared_outer"


class AdamParams(msgspec.Struct, frozen=True):
    """AdamW: decoupled decay; `grad_clip_norm` is a bound on the global L2 norm, 0 or less means none."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12  # added to the root of the second moment, outside of the root
    weight_decay: float = 0.0  # times the learning rate, taken off the parameter
    grad_clip_norm: float = 0.0


class OpBase(msgspec.Struct, frozen=True):
    """What all training operations have: the model, the place in its order, and the id under which the result is
    asked for."""

    model_id: str
    seq_id: int  # 0 creates the model; then 1, 2, … without gaps
    request_id: str


class CreateModel(OpBase, frozen=True, tag="create_model"):
    """A fresh adapter, or (with `load_folder`) one from a checkpoint, its moments included if `load_optimizer`."""

    lora: LoraSpec
    load_folder: str | None = None
    load_optimizer: bool = False


class ForwardBackward(OpBase, frozen=True, tag="forward_backward"):
    """Adds the gradient of a summed loss to the model's gradient, or (`forward_only`) leaves it alone."""

    data: tuple[Datum, ...]
    loss_fn: str
    loss_config: dict[str, float]  # the loss's own parameters by name
    forward_only: bool = False


class OptimStep(OpBase, frozen=True, tag="optim_step"):
    """Moves the model's parameters by its gathered gradient, which is zero afterwards."""

    adam: AdamParams


class SaveState(OpBase, frozen=True, tag="save_state"):
    """Writes adapter and moments to `folder` (a PEFT folder plus `optimizer.safetensors`)."""

    folder: str


class SaveSampler(OpBase, frozen=True, tag="save_sampler"):
    """Writes an immutable revision to `folder` and makes it servable as `revision_id`.

    One that lives no longer than its session need not be `durable`: it outlives processes, not a loss of power.
    """

    folder: str
    revision_id: str
    durable: bool = True


AGE_SUFFIX = ".age"


class SaveExternal(OpBase, frozen=True, tag="save_external"):
    """Writes the adapter alone to `folder`, in peft's own arrangement, to be downloaded; each file is encrypted for
    the `age_recipients`, if there are any, and its name then ends in `AGE_SUFFIX`."""

    folder: str
    age_recipients: tuple[str, ...] = ()


class LoadState(OpBase, frozen=True, tag="load_state"):
    """Replaces the model's adapter by a checkpoint's, and its optimizer state too where `optimizer` says so."""

    folder: str
    optimizer: bool


class SkipSeq(OpBase, frozen=True, tag="skip"):
    """A sequence id that was used up by a refused request, so that later ones need not wait for it."""


TrainOp = CreateModel | ForwardBackward | OptimStep | SaveState | SaveSampler | SaveExternal | LoadState | SkipSeq


class PassResult(msgspec.Struct, frozen=True, tag="pass"):
    """Per datum, its outputs by name (always `logprobs`, in the shape of `target_tokens`);
    metric keys are `name:reduction` and always hold `loss:sum`."""

    outputs: tuple[dict[str, Tensor], ...]
    metrics: dict[str, float]


class StepResult(msgspec.Struct, frozen=True, tag="step"):
    """The end of an optimizer step; metrics are named as in `PassResult`."""

    metrics: dict[str, float]


class SavedResult(msgspec.Struct, frozen=True, tag="saved"):
    """`sums_crc32` is the checksum of the list of checksums beside the files, empty where there is none."""

    size_bytes: int  # of all files together
    sums_crc32: str = ""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Nothing to say but that it happened."""


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """`category` is `user` or `server`, as in `protocol.errors`; `passing` is trouble that says nothing of the
    operation itself, so that a later try may succeed."""

    category: str
    message: str
    passing: bool = False


OpResult = PassResult | StepResult | SavedResult | Done | Failure
