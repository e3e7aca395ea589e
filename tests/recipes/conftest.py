"""A server of the real model, and recipes of the unmodified cookbook run against it as users do.

Some know famous models only, so it is served under such a name as well; the tokenizers come from the server.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loreloop.cli.server import RunningServer, running_server
from loreloop.config import Config
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog

FAMOUS = "Qwen/Qwen3-8B-Base"


@dataclass(frozen=True)
class RecipeRun:
    """A recipe with its settings; `log` is the folder that it writes to."""

    command: tuple[str, ...]
    environment: dict[str, str]
    log: Path

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, env=self.environment, cwd=self.log.parent)

    def run(self, timeout_seconds: float = 900) -> None:
        subprocess.run(self.command, env=self.environment, cwd=self.log.parent, timeout=timeout_seconds, check=True)

    def metrics(self) -> list[dict[str, Any]]:
        return self._rows("metrics.jsonl")

    def checkpoints(self) -> list[dict[str, Any]]:
        return self._rows("checkpoints.jsonl")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        file = self.log / name
        whole_lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in whole_lines if line.endswith("\n")]


@dataclass(frozen=True)
class Cookbook:
    """The recipes, with a server's address and an empty cache in their environment."""

    server: RunningServer
    cache: Path
    folder: Path

    def recipe(self, name: str, *settings: str, installed_in: Path | None = None) -> RecipeRun:
        """`name` below tinker_cookbook.recipes; `installed_in` is a folder with another cookbook in it."""
        log = self.folder / "log"
        given = [f"model_name={FAMOUS}", f"log_path={log}", "behavior_if_log_dir_exists=resume", *settings]
        environment = os.environ | {
            "TINKER_BASE_URL": self.server.url,
            "TINKER_API_KEY": self.server.key,
            "HF_HOME": str(self.cache),
            "HF_ENDPOINT": f"{self.server.url}/hf",
            "PYTHONPATH": str(installed_in or ""),
        }
        return RecipeRun((sys.executable, "-m", f"tinker_cookbook.recipes.{name}", *given), environment, log)


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The user's models, the default one among them, since it is large enough to be kept from one run to the next."""
    catalog = Catalog(Config().data_path)
    ensure(catalog, "smollm2-135m")
    return catalog.folder


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def famous_server(tmp_path_factory: pytest.TempPathFactory, real_models: Path) -> Iterator[RunningServer]:
    """The default model, also as `FAMOUS`."""
    data = tmp_path_factory.mktemp("data")
    (data / "models").symlink_to(real_models)
    with running_server(str(data), ["--model", "smollm2-135m", "--alias", f"{FAMOUS}=smollm2-135m"]) as server:
        yield server


@pytest.fixture
def cookbook(famous_server: RunningServer, hub_cache: Path, tmp_path: Path) -> Cookbook:
    return Cookbook(famous_server, hub_cache, tmp_path)
