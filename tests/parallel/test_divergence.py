"""Processes of one engine that have come to differ end it, and say in what."""

from pathlib import Path

import pytest
import torch

from tests.parallel.leading_rank import led, unread
from tests.parallel.rig import exits
from tests.tiny import make_tiny_model


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ("pages", "processes 1 hold another state than process 0"),
        ("results", "processes 1 have given other results than process 0"),
    ],
)
def test_processes_that_differ_end_the_engine(spoiled: str, message: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3")
    assert exits("tp=2", tmp_path, led, folder, spoiled) == [1, 1]
    for rank in range(2):
        assert f"the engine ends: {message}" in (folder / f"{rank}.log").read_text()


def test_processes_that_are_alike_go_on(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3")
    # The second is ended by the rig; it waits for another word of the first.
    assert exits("tp=2", tmp_path, led, folder, "", first_only=True) == [0]


def test_a_damaged_revision_ends_its_requests_and_not_the_engine(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3")
    assert exits("tp=2", tmp_path, unread, folder, True, first_only=True) == [0]
    ((message, is_passing),) = torch.load(folder / "failures.pt")
    assert "adapter_config.json" in message
    assert not is_passing


def test_a_revision_that_one_process_cannot_read_fails_alike_on_all(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3")
    assert exits("tp=2", tmp_path, unread, folder, False, first_only=True) == [0]
    message = "1 of 2 processes of this engine could not do it; see the log."
    assert torch.load(folder / "failures.pt") == [(message, True)]
    assert "process 1 could not do it: This disk has no such folder." in (folder / "1.log").read_text()
