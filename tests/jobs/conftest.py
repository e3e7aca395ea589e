"""The client of the shared server."""

import openai
import pytest

from loreloop.cli.server import RunningServer
from tests.jobs.rig import client_of


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return client_of(server)
