"""The few-shot study on shapes that the tests draw: fair tasks, heads that learn, bands that are bands."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from examples.few_shot import backbone, report
from examples.few_shot.task import ClassFolder, Plan, class_name
from examples.few_shot_vision import main
from examples.small_vlm import teacher
from tests.examples.shapes import write_classes

PLAN = Plan(ways=3, shots=(1, 2, 8), repeats=4, batch=5, held_out=("purple", "black"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random vision transformer, saved as published ones are."""
    place = tmp_path_factory.mktemp("backbones") / "tiny-clip"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=48, patch_size=12, projection_dim=64)).save_pretrained(place)
    sides = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    settings = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.3] * 3, **sides}
    (place / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(place)


def test_all_shots_take_equal_passes_and_few_are_the_first_of_more(folder: Path) -> None:
    tasks = {k: ClassFolder(folder).task(PLAN, k, seed=1) for k in PLAN.shots}
    assert {sum(map(len, task.batches)) for task in tasks.values()} == {3 * 8 * 4}
    for k, task in tasks.items():
        assert task.names == tasks[8].names
        assert task.exam == tasks[8].exam
        for name in task.names:
            shown = [[one.png for one in tasks[n].shown if one.name == name] for n in (k, 8)]
            assert shown[0] == shown[1][:k]


def test_the_exam_holds_files_that_nobody_is_shown(folder: Path) -> None:
    task = ClassFolder(folder).task(PLAN, 8, seed=0)
    assert len(task.exam) == 3 * 2
    assert not {one.png for one in task.exam} & {one.png for one in task.shown}
    assert len({one.png for one in task.shown}) == 3 * 8  # four files a class, then four views of them


def test_seeds_differ_and_repeat(folder: Path) -> None:
    data = ClassFolder(folder)
    assert data.task(PLAN, 8, seed=0) == data.task(PLAN, 8, seed=0)
    assert data.task(PLAN, 8, seed=0) != data.task(PLAN, 8, seed=1)


def test_images_are_bounded_and_have_three_channels(folder: Path) -> None:
    plan = Plan(ways=None, shots=(1,), most_pixels=32)
    with Image.open(io.BytesIO(ClassFolder(folder).task(plan, 1, 0).shown[0].png)) as image:
        assert (image.size, image.mode, image.getpixel((0, 0))) == ((32, 32), "RGB", (255, 255, 255))


def test_names_are_written_as_published() -> None:
    assert class_name("Joshua_Tree") == class_name("joshua-tree") == class_name("joshua.tree") == "joshua tree"


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="sub-folders with images"):
        ClassFolder(tmp_path)


@pytest.mark.parametrize("lora", [False, True])
def test_a_head_learns_shapes(folder: Path, tower: str, lora: bool) -> None:
    plan = Plan(ways=None, shots=(4,), repeats=30, batch=16, held_out=("purple", "black"))
    task = ClassFolder(folder).task(plan, 4, seed=0)
    method = backbone.HeadMethod(backbone.from_transformers(tower), backbone.HeadTuning(rank=4), lora=lora)
    assert method.tuned(task, seed=0) >= 0.75


@pytest.mark.parametrize("lora", [False, True])
def test_a_convolutional_backbone_is_adapted_too(folder: Path, lora: bool) -> None:
    torch.manual_seed(0)
    made = backbone.efficientnet(teacher.EfficientNetLite0().state_dict(), side=32)
    task = ClassFolder(folder).task(Plan(ways=2, shots=(2,), repeats=2, held_out=("purple",)), 2, seed=0)
    assert 0 <= backbone.HeadMethod(made, backbone.HeadTuning(rank=2), lora=lora).tuned(task, seed=0) <= 1


def test_bands_are_students() -> None:
    found = report.point([0.4, 0.5, 0.6])
    assert found.mean == pytest.approx(0.5)
    assert found.half_width == pytest.approx(4.30 * 0.1 / 3**0.5, rel=1e-3)
    assert report.point([0.3]).half_width == 0


def test_the_program_runs_and_goes_on_where_it_was(folder: Path, tower: str, tmp_path: Path, capsys) -> None:
    words = ["--quick", "--data", str(folder), "--backbone", tower, "--held-out", "purple", "--out", str(tmp_path)]
    main(words)
    first = (tmp_path / "results.jsonl").read_text()
    assert len(first.splitlines()) == 2 * 2 * 2
    assert (tmp_path / "few-shot.png").stat().st_size > 5000
    main(words)
    assert (tmp_path / "results.jsonl").read_text() == first
    assert "tiny-clip, linear head, LoRA" in capsys.readouterr().out
