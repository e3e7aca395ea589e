"""The numbered steps that bring an older database up to the tables of this version.

A step and the record of it are one transaction. Steps are only ever appended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import ColumnClause, Connection, bindparam, column, func, insert, inspect, select, update

from loreloop.store.account_tables import ACCOUNT_TABLES
from loreloop.store.columns import add_accounts, add_column, add_refusals
from loreloop.store.feedback_tables import FEEDBACK, FEEDBACK_TABLES, note_askers
from loreloop.store.files import in_row
from loreloop.store.metadata import METADATA
from loreloop.store.schema import (
    CHECKPOINTS,
    DEPLOYED,
    DEPLOYMENT_VERSIONS,
    DEPLOYMENTS,
    FILES,
    JOB_EVENTS,
    JOB_METRICS,
    JOBS,
    KEYS,
    LEFT_FILES,
    MEMORIES,
    MIGRATIONS,
    NEWEST,
    REMOVED_RUNS,
    RESPONSES,
    RUNS,
    SAMPLERS,
    SNAPSHOTS,
    TOOL_CALLS,
    TOOL_SERVERS,
    TUNED_MODELS,
    USAGE,
)
from loreloop.store.series_tables import RUN_SERIES
from loreloop.store.turn_tables import TURN_TABLES


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
    add_column(connection, KEYS, "expires", "FLOAT")


def m006_responses(connection: Connection) -> None:
    """Makes the table of kept answers."""
    RESPONSES.create(connection, checkfirst=True)


def m007_checksums(connection: Connection) -> None:
    """Adds the checksums of snapshots and checkpoints, and the reason why a run was lost; older files have none."""
    add_column(connection, SNAPSHOTS, "crc32", "VARCHAR")
    add_column(connection, CHECKPOINTS, "sums_crc32", "VARCHAR")
    add_column(connection, RUNS, "lost", "TEXT")


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
    add_column(connection, DEPLOYMENTS, "recording", "TEXT")


def m014_feedback(connection: Connection) -> None:
    """Makes the tables of feedback and of the metrics that deployments declare for it."""
    for table in FEEDBACK_TABLES:
        table.create(connection, checkfirst=True)


def m015_askers(connection: Connection) -> None:
    """Notes with each statement whose answer it is about, as far as that can be told."""
    add_column(connection, FEEDBACK, "asker", "VARCHAR NOT NULL DEFAULT ''")
    note_askers(connection)


def m016_refusals(connection: Connection) -> None:
    """Adds what was refused, and which answers broke off."""
    add_refusals(connection)
    m015_askers(connection)  # between two versions this step stood in the place of that one


def m017_accounts(connection: Connection) -> None:
    """Makes the tables of accounts, and the columns of what is public, of copies of clients and of traces."""
    for table in ACCOUNT_TABLES:
        table.create(connection, checkfirst=True)
    add_accounts(connection)


def m018_run_series(connection: Connection) -> None:
    """Makes the table of what runs have measured, from now on."""
    RUN_SERIES.create(connection, checkfirst=True)


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
    m016_refusals,
    m017_accounts,
    m018_run_series,
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
