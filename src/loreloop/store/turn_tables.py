"""The tables of recorded turns: turns and their bodies, episodes, what was trained on whom, and persons.

A turn's body stands apart from its row, so that counting and looking for turns reads no messages.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from loreloop.store.metadata import METADATA

AT_ONCE = 500  # rows of turns that one statement names

# `number` is the place in the feed. It is never given twice, and a turn whose marks change gets a new one.
TURNS = Table(
    "turns",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("deployment", String, nullable=False),
    Column("episode", Integer, nullable=False),  # the number of a row of `episodes`
    Column("key_id", String, nullable=False),
    Column("user", String, nullable=False),  # "" for none, and once the content is gone
    Column("created", Float, nullable=False),
    Column("state", String, nullable=False),  # kept, expired, dropped
    Column("arm", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("revision", String),
    Column("consent", Boolean, nullable=False),
    Column("refused", Boolean, nullable=False, server_default="0"),  # somebody said no, which stands for ever
    Column("side", Boolean, nullable=False),
    Column("unfinished", Boolean, nullable=False, server_default="0"),  # its answer broke off
    Column("heard", Integer, nullable=False),  # whether a statement about it stands
    Column("candidate", String),  # the newest that was trained on it
    Column("n_bytes", BigInteger, nullable=False),
    Index("turns_of_deployment", "deployment", "number"),
    Index("turns_by_age", "deployment", "state", "created"),
    Index("turns_of_episode", "episode"),
    Index("turns_of_person", "key_id", "user"),
    sqlite_autoincrement=True,
)

TURN_BODIES = Table(
    "turn_bodies",
    METADATA,
    Column("turn_id", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),  # as `store/turn_bodies.py` writes it
)

# Clients may choose the ids of episodes, so two keys may choose the same.
EPISODES = Table(
    "episodes",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False),
    Column("deployment", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("weights", String, nullable=False),  # what answered its first turn
    Column("mixed", Boolean, nullable=False),  # something else has answered another one
    Column("heard", Integer, nullable=False),  # whether a statement about the whole of it stands
    Index("episodes_by_id", "id", "deployment", "key_id", unique=True),
    Index("episodes_of_deployment", "deployment"),
    sqlite_autoincrement=True,
)

# Numbers that stay when the rows they count are gone.
TURN_TALLIES = Table(
    "turn_tallies",
    METADATA,
    Column("deployment", String, primary_key=True),
    Column("n_bytes", BigInteger, nullable=False),  # of the bodies that are there
    Column("expired", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("mixed", BigInteger, nullable=False),  # episodes
)

# Which person's turns a candidate was trained on. It outlives the turns, which deletion needs.
TURN_USES = Table(
    "turn_uses",
    METADATA,
    Column("key_id", String, primary_key=True),
    Column("user", String, primary_key=True),
    Column("deployment", String, primary_key=True),
    Column("candidate", String, primary_key=True),
    Column("revision", String, nullable=False),  # "" until its weights are known
    Column("used", Float, nullable=False),
    Index("turn_uses_of_candidate", "deployment", "candidate"),
)

DELETED_PERSONS = Table(
    "deleted_persons",
    METADATA,
    Column("key_id", String, primary_key=True),
    Column("user", String, primary_key=True),
    Column("deleted", Float, nullable=False),
)

# The deployments that a deleted person's key had asked: whoever trains on their turns may hold some of the person's.
DELETED_FROM = Table(
    "deleted_from",
    METADATA,
    Column("deployment", String, primary_key=True),
    Column("key_id", String, primary_key=True),
    Column("user", String, primary_key=True),
)

# What answers one person in place of a deployment's shared weights.
PERSON_ARMS = Table(
    "person_arms",
    METADATA,
    Column("deployment", ForeignKey("deployments.name"), primary_key=True),
    Column("key_id", String, primary_key=True),
    Column("user", String, primary_key=True),
    Column("arm", Text, nullable=False),  # JSON of Arm
    Column("target", String, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("by", String, nullable=False),
)

TURN_TABLES = (TURNS, TURN_BODIES, EPISODES, TURN_TALLIES, TURN_USES, DELETED_PERSONS, DELETED_FROM, PERSON_ARMS)
