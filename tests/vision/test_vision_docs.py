"""The example of docs/vision.md, run as it stands, by a client with the exports that a first start prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

from loreloop.cli.server import RunningServer
from tests.tiny_vision import picture

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"
CHECKS = """
assert losses[-1] < losses[0]
assert reply.usage.completion_tokens > 0
"""


def test_the_page_does_what_it_says(seeing: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(picture(64, 96))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    code = "\n".join([*blocks, CHECKS]).replace("Qwen/Qwen3-VL-4B-Instruct", "eyes")
    exports = {
        "TINKER_BASE_URL": seeing.url,
        "TINKER_API_KEY": seeing.key,
        "HF_ENDPOINT": f"{seeing.url}/hf",
        "HF_HOME": str(tmp_path / "hf"),
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, env=os.environ | exports, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
