"""The study's language model against a real server: a tiny random one learns the names of shapes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
import torch

from examples.few_shot import language
from examples.few_shot.task import ClassFolder, Plan
from examples.few_shot_vision import main
from examples.small_vlm import folder, tower
from loreloop.cli.server import RunningServer, running_server
from tests.examples.shapes import write_classes
from tests.tiny import make_tiny_model, make_tokenizer

# The SDK leaves its own background tasks to the garbage collector.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = make_tiny_model(tmp_path_factory.mktemp("bases") / "tiny")
    make_tokenizer(base, 512, [folder.SPARE])
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("made") / "tiny-vlm"
    folder.save(tower.Tower(64), folder.read_language_model(base), base, place)
    return place


@pytest.fixture(scope="module")
def vision_server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    with running_server(str(data), ["--model", str(model), "--threads", "1"]) as running:
        yield running


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "shapes")


def test_it_learns_to_answer_with_the_name(vision_server: RunningServer, model: Path, shapes: Path) -> None:
    plan = Plan(ways=2, shots=(2,), repeats=40, batch=8, held_out=("purple",))
    task = ClassFolder(shapes).task(plan, 2, seed=0)
    service = tinker.ServiceClient(base_url=vision_server.url, api_key=vision_server.key)
    method = language.LanguageMethod(
        service, str(model), str(model), wording=language.Wording(), tuning=language.Tuning(rank=8, learning_rate=5e-3)
    )
    assert method.untuned(task) == 0
    assert method.tuned(task, seed=0) >= 0.5


def test_the_program_compares_both_kinds(
    vision_server: RunningServer, model: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", vision_server.key)
    words = ["--quick", "--data", str(shapes), "--model", str(model), "--base-url", vision_server.url]
    main([*words, "--backbone", str(model), "--held-out", "purple", "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (1 + 3 * 2)  # seeds × (untuned, and three methods at two numbers of shots)
