"""`pip install .` alone, in a fresh virtual environment, gives a working `loreloop serve`.

torch is pinned as in the Makefile, so that the environment's pip takes the same build. For other Pythons of the
machine an index may hold no such build: they get all dependencies but torch, and run commands that need no engine.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from loreloop import __version__
from tests.tiny import make_tiny_model

ROOT = Path(__file__).parent.parent.parent
TORCH = "torch==2.13.*"
VERSIONS = ("3.11", "3.12", "3.13")
QUIET = ["--quiet", "--disable-pip-version-check", "--no-compile"]


def others() -> list[str]:
    """Other Pythons that start; a shim of a version manager may stand there without one behind it."""
    found = []
    for version in VERSIONS:
        names = [f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
        working = (name for name in names if shutil.which(name) and starts(name))
        if version != f"3.{sys.version_info.minor}" and (name := next(working, None)):
            found.append(name)
    return found


def starts(python: str) -> bool:
    return subprocess.run([python, "-c", "import venv, ssl"], capture_output=True, check=False).returncode == 0


def fresh(python: str, folder: Path) -> Path:
    """A virtual environment, and the sources as a clone has them; the `bin` folder of the first."""
    subprocess.run([python, "-m", "venv", folder / "env"], check=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    return folder / "env" / "bin"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_pip_install_gives_a_working_server(tmp_path: Path) -> None:
    assert f"'{TORCH}'" in (ROOT / "Makefile").read_text()
    folder = fresh(sys.executable, tmp_path)
    run(folder / "pip", "install", *QUIET, TORCH, ".", cwd=tmp_path)
    assert __version__ in run(folder / "loreloop", "--version", cwd=tmp_path)
    model = make_tiny_model(tmp_path / "tiny")
    command = [folder / "loreloop", "serve", "--model", model, "--data", tmp_path / "data", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = next(line for line in process.stdout if line.startswith("Loreloop serves"))
            health = httpx.get(f"{line.split()[-1]}/healthz").json()
            assert {"status": "ok", "version": __version__}.items() <= health.items()
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_package_installs_with_other_pythons(tmp_path: Path) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for number, python in enumerate(others()):
        (here := tmp_path / str(number)).mkdir()
        folder = fresh(python, here)
        run(folder / "pip", "install", *QUIET, *(one for one in wanted if not one.startswith("torch>")), cwd=here)
        run(folder / "pip", "install", *QUIET, "--no-deps", ".", cwd=here)
        assert __version__ in run(folder / "loreloop", "--version", cwd=here)
        assert "tml-" in run(folder / "loreloop", "keys", "create", "alice", "--data", here / "data", cwd=here)
