"""config: every knob, one frozen tree, read once; unknown keys are refused.

A value comes from the command line, else from the TOML file given with `--config`, else from the default here.
Units are in the names. No logic beyond reading and checking.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.errors import WrongSettings
from loreloop.protocol.feedback_rest import Origin
from loreloop.protocol.training import ExpertForm

MOST = 2**31 - 1  # of anything that is counted; beyond it some library's own numbers end
Positive = Annotated[int, Meta(ge=1, le=MOST)]
NotNegative = Annotated[int, Meta(ge=0, le=MOST)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Nats = Annotated[float, Meta(ge=0, le=1e9)]
Text = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z")]
HostName = Annotated[str, Meta(pattern=r"\A[^\s/?#@,]+\Z")]
CodeSandboxWay = Literal["auto", "namespaces", "bubblewrap", "landlock", "limits", "off"]
# What the SDK does in one of two ways, as its server says.
SdkFlag = Literal[
    "parallel_fwdbwd_chunks",
    "pjwt_auth_enabled",
    "proto_compress_fwdbwd",
    "sample_cancel_enabled",
    "sample_enable_stuck_detection",
    "sample_join_sampling_session",
    "sample_no_retries",
    "sample_use_retrieve_futures",
    "use_pyqwest_transport",
]
FLAGS = {  # of `loreloop serve`, by setting
    "data_dir": "--data",
    "host": "--host",
    "port": "--port",
    "models": "--model",
    "aliases": "--alias",
    "memory_mib": "--memory-mib",
    "generation_config": "--generation-config",
    "log_file": "--log-file",
    "verbose": "--verbose",
    "durability": "--durability",
    "engine.mesh": "--mesh",
    "engine.ray": "--ray",
    "engine.replicas": "--replicas",
    "engine.samplers": "--sampler",
    "engine.precision": "--precision",
    "engine.quantize": "--quantize",
    "engine.deterministic": "--deterministic",
    "engine.threads": "--threads",
    "engine.verify_weights": "--verify-weights",
    "engine.decode_gap_ms": "--decode-gap-ms",
}

SHAPES = {  # what a setting's text must look like, where not every text will do
    "host_names": "expected a name such as lora.example.org, without a scheme or a path",
    "page_origins": "expected an origin such as https://app.example.org, without a path, or *",
}

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a base model is loaded and run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where its products are fast, else fp32
    quantize: Literal["none", "int4"] = "none"  # int4: matrices of 4 bits, embedding and head of 8, in groups of 32
    deterministic: bool = False  # log-probs and samples do not depend on what shares a batch
    mesh: str = ""  # such as tp=2: the processes that share each layer of a model; empty: one process
    ray: str = ""  # host:port of the Ray cluster that they are spread over, or auto for this host's; empty: this host
    silence_seconds: Seconds = 120.0  # a mesh that does nothing for so long amid its work is ended; 0: never
    interface: str = ""  # of the network, by which they speak on several hosts; empty: that of the host's address
    replicas: Annotated[int, Meta(ge=0, le=1024)] = 0  # further engines of each model, which only sample
    samplers: tuple[Text, ...] = ()  # addresses of vLLM or SGLang servers of the same model, which sample too
    threads: Annotated[int, Meta(ge=0, le=4096)] = 0  # of each process; 0: one per core, shared by them
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
    verify_weights: bool = False  # an engine compares weights with the checksums of `models add` before it loads them
    snapshot_seconds: Seconds = 30.0  # unsnapshotted engine time that triggers a snapshot
    sampler_kl_alarm_nats: Nats = 0.1  # a run whose trainer is further from its sampler is told; 0: never

    @property
    def n_replicas(self) -> int:
        """Engines of a model that only sample: ours first, then those that stand for samplers outside."""
        return self.replicas + len(self.samplers)


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long sessions, results, records of samples and ended jobs are kept."""

    expiry_seconds: Seconds = 600.0  # without a heartbeat
    poll_hold_seconds: Seconds = 30.0  # a long poll is answered "pending" after this long
    result_ttl_seconds: Seconds = 3600.0
    spool_ttl_seconds: Seconds = 86400.0  # stability records
    spool_mib: Positive = 1024
    job_days: Annotated[int, Meta(ge=0, le=36500)] = 90  # a fine-tuning job is kept after its end; what it made stays


class LimitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what one request may ask for."""

    body_mib: Positive = 64  # after decompression
    samples_per_request: Positive = 1024
    waiting_samples: Positive = 16384  # per server; beyond it a sample is answered "try again"
    models_per_key: Positive = 256
    kept_responses_mib: NotNegative = 64  # of one key, to be referred to by its next requests; 0: none are kept
    image_mib: Positive = 20  # of one file
    image_megapixels: Positive = 40  # of one image
    code_seconds: Positive = 10  # of one call of code from outside, such as a grader's
    request_megapixels: Positive = 1000  # of all different images of one request
    file_mib: Positive = 512  # of one uploaded file
    files_mib: Positive = 4096  # of all files of one key
    running_jobs: NotNegative = 2  # fine-tuning jobs at once; 0: none are taken
    jobs_per_key: Positive = 64  # that are not finished
    feedback_mib: Positive = 1024  # of all that is kept about one deployment's answers
    public_feedback_mib: Positive = 64  # of that, what came by all tokens for pages, or all links, of one key
    target_feedback_mib: Positive = 4  # of that, what one key, its tokens or its links have said of one turn or episode
    target_statements: Positive = 1000  # the same, in number


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole tree of settings; every field can be set in a TOML file, and those in `FLAGS` on the command line
    too."""

    data_dir: Text = "~/.local/share/loreloop"
    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000  # 0: any free port
    host_names: tuple[HostName, ...] = ()  # under which clients come, as behind a proxy, beside this machine's own
    page_origins: tuple[Origin, ...] = ()  # whose pages may ask this server from a browser; "*": all
    models: Annotated[tuple[Text, ...], Meta(min_length=1)] = ("smollm2-135m",)
    aliases: dict[Text, Text] = {}
    generation_config: bool = True  # chats take the sampling defaults of the model's folder
    image_hosts: tuple[Text, ...] = ()  # or host:port, whose images chat requests may name by address
    memory_mib: NotNegative = 0  # budget for the base models together; 0: no bound
    code_sandbox: CodeSandboxWay = "auto"  # what stands around code from outside; "limits": bounds alone, no walls
    durability: Literal["power", "os"] = "power"  # what is acknowledged survives a power cut, or the process alone
    sdk_flags: dict[SdkFlag, bool] = {}  # over those that the SDK is told else
    log_file: str = ""  # "": loreloop.log in the data folder
    verbose: bool = False  # the terminal shows the whole log
    engine: EngineConfig = EngineConfig()
    session: SessionConfig = SessionConfig()
    limits: LimitConfig = LimitConfig()

    @property
    def data_path(self) -> Path:
        """The data folder with `~` expanded; WrongSettings where there is no such home folder."""
        return _expanded("data_dir", self.data_dir)

    @property
    def log_path(self) -> Path:
        """The log file with `~` expanded, or the one in the data folder where none is set."""
        return _expanded("log_file", self.log_file) if self.log_file else self.data_path / "loreloop.log"

    def absolute(self) -> Config:
        """The same for processes that work in other folders."""
        paths = {"data_dir": self.data_path, "log_file": self.log_path}
        return msgspec.structs.replace(self, **{name: str(path.absolute()) for name, path in paths.items()})


def load_config(file: str | None, overrides: dict[str, Any]) -> Config:
    """The TOML file with `overrides` (nested like the tree) laid over it; WrongSettings names what is wrong."""
    # Alone first: a mistake in the file is reported with its name and not laid to a flag, and its tables are tables.
    tree = _read_toml(Path(file)) if file else {}
    _checked(tree, file or "")
    return _checked(_merged(tree, overrides), "")


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).removesuffix(")").rpartition(" (at ")
        if where == "end of document":
            lines = text.split("\n")
            where = f"line {len(lines)}, column {len(lines[-1]) + 1}"
        raise WrongSettings(f"{file}, {where}: {what}. It is read as TOML.") from None
    except UnicodeDecodeError as error:
        raise WrongSettings(f"{file} is no text in UTF-8 (byte {error.start}), so it is no TOML.") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, thousands of brackets
        raise WrongSettings(f"{file} holds a number or a nesting that nobody means; it cannot be read.") from None
    except OSError as error:
        raise WrongSettings(f"{file} (--config) cannot be read: {error.strerror}.") from None


def _checked(tree: dict[str, Any], file: str) -> Config:
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        # msgspec gives the place in words of its own; it is turned into the name that a user wrote.
        what, _, where = str(error).partition(" - at ")
        name = where.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
        if unknown := _UNKNOWN.fullmatch(what):
            name = f"{name}.{unknown[1]}".removeprefix(".")
            raise WrongSettings(f"There is no setting `{name}`{_in(file)}; docs/serving.md lists all.") from None
        if "matching regex" in what:
            usual = "expected a text that is not empty, without control characters"
            what = SHAPES.get(name.partition("[")[0], usual)
        flag = FLAGS.get(name.partition("[")[0])
        named = f"`{name}` ({flag})" if flag else f"`{name}`"
        raise WrongSettings(f"The setting {named} is wrong{_in(file)}: {what[:1].lower()}{what[1:]}.") from None


def _in(file: str) -> str:
    return f" in {file}" if file else ""


def _expanded(setting: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # as the library says that it knows no such user
        raise WrongSettings(f"`{setting}` ({FLAGS[setting]}) is {path!r}, and there is no such home folder.") from None


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(over[key], dict)}
    return base | over | both
