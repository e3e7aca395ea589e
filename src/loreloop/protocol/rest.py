"""JSON bodies of the Tinker protocol, as the SDK sends them. Unknown fields of newer clients are let pass, but for
sampling parameters, where an ignored one would change what comes out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.training import AdamParams

# Bounds here are those of the wire and of 32-bit arithmetic; what a model can take is checked against the model later,
# where the message can say more.
NonNegative = Annotated[int, Meta(ge=0, lt=1 << 31)]
TokenId = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
SeqId = Annotated[int, Meta(ge=0, lt=1 << 62)]
TtlSeconds = Annotated[int, Meta(ge=1, le=315_360_000)]  # ten years


class CreateSession(msgspec.Struct, frozen=True):
    """Opens a session; every field is for whoever lists sessions later, and none changes a result."""

    tags: tuple[str, ...] = ()
    user_metadata: dict[str, Any] | None = None
    sdk_version: str | None = None
    project_id: str | None = None
    display_name: str | None = None


class Heartbeat(msgspec.Struct, frozen=True):
    """A sign of life, without which a session expires."""

    session_id: str


class FinishReason(msgspec.Struct, frozen=True):
    """How a client's work went: `success`, or whatever else the client calls it."""

    type: str = "success"


class FinishSession(msgspec.Struct, frozen=True):
    """Ends a session at once, without waiting for its expiry."""

    reason: FinishReason = FinishReason()
    detail: str | None = None


class SessionProject(msgspec.Struct, frozen=True):
    """The project that a session is to belong to."""

    project_id: Annotated[str, Meta(min_length=1, max_length=200)]


class SearchOwner(msgspec.Struct, frozen=True):
    """Whose sessions: one's own, all that one may see, or those of certain keys."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: Annotated[tuple[str, ...], Meta(max_length=10)] = ()


class SearchStatus(msgspec.Struct, frozen=True):
    """A state that sessions may be in; with `reasons` only those that ended so."""

    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: Annotated[tuple[Literal["success", "errored", "interrupted"], ...], Meta(max_length=8)] | None = None


class SearchCursor(msgspec.Struct, frozen=True):
    """Where the next page begins: behind this session. The moment is for the client alone."""

    last_session_id: str


class SearchSessions(msgspec.Struct, frozen=True):
    """What sessions must have in common with it; every field narrows the search but `session_id` and `display_name`,
    of which one suffices. Each word, pair and id is a condition of its own, and a database takes only so many."""

    session_id: str | None = None
    project_ids: Annotated[tuple[str, ...], Meta(max_length=100)] | None = None
    user_metadata: Annotated[dict[str, str], Meta(max_length=32)] = {}
    display_name: Annotated[str, Meta(min_length=1, max_length=400)] | None = None
    owner: SearchOwner = SearchOwner()
    statuses: Annotated[tuple[SearchStatus, ...], Meta(min_length=1, max_length=16)] | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: SearchCursor | None = None


class LoraConfig(msgspec.Struct, frozen=True):
    """The wanted adapter. A missing `seed` is chosen by the server; whether the rank can be served is checked with
    the model."""

    # A rank that no server takes gets through here, so that the refusal can name the ranks that this one takes.
    rank: Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(msgspec.Struct, frozen=True):
    """The optimizer's kind, of which there is AdamW only."""

    type: str = "adamw"


class CreateModelBody(msgspec.Struct, frozen=True):
    """Asks for a fresh adapter on a base model; `model_seq_id` makes its id, so that a repeated request makes no
    second one."""

    session_id: str
    model_seq_id: SeqId
    base_model: str
    lora_config: LoraConfig
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()


class LoadWeightsBody(msgspec.Struct, frozen=True):
    """Addresses a live model (model_id, seq_id), or creates one (session_id, model_seq_id)."""

    path: str
    optimizer: bool = False  # whether the moments are loaded too
    model_id: str | None = None
    seq_id: SeqId | None = None
    session_id: str | None = None
    model_seq_id: SeqId | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: str | None = None  # a key of the owner of what is loaded


class OptimStepBody(msgspec.Struct, frozen=True):
    """Asks for an optimizer step. `optimizer_params` names an optimizer other than AdamW, and is refused."""

    model_id: str
    seq_id: SeqId
    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class CopyWeightsBody(msgspec.Struct, frozen=True):
    """Asks for a copy of a checkpoint: in a project, or (session_id, model_seq_id) in a session's place."""

    source_path: str
    destination_project_id: str | None = None
    session_id: str | None = None
    model_seq_id: SeqId | None = None
    ttl_seconds: TtlSeconds | None = None
    weights_access_token: str | None = None  # a key of the source's owner


class SaveWeightsBody(msgspec.Struct, frozen=True):
    """Asks for a training checkpoint; `path` is its name alone. With `overwrite` one of the same name is replaced."""

    model_id: str
    seq_id: SeqId
    path: str
    ttl_seconds: TtlSeconds | None = None  # from the end of the save on; None keeps it
    overwrite: bool = False
    user_metadata: dict[str, Any] | None = None


class SaveForSamplerBody(msgspec.Struct, frozen=True):
    """Asks for weights that can be sampled: a checkpoint with the name `path`, or without one an ephemeral sampler
    of this session."""

    model_id: str
    seq_id: SeqId
    path: str | None = None
    sampling_session_seq_id: SeqId | None = None
    kind: str = "snapshot"  # or inflight, which moves the run's other in-flight samplers along
    ttl_seconds: TtlSeconds | None = None
    user_metadata: dict[str, Any] | None = None


class SaveExternalBody(msgspec.Struct, frozen=True):
    """Asks for an adapter to be downloaded, encrypted for the age recipients where any are named."""

    model_id: str
    seq_id: SeqId
    path: str
    ttl_seconds: TtlSeconds | None = None
    age_encryption_recipients: Annotated[tuple[str, ...], Meta(max_length=10)] | None = None


class ModelId(msgspec.Struct, frozen=True):
    """The body of requests that name a run and nothing else."""

    model_id: str


class CreateSamplingSession(msgspec.Struct, frozen=True):
    """Asks for a sampler of a base model, or of the checkpoint `model_path`."""

    session_id: str
    sampling_session_seq_id: SeqId
    base_model: str | None = None
    model_path: str | None = None


class Dimensions(msgspec.Struct, frozen=True):
    """Width and height in pixels, in place of an image's own."""

    width: NonNegative
    height: NonNegative


class PromptChunk(msgspec.Struct, frozen=True):
    """`tokens` for text, what follows for an image; other kinds are recognised by their `type` and refused."""

    # Not a tagged union: an unknown kind must get through to be refused by its name.
    type: str = "encoded_text"
    tokens: tuple[TokenId, ...] = ()
    data: bytes = b""  # base64 in JSON
    format: str = ""
    expected_tokens: NonNegative | None = None
    override_dimensions: Dimensions | None = None


class Prompt(msgspec.Struct, frozen=True):
    """The pieces of a prompt, texts and images, in order."""

    chunks: tuple[PromptChunk, ...]


Penalty = Annotated[float, Meta(ge=-2, le=2)]


class WireSamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stop` None means the end-of-sequence ids; an explicit list takes their place, an empty one disables them.

    What follows `top_p` is ours: at most one of `grammar`, `json_schema` and `regex`; the rest as in `SamplingParams`.
    """

    max_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    seed: int | None = None
    stop: str | tuple[str | TokenId, ...] | None = None
    temperature: Annotated[float, Meta(ge=0)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] = -1
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None


class JsonTensor(msgspec.Struct, frozen=True):
    """A tensor of token ids: dense and row-major, or, with both kinds of indices, in compressed sparse rows."""

    data: tuple[TokenId, ...]
    dtype: str = "int64"
    shape: tuple[NonNegative, ...] | None = None  # of the dense form, whichever form `data` has
    sparse_crow_indices: tuple[NonNegative, ...] | None = None
    sparse_col_indices: tuple[NonNegative, ...] | None = None


class SampleBody(msgspec.Struct, frozen=True):
    """A sampling request; `prompt_logprobs` and the fields after it choose what is reported besides the tokens."""

    prompt: Prompt
    sampling_params: WireSamplingParams
    sampling_session_id: str
    seq_id: SeqId
    num_samples: Annotated[int, Meta(ge=1, lt=1 << 31)] = 1
    prompt_logprobs: bool | None = False
    prompt_logprobs_last_n: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    topk_prompt_logprobs: NonNegative = 0
    topk_sample_logprobs: NonNegative = 0
    prompt_alt_tokens_k: NonNegative = 0
    target_prompt_logprobs: JsonTensor | None = None
    record_stability_info: bool = False  # keeps a record that training can refer to


class RetrieveFuture(msgspec.Struct, frozen=True):
    """Asks for the result of an accepted operation; `allow_metadata_only` changes nothing here."""

    request_id: str
    allow_metadata_only: bool = False


class RequestId(msgspec.Struct, frozen=True):
    """The body of requests that name a request and nothing else."""

    request_id: str


class FuturesTarget(msgspec.Struct, frozen=True):
    """A sampler, and the number of the client's copy that asks."""

    sampling_session_id: str
    cloned_sampler_id: NonNegative = 0


class RetrieveFutures(msgspec.Struct, frozen=True):
    """Asks which samples have ended after `prev_cursor`; without `timeout` the poll is held as long as another.
    `retrieved_request_ids` need not be kept any longer."""

    target: FuturesTarget
    prev_cursor: SeqId = 0
    timeout: Annotated[float, Meta(ge=0)] | None = None
    retrieved_request_ids: tuple[str, ...] = ()


class SamplingSessionId(msgspec.Struct, frozen=True):
    """The body of requests that name a sampler and nothing else."""

    sampling_session_id: str


class WeightsInfoBody(msgspec.Struct, frozen=True):
    """Asks which base model and rank a checkpoint has."""

    tinker_path: str


class TtlBody(msgspec.Struct, frozen=True):
    """A checkpoint's new time to live in seconds from now; null lets it stay for good."""

    ttl_seconds: TtlSeconds | None
