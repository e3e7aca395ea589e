"""What docs/clients.md gives to paste does what it says, against a live server."""

import os
import re
import subprocess
import sys
from pathlib import Path

from loreloop.cli.server import RunningServer

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
SECTION = PAGE.split("## An existing agent")[1].split("\n## ")[0]
EXPORTS, EXAMPLE, CURL = re.findall(r"```(?:sh|python)\n(.*?)```", SECTION, re.DOTALL)


def pasted(server: RunningServer, text: str) -> str:
    """What a shell prints; the server and its model have other names here."""
    text = text.replace("http://127.0.0.1:8000", server.url).replace("smollm2-135m", "tiny")
    environment = os.environ | {"TINKER_API_KEY": server.key, "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-ec", text], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_for_agents_reach_the_server(server: RunningServer) -> None:
    assert pasted(server, f"{EXPORTS}\n$PYTHON - <<'END'\n{EXAMPLE}END\n").strip()
    through = 'import openai; print(openai.OpenAI().models.list().data[0].id, end="")'
    assert pasted(server, f"{EXPORTS}\n$PYTHON -c '{through}'") == "tiny"


def test_the_line_of_curl_reaches_the_server(server: RunningServer) -> None:
    assert '"finish_reason"' in pasted(server, CURL)
