"""What the store hands out: rows as frozen values. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec

from loreloop.protocol.episodes import Person
from loreloop.protocol.link import Batch, ModelSnapshot
from loreloop.protocol.paths import CheckpointKind, CheckpointPath
from loreloop.protocol.sampling import Revision
from loreloop.protocol.token_ids import Logprobs, TokenIds
from loreloop.protocol.training import LoraSpec, OpResult, TrainOp

Metadata = dict[str, Any]
Row = TypeVar("Row")
SessionStatus = Literal["active", "finished", "expired"]
DEPLOYMENT_SCOPE = "infer:"  # and a deployment's name
FEEDBACK_SCOPE = "feedback:"  # and a deployment's name


class Page(msgspec.Struct, Generic[Row], frozen=True):
    """One page of a listing, newest first, and how many there are in all."""

    rows: list[Row]
    total: int


class KeyRow(msgspec.Struct, frozen=True):
    """A key without its secret, of which the store has only a hash. `revoked` and `expires` are None where that has
    not happened or never will."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created: float
    revoked: float | None
    expires: float | None = None

    @property
    def deployments(self) -> tuple[str, ...]:
        """Those that it may use whoever owns them."""
        return tuple(s.removeprefix(DEPLOYMENT_SCOPE) for s in self.scopes if s.startswith(DEPLOYMENT_SCOPE))

    @property
    def judged(self) -> tuple[str, ...]:
        """The deployments on whose answers it may give feedback, whoever owns them and whoever asked."""
        return tuple(s.removeprefix(FEEDBACK_SCOPE) for s in self.scopes if s.startswith(FEEDBACK_SCOPE))


class KeyUsage(msgspec.Struct, frozen=True):
    """What a key has used: sample requests and training operations that were done, and their tokens. `last_used` is the
    last time anybody came with the key, whatever for."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    last_used: float = 0.0

    def plus(self, more: KeyUsage) -> KeyUsage:
        """Both together; `last_used` is the later of the two."""
        return KeyUsage(
            requests=self.requests + more.requests,
            prompt_tokens=self.prompt_tokens + more.prompt_tokens,
            generated_tokens=self.generated_tokens + more.generated_tokens,
            trained_tokens=self.trained_tokens + more.trained_tokens,
            last_used=max(self.last_used, more.last_used),
        )


class KeptResponse(msgspec.Struct, frozen=True):
    """`input` is the JSON of a list of items, those that came with `previous` left out; `answer` that of the answer."""

    id: str
    key_id: str
    created: float
    previous: str | None
    input: str
    answer: str

    @property
    def n_bytes(self) -> int:
        """Bytes of both texts in UTF-8, which count against the bound of a key."""
        return len(self.input.encode()) + len(self.answer.encode())


class MemoryName(msgspec.Struct, frozen=True):
    """Which memory: ids belong to a key and to a `user` of it, "" where its requests name none."""

    key_id: str
    user: str
    id: str


class MemoryRow(msgspec.Struct, frozen=True):
    """A kept memory as a list shows it."""

    name: MemoryName
    revision: int
    created: float
    saved: float
    n_bytes: int


class SessionNew(msgspec.Struct, frozen=True):
    """What a client says of itself when it opens a session; nothing depends on it."""

    tags: tuple[str, ...] = ()
    user_metadata: Metadata | None = None
    sdk_version: str | None = None
    project_id: str | None = None
    display_name: str | None = None


class SessionRow(msgspec.Struct, frozen=True):
    """A session of a key; `last_seen` is its last sign of life."""

    id: str
    key_id: str
    created: float
    last_seen: float
    status: SessionStatus
    new: SessionNew


class RunRow(msgspec.Struct, frozen=True):
    """`lost` says why the run's state could not be restored, where that happened."""

    id: str
    session_id: str
    key_id: str
    base_model: str
    lora: LoraSpec
    created: float
    last_request: float
    user_metadata: Metadata | None
    live: bool
    lost: str | None = None


class SamplerRow(msgspec.Struct, frozen=True):
    """`revision_id` and `folder` are None for a sampler of the bare base. `run_id` is set on ephemeral ones."""

    id: str
    session_id: str
    key_id: str
    base_model: str
    model_path: str | None = None
    run_id: str | None = None
    inflight: bool = False
    revision_id: str | None = None
    folder: str | None = None


class CheckpointRow(msgspec.Struct, frozen=True):
    """A checkpoint and the folder of its files, which were all there before the row was written. `sums_crc32` is the
    checksum of their list of checksums, None where there is no list."""

    run_id: str
    kind: CheckpointKind
    name: str
    key_id: str
    folder: str
    created: float
    size_bytes: int
    expires: float | None
    user_metadata: Metadata | None
    sums_crc32: str | None = None
    public: bool = False  # every key that knows its path may read it

    @property
    def path(self) -> CheckpointPath:
        """The checkpoint's name as clients write it."""
        return CheckpointPath(self.run_id, self.kind, self.name)


class Arm(msgspec.Struct, frozen=True):
    """One thing that a deployment answers with: `target` as it was named, and what that was then. `revision` is None
    for a bare base; `base_model` is called as whoever trained on it called it."""

    target: str
    base_model: str
    revision: Revision | None = None


class Split(msgspec.Struct, frozen=True):
    """Who answers: `canary` its share of the users, `main` the others."""

    main: Arm
    canary: Arm | None = None
    canary_percent: float = 0.0

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Those of the two that there are, the main one first."""
        return (self.main, self.canary) if self.canary else (self.main,)


class RecordingRule(msgspec.Struct, frozen=True):
    """What a deployment keeps of its answers, whichever version answers: for how long, how much, with what taken out,
    and what consent means where a request does not say."""

    record: bool = False
    retention_days: float = 30.0
    quota_mib: int = 1024
    redact: tuple[str, ...] = ()
    consent: bool = True


class Deployment(msgspec.Struct, frozen=True):
    """One version of a deployment. `key_id` is the owner's, None where it is everybody's; `by` is who changed it;
    `recording` is the deployment's own, and no version's."""

    name: str
    key_id: str | None
    version: int
    split: Split
    created: float
    by: str
    recording: RecordingRule = RecordingRule()


class PersonArm(msgspec.Struct, frozen=True):
    """What answers one person of a deployment, since when and by whose will."""

    person: Person
    arm: Arm
    created: float
    by: str


class AddCheckpoint(msgspec.Struct, frozen=True, tag="add_checkpoint"):
    """Makes a saved checkpoint exist; its size comes from the operation's result, its expiry counts from then."""

    row: CheckpointRow
    ttl_seconds: float | None


class AddSampler(msgspec.Struct, frozen=True, tag="add_sampler"):
    """Makes an ephemeral sampler exist; an in-flight one takes all in-flight samplers of its run along."""

    row: SamplerRow


# Done in the transaction that records the result of the operation, if it succeeded.
AfterOp = AddCheckpoint | AddSampler


class Acceptance(msgspec.Struct, frozen=True):
    """What is written down beside an operation. `fingerprint` tells a repeated request from another one under the
    same sequence id; `reply` are fields of the answer that are known already."""

    base_model: str
    fingerprint: str
    after: tuple[AfterOp, ...] = ()
    reply: dict[str, str] = {}
    created: float | None = None  # when it was accepted, for traces


class Outcome(msgspec.Struct, frozen=True):
    """The end of a training operation."""

    result: OpResult
    reply: dict[str, str]


class SequenceRecord(msgspec.Struct, frozen=True):
    """What a sampler did in one sequence: ids of prompt and output, log-probabilities, and, where there are experts,
    routes (as in `protocol.training.Datum`)."""

    prompt: TokenIds
    tokens: TokenIds
    logprobs: Logprobs
    revision_id: str | None
    base_model: str = ""
    routes: bytes | None = None


class DamagedOp(msgspec.Struct, frozen=True):
    """An operation that is still needed and cannot be read. `executed`: its effect on the model's state is needed
    too."""

    request_id: str
    model_id: str
    executed: bool
    reason: str


class ReplayState(msgspec.Struct, frozen=True):
    """What a restarted engine needs: snapshots, the batches after them, and all operations that are still needed; and
    those of them that are damaged, with which nothing can be replayed yet."""

    snapshots: tuple[ModelSnapshot, ...]
    batches: tuple[Batch, ...]
    ops: tuple[TrainOp, ...]
    next_plan_no: int
    damaged: tuple[DamagedOp, ...] = ()


class ToolServer(msgspec.Struct, frozen=True):
    """An MCP server by the name that requests use: a command to start, or a URL."""

    name: str
    command: tuple[str, ...] | None
    url: str | None


class ToolCallRecord(msgspec.Struct, frozen=True):
    """One call of a registered tool; `outcome` is ok, error or timeout."""

    server: str
    tool: str
    key_id: str
    request_id: str
    arguments: str
    outcome: str
    output_bytes: int
    seconds: float
    created: float
