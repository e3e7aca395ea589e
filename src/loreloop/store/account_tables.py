"""The tables of accounts: what each session has used in each hour, and who did what to checkpoints and keys."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table, Text

from loreloop.store.metadata import METADATA

# One row an hour, session and base model: it grows with the hours of use, not with the number of requests. The ids are
# no foreign keys, since an account outlives what it is of.
USAGE_HOURS = Table(
    "usage_hours",
    METADATA,
    Column("hour", BigInteger, primary_key=True),  # since the epoch
    Column("key_id", String, primary_key=True),
    Column("session_id", String, primary_key=True),  # "" where there is none
    Column("base_model", String, primary_key=True),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),  # computed, the cached ones left out
    Column("cached_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("n_checkpoints", BigInteger, nullable=False),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("created", Float, nullable=False),
    Column("event", String, nullable=False),  # such as checkpoint_delete
    Column("key_id", String, nullable=False),
    Column("details", Text, nullable=False),  # JSON
    Index("audit_by_time", "created"),
    sqlite_autoincrement=True,
)
ACCOUNT_TABLES = (USAGE_HOURS, AUDIT)
