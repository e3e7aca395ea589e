"""A server whose engine is two stages of a model that sees, by the SDK: it gives what one process gives."""

from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import running_server
from tests.tiny_vision import make_tiny_vision_model, picture
from tests.vision.test_vision_recovery import fit
from tests.vision.test_vision_sdk import ids, shown


def learned(folder: Path, *options: str) -> tuple[list[float], list[list[int]]]:
    """Losses of some steps over images, and what is sampled behind one."""
    make_tiny_vision_model(folder / "models" / "eyes", "qwen3_vl")
    with running_server(str(folder), ["--model", "eyes", "--precision", "fp32", "--threads", "1", *options]) as running:
        service = tinker.ServiceClient(base_url=running.url, api_key=running.key)
        client = service.create_lora_training_client("eyes", rank=8, seed=1).result()
        losses = fit(client, 3)
        sampler = client.save_weights_and_get_sampling_client().result()
        prompt = tinker.ModelInput(chunks=[ids(11), shown(picture(64, 96, seed=2)), ids(12, 13)])
        params = tinker.SamplingParams(max_tokens=6, seed=1, stop=[])
        return losses, [each.tokens for each in sampler.sample(prompt, 3, params).result().sequences]


def test_two_stages_that_see_give_what_one_process_gives(tmp_path: Path) -> None:
    losses, samples = learned(tmp_path / "two", "--mesh", "pp=2")
    expected, expected_samples = learned(tmp_path / "one")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert samples == expected_samples
