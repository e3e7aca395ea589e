"""The tables of a data folder. `steps.py` brings an older database up to them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from loreloop.store.metadata import METADATA

MIGRATIONS = Table("migrations", METADATA, Column("number", Integer, primary_key=True))

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),  # of the secret, which is stored nowhere
    Column("scopes", Text, nullable=False),  # JSON list
    Column("created", Float, nullable=False),
    Column("revoked", Float),
    Column("expires", Float),  # from then on it is as if revoked
)

# What each key has used, one row a key that has used anything: it cannot grow with the number of requests.
USAGE = Table(
    "usage",
    METADATA,
    Column("key_id", ForeignKey("keys.id"), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("last_used", Float, nullable=False),
)

SESSIONS = Table(
    "sessions",
    METADATA,
    Column("id", String, primary_key=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("last_seen", Float, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("detail", Text),
    Column("tags", Text, nullable=False),
    Column("user_metadata", Text),
    Column("sdk_version", String),
    Column("project_id", String),
    Column("display_name", String),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("id", String, primary_key=True),
    Column("session_id", ForeignKey("sessions.id"), nullable=False, index=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False, index=True),
    Column("base_model", String, nullable=False),
    Column("lora", Text, nullable=False),  # JSON of LoraSpec
    Column("created", Float, nullable=False),
    Column("last_request", Float, nullable=False),
    Column("user_metadata", Text),
    Column("live", Boolean, nullable=False),
    Column("lost", Text),  # why its state could not be restored, where that happened
)

SAMPLERS = Table(
    "samplers",
    METADATA,
    Column("id", String, primary_key=True),
    Column("session_id", ForeignKey("sessions.id"), nullable=False, index=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False),
    Column("base_model", String, nullable=False),
    Column("model_path", String),
    Column("run_id", String, index=True),  # of ephemeral samplers
    Column("inflight", Boolean, nullable=False),
    Column("revision_id", String),
    Column("folder", String),
    Column("created", Float, nullable=False),
    Column("n_joined", BigInteger, nullable=False, server_default="0"),  # copies of its client that have a number
)

OPS = Table(
    "ops",
    METADATA,
    Column("request_id", String, primary_key=True),
    Column("model_id", String, nullable=False),
    Column("seq_id", BigInteger, nullable=False),
    Column("base_model", String, nullable=False, index=True),
    Column("fingerprint", String, nullable=False),
    Column("after", Text, nullable=False),  # JSON of AfterOp
    Column("reply", Text, nullable=False),  # JSON
    Column("location", Text),  # JSON; NULL once a snapshot covers the operation
    Column("done", Boolean, nullable=False),
    Column("plan_no", BigInteger),
    Column("created", Float),  # NULL: it was accepted before there were traces
    Column("kind", String),  # as its tag says; known also where its body is gone
    # A retried POST must find the operation it repeats, whoever of two concurrent ones was first.
    UniqueConstraint("model_id", "seq_id"),
)

RESULTS = Table(
    "results",
    METADATA,
    Column("request_id", String, primary_key=True),
    Column("location", Text),  # JSON; NULL after expiry, so that late askers hear "expired"
    Column("created", Float, nullable=False, index=True),
)

PLANS = Table(
    "plans",
    METADATA,
    Column("base_model", String, primary_key=True),
    Column("plan_no", BigInteger, primary_key=True),
    Column("request_ids", Text, nullable=False),
)

SNAPSHOTS = Table(
    "snapshots",
    METADATA,
    Column("model_id", String, primary_key=True),
    Column("base_model", String, nullable=False, index=True),
    Column("plan_no", BigInteger, nullable=False),
    Column("next_seq_id", BigInteger, nullable=False),
    Column("file", String, nullable=False),
    Column("crc32", String),  # of the file; NULL: it was written before there were checksums
)

CHECKPOINTS = Table(
    "checkpoints",
    METADATA,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False, index=True),
    Column("folder", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("expires", Float, index=True),
    Column("user_metadata", Text),
    Column("sums_crc32", String),  # of the list of checksums beside its files; NULL: it has none
    Column("public", Boolean, nullable=False, server_default="0"),  # every key that knows its path may read it
)

SPOOL = Table(
    "spool",
    METADATA,
    Column("sequence_id", String, primary_key=True),
    Column("session_id", String, nullable=False, index=True),
    Column("location", Text, nullable=False),
    Column("n_bytes", BigInteger, nullable=False),
    Column("expires", Float, nullable=False, index=True),
)

DEPLOYMENTS = Table(
    "deployments",
    METADATA,
    Column("name", String, primary_key=True),
    Column("key_id", ForeignKey("keys.id")),  # of the owner; NULL: of nobody, so everybody may use it
    Column("version", Integer, nullable=False),  # the newest one
    Column("recording", Text),  # JSON of RecordingRule; NULL: it records nothing
    Index("deployments_of_key", "key_id", "name"),
)

DEPLOYMENT_VERSIONS = Table(
    "deployment_versions",
    METADATA,
    Column("name", ForeignKey("deployments.name"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("split", Text, nullable=False),  # JSON of Split
    Column("created", Float, nullable=False),
    Column("by", String, nullable=False),
)

# The checkpoints that current versions answer with: they are not deleted.
DEPLOYED = Table(
    "deployed",
    METADATA,
    Column("target", String, primary_key=True),
    Column("name", ForeignKey("deployments.name"), primary_key=True),
    Index("deployed_by_name", "name"),
)

# What a name such as `tinker://<run>` costs must not grow with the number of checkpoints and samplers.
NEWEST = (
    Index("checkpoints_by_age", CHECKPOINTS.c.key_id, CHECKPOINTS.c.kind, CHECKPOINTS.c.created),
    Index("checkpoints_of_run_by_age", CHECKPOINTS.c.run_id, CHECKPOINTS.c.kind, CHECKPOINTS.c.created),
    Index("samplers_of_run_by_age", SAMPLERS.c.run_id, SAMPLERS.c.created),
)

TOOL_SERVERS = Table(
    "tool_servers",
    METADATA,
    Column("name", String, primary_key=True),
    Column("command", Text),  # JSON list; either this or the url
    Column("url", Text),
    Column("created", Float, nullable=False),
)

TOOL_CALLS = Table(
    "tool_calls",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("server", String, nullable=False),
    Column("tool", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("request_id", String, nullable=False),
    Column("arguments", Text, nullable=False),  # cut
    Column("outcome", String, nullable=False),  # ok, error, timeout
    Column("output_bytes", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("created", Float, nullable=False),
)

RESPONSES = Table(
    "responses",
    METADATA,
    Column("id", String, primary_key=True),
    Column("key_id", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("used", Float, nullable=False, index=True),  # last by an answer that refers to it
    Column("previous", String),
    Column("input", Text, nullable=False),  # JSON
    Column("answer", Text, nullable=False),  # JSON
    Column("n_bytes", BigInteger, nullable=False),
    Index("responses_of_key_by_use", "key_id", "used"),
)

MEMORIES = Table(
    "memories",
    METADATA,
    Column("key_id", String, primary_key=True),
    Column("user", String, primary_key=True),  # as a request of the key names it; "" for none
    Column("id", String, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    Column("saved", Float, nullable=False),
    Column("n_bytes", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
    # A list must read no data, and the sum of a key's bytes no rows at all.
    Index("memories_of_key_by_age", "key_id", "saved"),
    Index("memories_of_key_by_size", "key_id", "n_bytes"),
)

# Runs that were deleted while the journal still held operations of theirs: these are not missing, and must not be told
# as lost. A row goes with the last of those segments.
REMOVED_RUNS = Table(
    "removed_runs",
    METADATA,
    Column("run_id", String, primary_key=True),
    Column("segment", Integer, nullable=False),  # the last one that can hold an operation of it
)

# Files whose rows are gone while they themselves may still be there: whoever deletes them may be killed before it has.
LEFT_FILES = Table("left_files", METADATA, Column("path", String, primary_key=True))  # as rows hold paths

# Files that clients have uploaded, or that jobs have left as results. Their bodies lie in files/<id>.
FILES = Table(
    "files",
    METADATA,
    Column("number", Integer, primary_key=True),  # the order of lists
    Column("id", String, nullable=False, unique=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("n_bytes", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, index=True),
    Column("contents", Text),  # JSON: what was found in it, where somebody has looked
    Index("files_of_key", "key_id", "number"),
    sqlite_autoincrement=True,
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False),
    Column("created", Float, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("plan", Text, nullable=False),  # JSON of JobPlan
    Column("started", Float),
    Column("finished", Float, index=True),
    Column("step", Integer, nullable=False),
    Column("n_steps", Integer),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("error", Text),  # JSON of JobError
    Column("resume", Text),  # JSON of ResumePoint: where a broken-off job goes on
    Column("attempts", Integer, nullable=False),  # starts since it last got ahead
    Column("result_file", String),
    Index("jobs_of_key", "key_id", "number"),
    sqlite_autoincrement=True,
)

JOB_EVENTS = Table(
    "job_events",
    METADATA,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created", Float, nullable=False),
    Column("level", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),  # JSON
)

JOB_METRICS = Table(
    "job_metrics",
    METADATA,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("values", Text, nullable=False),  # JSON
)

# What jobs have made, by the name under which it answers. It outlives its job's row.
TUNED_MODELS = Table(
    "tuned_models",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False),
    Column("job_id", String, nullable=False, index=True),
    Column("base_model", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("is_final", Boolean, nullable=False),
    Column("path", String, nullable=False),  # of the weights to sample from
    Column("state_path", String),  # of the state to train on from
    Column("metrics", Text, nullable=False),  # JSON
    Column("created", Float, nullable=False),
    Index("tuned_models_of_key", "key_id", "number"),
    sqlite_autoincrement=True,
)
