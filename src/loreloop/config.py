"""config: every knob, one frozen tree, read once; unknown keys are refused.

A value comes from the command line, else from the TOML file given with `--config`, else from the default here.
Units are in the names. No logic beyond reading and checking.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import ExpertForm

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a base model is loaded and run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    quantize: Literal["none", "int4"] = "none"  # int4: matrices of 4 bits, embedding and head of 8, in groups of 32
    deterministic: bool = False  # log-probs and samples do not depend on what shares a batch
    threads: int = 0  # 0: one per core
    pack_weights: bool = True  # bf16 weights a second time in the order a CPU multiplies in: faster, twice the memory
    kv_cache_mib: Positive = 1024
    page_tokens: Positive = 16
    max_running_samples: Positive = 256
    prefill_tokens: Positive = 512  # prompt tokens computed per sampling step, at most
    train_tokens: Positive = 512  # rows of a training micro-batch
    kept_tokens: Positive = 2048  # rows up to which a longer one keeps its activations; beyond, they are computed twice
    lora_experts: ExpertForm = "shared_outer"  # of new adapters: what an expert has of its own
    replay_routes: bool = True  # training sends recorded tokens to the experts that sampling chose
    max_lora_rank: Positive = 256
    resident_models: Positive = 2  # training states held in memory; the others wait on disk
    resident_revisions: Positive = 16  # sampler adapters held in memory
    decode_gap_ms: NotNegative = 200  # training pauses for the samples' next tokens this often; 0: only between batches
    image_cache_mib: NotNegative = 512  # what vision towers made of recent images, kept in memory
    snapshot_seconds: Seconds = 30.0  # unsnapshotted engine time that triggers a snapshot


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expiry_seconds: Seconds = 600.0  # without a heartbeat
    poll_hold_seconds: Seconds = 30.0  # a long poll is answered "pending" after this long
    result_ttl_seconds: Seconds = 3600.0
    spool_ttl_seconds: Seconds = 86400.0  # stability records
    spool_mib: Positive = 1024


class LimitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what one request may ask for."""

    body_mib: Positive = 64  # after decompression
    samples_per_request: Positive = 1024
    waiting_samples: Positive = 16384  # per server; beyond it a sample is answered "try again"
    models_per_key: Positive = 256
    kept_responses_mib: NotNegative = 64  # of one key, to be referred to by its next requests; 0: none are kept
    image_mib: Positive = 20  # of one file
    image_megapixels: Positive = 40  # of one image
    request_megapixels: Positive = 1000  # of all different images of one request


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data_dir: str = "~/.local/share/loreloop"
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000  # 0: any free port
    models: tuple[str, ...] = ("smollm2-135m",)
    aliases: dict[str, str] = {}
    image_hosts: tuple[str, ...] = ()  # or host:port, whose images chat requests may name by address
    memory_mib: int = 0  # budget for the base models together; 0: no bound
    engine: EngineConfig = EngineConfig()
    session: SessionConfig = SessionConfig()
    limits: LimitConfig = LimitConfig()

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser()


def load_config(file: str | None, overrides: dict[str, Any]) -> Config:
    """The TOML file with `overrides` (nested like the tree) laid over it."""
    tree = tomllib.loads(Path(file).read_text()) if file else {}
    try:
        return msgspec.convert(_merged(tree, overrides), Config)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The configuration is wrong: {error}. `loreloop serve --help` lists the settings.") from None


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(over[key], dict)}
    return base | over | both
