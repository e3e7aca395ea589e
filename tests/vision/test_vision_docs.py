"""The example of docs/vision.md, run as it stands."""

import re
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer
from tests.tiny_vision import picture

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"


@pytest.mark.filterwarnings("ignore")
def test_the_page_does_what_it_says(seeing: RunningServer, monkeypatch, tmp_path):
    monkeypatch.setenv("TINKER_BASE_URL", seeing.url)
    monkeypatch.setenv("TINKER_API_KEY", seeing.key)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"{seeing.url}/hf")  # as HF_ENDPOINT sets it
    monkeypatch.chdir(tmp_path)
    Path("cat.png").write_bytes(picture(64, 96))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names: dict = {}
    for block in blocks:
        exec(block.replace("Qwen/Qwen3-VL-4B-Instruct", "eyes"), names)
    assert names["losses"][-1] < names["losses"][0]
    assert names["reply"].usage.completion_tokens > 0
