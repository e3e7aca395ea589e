"""The tables, and the numbered steps that bring an older database up to them.

A step and the record of it are one transaction. Steps are only ever appended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnClause,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    column,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)

from loreloop.store.feedback_tables import FEEDBACK, FEEDBACK_TABLES, note_askers
from loreloop.store.files import in_row
from loreloop.store.metadata import METADATA
from loreloop.store.turn_tables import TURN_TABLES

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


def m001_initial(connection: Connection) -> None:
    """Makes all tables. A new database gets those of later steps here too, so later steps must find nothing to do in
    it."""
    METADATA.create_all(connection)


def m002_deployments(connection: Connection) -> None:
    """Makes the tables of deployments, and the indexes by which listings find what is newest."""
    for table in (DEPLOYMENTS, DEPLOYMENT_VERSIONS):
        table.create(connection, checkfirst=True)  # a new database has had all tables from the first step
    for index in NEWEST:
        index.create(connection, checkfirst=True)


def m003_tools(connection: Connection) -> None:
    """Makes the tables of tool servers and their calls."""
    for table in (TOOL_SERVERS, TOOL_CALLS):
        table.create(connection, checkfirst=True)


def m004_deployed(connection: Connection) -> None:
    """Makes the table of what deployments answer with, and fills it from their current versions."""
    DEPLOYED.create(connection, checkfirst=True)
    new, old = DEPLOYMENTS.c, DEPLOYMENT_VERSIONS.c
    for arm in ("main", "canary"):
        target = func.json_extract(old.split, f"$.{arm}.target")
        has_weights = func.json_extract(old.split, f"$.{arm}.revision").is_not(None)
        current = select(target, new.name).where(new.name == old.name, new.version == old.version, has_weights)
        connection.execute(insert(DEPLOYED).prefix_with("OR IGNORE").from_select(["target", "name"], current))


def m005_expiry_of_keys(connection: Connection) -> None:
    """Lets keys expire; those that there are never do."""
    _add_column(connection, KEYS, "expires", "FLOAT")


def m006_responses(connection: Connection) -> None:
    """Makes the table of kept answers."""
    RESPONSES.create(connection, checkfirst=True)


def m007_checksums(connection: Connection) -> None:
    """Adds the checksums of snapshots and checkpoints, and the reason why a run was lost; older files have none."""
    _add_column(connection, SNAPSHOTS, "crc32", "VARCHAR")
    _add_column(connection, CHECKPOINTS, "sums_crc32", "VARCHAR")
    _add_column(connection, RUNS, "lost", "TEXT")


def m008_usage(connection: Connection) -> None:
    """Makes the table of what keys have used, from now on."""
    USAGE.create(connection, checkfirst=True)


def m009_removed_runs(connection: Connection) -> None:
    """Makes the table of deleted runs, whose operations may still stand in segments."""
    REMOVED_RUNS.create(connection, checkfirst=True)


def m010_paths_from_the_data_folder_on(connection: Connection) -> None:
    """Rewrites absolute paths to begin below the data folder, so that the folder can be moved."""
    LEFT_FILES.create(connection, checkfirst=True)
    # Row by row, by their numbers: no index leads from a path to its rows, and there may be very many samplers.
    row_id: ColumnClause[int] = column("rowid")
    for held in (CHECKPOINTS.c.folder, SAMPLERS.c.folder, SNAPSHOTS.c.file):
        rows = connection.execute(select(row_id, held).select_from(held.table).where(held.is_not(None))).all()
        changed = [{"row": number, "path": within} for number, path in rows if (within := in_row(path)) != path]
        if changed:
            rewrite = update(held.table).where(row_id == bindparam("row")).values({held.name: bindparam("path")})
            connection.execute(rewrite, changed)


def m011_memories(connection: Connection) -> None:
    """Makes the table of memories."""
    MEMORIES.create(connection, checkfirst=True)


def m012_jobs(connection: Connection) -> None:
    """Makes the tables of files, of fine-tuning jobs, and of the models that they make."""
    for table in (FILES, JOBS, JOB_EVENTS, JOB_METRICS, TUNED_MODELS):
        table.create(connection, checkfirst=True)


def m013_turns(connection: Connection) -> None:
    """Makes the tables of recorded turns and of persons, and the column of what a deployment records."""
    for table in TURN_TABLES:
        table.create(connection, checkfirst=True)
    _add_column(connection, DEPLOYMENTS, "recording", "TEXT")


def m014_feedback(connection: Connection) -> None:
    """Makes the tables of feedback and of the metrics that deployments declare for it."""
    for table in FEEDBACK_TABLES:
        table.create(connection, checkfirst=True)


def m015_askers(connection: Connection) -> None:
    """Notes with each statement whose answer it is about, as far as that can be told."""
    _add_column(connection, FEEDBACK, "asker", "VARCHAR NOT NULL DEFAULT ''")
    note_askers(connection)


def _add_column(connection: Connection, table: Table, name: str, kind: str) -> None:
    """Unless it is there: a new database has had all columns from the first step."""
    if name not in {column["name"] for column in inspect(connection).get_columns(table.name)}:
        connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"))


STEPS: Sequence[Callable[[Connection], None]] = (
    m001_initial,
    m002_deployments,
    m003_tools,
    m004_deployed,
    m005_expiry_of_keys,
    m006_responses,
    m007_checksums,
    m008_usage,
    m009_removed_runs,
    m010_paths_from_the_data_folder_on,
    m011_memories,
    m012_jobs,
    m013_turns,
    m014_feedback,
    m015_askers,
)


def steps_taken(connection: Connection) -> set[int]:
    """Looks only, so that nobody waits for a lock."""
    if not inspect(connection).has_table(MIGRATIONS.name):
        return set()
    return set(connection.scalars(select(MIGRATIONS.c.number)))


def migrate(connection: Connection) -> None:
    """Runs the steps that this database has not seen, inside the caller's transaction."""
    MIGRATIONS.create(connection, checkfirst=True)
    done = set(connection.scalars(select(MIGRATIONS.c.number)))
    for number, step in enumerate(STEPS, start=1):
        if number not in done:
            step(connection)
            connection.execute(insert(MIGRATIONS).values(number=number))
