"""A real server whose tiny model has room for the descriptions of tools."""

from collections.abc import Iterator

import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.tiny import make_tiny_model


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    make_tiny_model(data / "models" / "tiny", "qwen3", max_position_embeddings=8192)
    settings = ["--model", "tiny", "--precision", "fp32", "--threads", "1", "--deterministic"]
    with running_server(str(data), settings) as running:
        yield running
