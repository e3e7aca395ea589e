"""A store that is closed after its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "data")
    yield made
    made.store.close()
