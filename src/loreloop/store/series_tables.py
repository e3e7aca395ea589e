"""The table of what training runs have measured, step by step: bounded for each run, however long that lasts."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, String, Table, Text

from loreloop.store.metadata import METADATA

# A row stands for `n_steps` steps from `step` on. The run is no foreign key, since the journal may still tell of one
# that was deleted.
RUN_SERIES = Table(
    "run_series",
    METADATA,
    Column("run_id", String, primary_key=True),
    Column("step", Integer, primary_key=True),  # counted from 1
    Column("n_steps", Integer, nullable=False),
    Column("created", Float, nullable=False),  # of the last of them
    Column("values", Text, nullable=False),  # JSON: the mean of each over the steps
)
