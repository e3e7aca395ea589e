"""What several rooms' tests share: a tiny model, a real server of it, signals as children should find them, and what
a test that bounds seconds may ask for."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer, running_server
from loreloop.protocol.syncing import promise
from tests.tiny import make_tiny_model

promise("os")  # tests of what survives a power cut say so

# A shell's background job is started with these ignored, and its children inherit that, so they would hear nothing of
# what tests send them. What is handled, if only by doing nothing, is back at its default in a child.
for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


TIMED_TRIES = 3
HANGS_SECONDS, SLOW_HANGS_SECONDS = 300, 2700  # many times what the longest test takes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A bound on seconds holds if it is kept once: what else a machine does adds to a time and never takes from it. And
    a test that waits for ever fails, with the place where it waits, instead of holding up all the others."""
    for item in items:
        item.add_marker(pytest.mark.timeout(SLOW_HANGS_SECONDS if item.get_closest_marker("slow") else HANGS_SECONDS))
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=TIMED_TRIES - 1))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "qwen3")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    """`loreloop serve` in processes of its own, fp32, with the tiny model under its folder's path and as `tiny`."""
    data = tmp_path_factory.mktemp("data")
    (data / "models").mkdir()
    (data / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(data), ["--model", "tiny", "--precision", "fp32", "--threads", "1"]) as running:
        yield running
