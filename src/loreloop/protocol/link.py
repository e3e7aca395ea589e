"""The messages between the HTTP process and an engine process.

One frame is a 4-byte big-endian length and the MessagePack of one message. This file does not know sockets.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from loreloop.protocol.images import ImageRules
from loreloop.protocol.sampling import SampleOp, SampleResult, TopK
from loreloop.protocol.training import Failure, OpResult, TrainOp


class EngineInfo(msgspec.Struct, frozen=True):
    """What the HTTP side must know to check requests for a base model."""

    base_model: str
    folder: str  # of the base model's files, on the same machine
    vocab_size: int  # ids from 0 to one below this have a row in the embedding
    context_window: int  # prompt and output together, in tokens
    eos_token_ids: tuple[int, ...]
    max_lora_rank: int
    n_threads: int  # that compute
    precision: Literal["bf16", "fp32"] = "bf16"  # of products and frozen weights
    images: ImageRules | None = None  # None: the model takes text only


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame of an engine's life. `replica` counts those that only sample from 1; 0 is the one that trains.
    `outside`: it stands for a sampler that is not ours, and can only draw tokens after tokens."""

    base_model: str
    info: EngineInfo
    replica: int = 0
    outside: bool = False


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """One executed unit of training: these operations, in this order, in one packing."""

    plan_no: int  # counts the batches of one base model, never given out twice
    request_ids: tuple[str, ...]


class ModelSnapshot(msgspec.Struct, frozen=True):
    """State of a model after every batch up to `plan_no`; `next_seq_id` is the first one it has not executed. `crc32`
    is the file's checksum, empty where none was taken."""

    model_id: str
    plan_no: int
    next_seq_id: int
    file: str  # empty for a model without any state, whose creation failed
    crc32: str = ""


# HTTP process to engine


class Restore(msgspec.Struct, frozen=True, tag="restore"):
    """Second frame of an engine's life: the snapshots to load, then the batches to execute again exactly as they
    were (their operations follow as `Submit` frames before `Restored`). New batches count from `next_plan_no`."""

    snapshots: tuple[ModelSnapshot, ...]
    batches: tuple[Batch, ...]
    next_plan_no: int


class Restored(msgspec.Struct, frozen=True, tag="restored"):
    """All operations of the journal have been submitted; execute the batches of `Restore`, then go on freely."""


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """`alone`: an engine died with this operation in hand, so no other may share its next batch and its blame."""

    op: TrainOp
    alone: bool = False


class Sample(msgspec.Struct, frozen=True, tag="sample"):
    """A sampling request. It is not journaled: after an engine's death the HTTP process sends it again."""

    op: SampleOp


class CancelSample(msgspec.Struct, frozen=True, tag="cancel"):
    """Ends a sampling request early, whether it runs or waits; its `SampleEnd` is then a failure."""

    request_id: str


class DropModel(msgspec.Struct, frozen=True, tag="drop_model"):
    """Forget a model: its state goes, and operations not yet started end as failures."""

    model_id: str


class DropRevision(msgspec.Struct, frozen=True, tag="drop_revision"):
    """Forget a revision's adapter; requests that are running with it still end with it."""

    revision_id: str


class SnapshotRecorded(msgspec.Struct, frozen=True, tag="snapshot_recorded"):
    """The store no longer needs snapshots older than `plan_no`; their files may go."""

    plan_no: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish the running unit, take a last snapshot, exit."""


ToEngine = Restore | Restored | Submit | Sample | CancelSample | DropModel | DropRevision | SnapshotRecorded | Shutdown


# engine to HTTP process


class OpEnd(msgspec.Struct, frozen=True, array_like=True):
    """`n_trained_tokens`: positions of the sequences that a pass learned from; 0 of other operations. `sampler_kl`: how
    far the pass's policy is from whoever drew its tokens, in nats; None where it compares with nobody."""

    request_id: str
    result: OpResult
    n_trained_tokens: int = 0
    sampler_kl: float | None = None


class BatchStarted(msgspec.Struct, frozen=True, tag="batch_started"):
    """These operations are being executed, perhaps once more; if the engine dies now, one may be why."""

    request_ids: tuple[str, ...]


class BatchDone(msgspec.Struct, frozen=True, tag="batch_done"):
    """The plan and the results of one batch: the plan is journaled before a result is released."""

    batch: Batch
    ends: tuple[OpEnd, ...]
    replayed: bool = False


class Snapshotted(msgspec.Struct, frozen=True, tag="snapshotted"):
    """Every model changed since the snapshot before is in `models`; a restart replays batches after `plan_no`."""

    plan_no: int
    models: tuple[ModelSnapshot, ...]


class ModelLost(msgspec.Struct, frozen=True, tag="model_lost"):
    """A model's snapshot cannot be restored; nothing of the model is executed any more."""

    model_id: str
    reason: str


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One drawn token of one of a request's samples, with its log-probability. `topk` is one row of alternatives."""

    sample_index: int  # which of the request's samples
    token: int
    logprob: float
    topk: TopK | None = None
    filtered_logprob: float | None = None  # under the distribution after top_k, top_p, min_p and grammar


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """New tokens of a streaming request."""

    request_id: str
    tokens: tuple[Token, ...]


class SampleEnd(msgspec.Struct, frozen=True, tag="sample_end"):
    """The end of a sampling request; exactly one is sent for each."""

    request_id: str
    result: SampleResult | Failure  # of a stream too, with all its tokens once more


class Queues(msgspec.Struct, frozen=True, tag="queues"):
    """How much waits and runs, sent when it changes."""

    waiting_samples: int  # requests, not their samples
    running_samples: int
    waiting_ops: int  # training operations that have arrived and not run


LOAD_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds


class ColdLoads(msgspec.Struct, frozen=True, array_like=True):
    """Adapters read from disk: how many took up to each of `LOAD_BUCKETS` but longer than the one before (the last
    count: longer than all), how long together, and at most."""

    counts: tuple[int, ...] = (0,) * (len(LOAD_BUCKETS) + 1)
    seconds: float = 0.0  # all loads together
    longest_seconds: float = 0.0


class Meters(msgspec.Struct, frozen=True, tag="meters"):
    """What an engine counts of itself, from the start of its life; sent when it changes, once a second at most."""

    kv_pages: int = 0
    kv_pages_free: int = 0
    resident_revisions: int = 0
    revision_hits: int = 0  # requests whose adapter was in memory already
    revision_evictions: int = 0  # adapters that made room for others
    cold_loads: ColdLoads = ColdLoads()


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """The engine was asked to end, and is about to: its end is no death, and what it has in hand is not to blame."""


FromEngine = Hello | BatchStarted | BatchDone | Snapshotted | ModelLost | Tokens | SampleEnd | Queues | Meters | Leaving
