"""The snippets of docs/jobs.md run as they stand, one after the other, against a server that serves the names there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer, running_server
from loreloop.learn.jobs.orders import SAVE_EVERY
from loreloop.protocol.fine_tuning_rest import SupervisedHyperparameters

PAGE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    (data / "models").mkdir()
    (data / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(data), ["--model", "tiny", "--alias", "smollm2-135m=tiny", "--threads", "1"]) as running:
        yield running


def test_the_snippets_run(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    names: dict[str, object] = {}
    for snippet in SNIPPETS:
        exec(snippet, names)
    said = capsys.readouterr().out
    assert "ft:smollm2-135m:local:doubles:" in said
    assert "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy" in said
    assert ":ckpt-step-" in said


def test_the_first_program_has_ten_lines() -> None:
    program = SNIPPETS[0].partition("client =")[2]
    assert len(program.strip().splitlines()) <= 10


def test_numbers_of_the_page_are_those_of_the_code() -> None:
    assert f"Every {SAVE_EVERY} steps" in PAGE
    assert set(SupervisedHyperparameters.__struct_fields__) <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
