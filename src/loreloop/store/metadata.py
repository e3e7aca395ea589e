"""The one collection that all tables belong to, whichever file names them."""

from __future__ import annotations

from sqlalchemy import MetaData

METADATA = MetaData()
