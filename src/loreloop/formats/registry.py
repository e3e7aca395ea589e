"""Fetches a package's wheel, from the index that the user's own settings name: pip knows those, so pip does it.

An environment need not have pip (uv and pipx make them without). Then Python's own copy does it, which is meant for new
environments and runs here without being installed, else one that uv lends, else one on the path. Nothing is installed,
and nothing of the package is run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loreloop.formats.progress import shown
from loreloop.protocol.errors import ServerError

SHOWN = 500  # last characters of what a failed try said


@dataclass(frozen=True)
class _Pip:
    """One way to run pip: its command, and what it needs in its environment."""

    command: list[str]
    environment: dict[str, str]


def download(requirement: str, folder: Path, n_bytes: int) -> Path:
    """The wheel of `name==version`, about `n_bytes` long, put into `folder`, which is empty. The caller checks it."""
    failures: list[str] = []
    # Only a wheel is taken: a source package would run its own code while it is built.
    arguments = ["download", "--quiet", "--no-input", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    scratch = folder / "scratch"
    scratch.mkdir()
    for pip in _pips():
        # pip's own temporary files lie where their growth can be seen; it works in a folder where nothing else lies.
        environment = os.environ | pip.environment | {"TMPDIR": str(scratch)}
        with shown(f"Downloading {requirement}", folder, n_bytes):
            done = subprocess.run(
                [*pip.command, *arguments, requirement],
                capture_output=True,
                text=True,
                check=False,
                cwd=scratch,
                env=environment,
            )
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
        failures.append(f"{' '.join(pip.command)}: {done.stderr.strip()[-SHOWN:]}")
    why = "\n".join(failures) or "There is no pip, in this environment, in Python itself, or on the path, and no uv."
    raise ServerError(
        f"The package {requirement} could not be downloaded. Its index is the one that pip's settings name "
        f"(PIP_INDEX_URL, pip.conf). {why}"
    )


def _pips() -> Iterator[_Pip]:
    if importlib.util.find_spec("pip") is not None:
        # `-P` keeps the working folder off the path, where a file named pip.py would be run instead.
        yield _Pip([sys.executable, "-P", "-m", "pip"], {})
        return
    index = _index_of_uv()
    if (wheel := _bundled_pip()) is not None:
        yield _Pip([sys.executable, "-P", "-m", "pip"], index | {"PYTHONPATH": str(wheel)})
    if (uv := shutil.which("uv")) is not None:
        yield _Pip([uv, "tool", "run", "pip"], index)
    if (pip := shutil.which("pip")) is not None:
        yield _Pip([pip], index)


def _bundled_pip() -> Path | None:
    """The wheel that makes new environments; some systems keep it apart from the standard library."""
    found = importlib.util.find_spec("ensurepip")
    places = [Path(found.origin).parent / "_bundled"] if found and found.origin else []
    if apart := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        places.append(Path(apart))
    return next((wheel for place in places for wheel in sorted(place.glob("pip-*.whl"))), None)


def _index_of_uv() -> dict[str, str]:
    """uv's index in pip's words, for users who have set only that."""
    environment = os.environ
    if "PIP_INDEX_URL" in environment:
        return {}
    settings = _settings_of_uv()
    url = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or settings.get("index-url")
    listed = settings.get("index")
    for index in listed if isinstance(listed, list) else []:
        if isinstance(index, dict) and index.get("default"):
            url = url or index.get("url")
    return {"PIP_INDEX_URL": re.sub(r"^[\w.-]+=", "", str(url))} if url else {}  # without the name it may have


def _settings_of_uv() -> dict[str, object]:
    file = os.environ.get("UV_CONFIG_FILE") or Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config", "uv", "uv.toml")
    try:
        return tomllib.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # none, or none that can be read
        return {}
