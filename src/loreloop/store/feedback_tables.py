"""The tables of what was said of answers, and of the metrics by which that is said."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Connection, Float, Index, Integer, String, Table, Text, func, select, update

from loreloop.store.metadata import METADATA
from loreloop.store.turn_tables import EPISODES, TURNS

# A retraction is the row again under a new number, its place in the feed.
FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("metric", String, nullable=False),
    Column("level", String, nullable=False),
    Column("target_id", String, nullable=False),
    Column("deployment", String, nullable=False),
    # Whose answer it is about, "" where that is not known: two keys may choose one id for their episodes.
    Column("asker", String, nullable=False, server_default=""),
    Column("value", Text, nullable=False),  # JSON
    Column("created", Float, nullable=False),
    Column("source", String, nullable=False),
    Column("who", String, nullable=False),
    Column("giver", String, nullable=False),
    Column("why", Text, nullable=False),
    Column("tags", Text, nullable=False),  # JSON
    Column("overrides", String, index=True),
    Column("retracted", Boolean, nullable=False),
    Column("fingerprint", Text, nullable=False),  # of what was sent
    Index("feedback_of_deployment", "deployment", "number"),
    # What one voice has said last is found among any number of others.
    Index("feedback_of_voice", "target_id", "metric", "giver", "who", "source", "number"),
    Index("feedback_of_giver", "giver", "who"),  # which is counted
    sqlite_autoincrement=True,
)

METRICS = Table(
    "metrics",
    METADATA,
    Column("deployment", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("level", String, nullable=False),
    Column("optimize", String, nullable=False),
)

FEEDBACK_TABLES = (FEEDBACK, METRICS)


def note_askers(connection: Connection) -> None:
    """Writes beside statements that do not say it whose answer they are about, as far as that can be told."""
    about = FEEDBACK.c
    for level, table in (("inference", TURNS), ("episode", EPISODES)):
        there = (table.c.id == about.target_id) & (table.c.deployment == about.deployment)
        # Of an episode's id that several keys have chosen nobody knows whose it was.
        only = select(table.c.key_id).where(there).group_by(table.c.id).having(func.count() == 1).scalar_subquery()
        unknown = update(FEEDBACK).where(about.level == level, about.asker == "")
        connection.execute(unknown.values(asker=func.coalesce(only, "")))
