"""The tables of what was said of answers, and of the metrics by which that is said."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, String, Table, Text

from loreloop.store.metadata import METADATA

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
