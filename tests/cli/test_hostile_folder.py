"""Nothing of the folder that somebody works in is imported or run: not by the server, its processes, nor their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from loreloop.cli import keys
from loreloop.host.server_plan import Address
from loreloop.mcp.connections import absolute
from loreloop.store import tools
from loreloop.store.keys import create
from loreloop.store.rows import ToolServer
from tests.tiny import make_tiny_model

LIBRARIES = """
    random mcp torch numpy json asyncio sitecustomize usercustomize llguidance jinja2 uvicorn uvloop httptools click
    httpx httpx2 msgspec transformers tokenizers logging tempfile anyio pip triton shouter secrets readline runpy
"""
SHOUTER = Path(__file__).parent.parent / "clients" / "shouter.py"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model's folder, which also holds what would be imported in place of libraries."""
    folder = make_tiny_model(tmp_path / "hostile", "qwen3", max_position_embeddings=8192)
    for name in LIBRARIES.split():
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write(__file__)\nraise ImportError\n")
    cc = folder / "cc"
    cc.write_text(f"#!/bin/sh\necho cc >> {folder / 'ran'}\nexit 1\n")
    cc.chmod(0o755)
    return folder


def environment(**more: str) -> dict[str, str]:
    """Without this project's own entries, and with kernels that are built anew."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more


@contextmanager
def serving(folder: Path, data: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of `loreloop serve --model .`, started in the folder as a user starts it."""
    command = [str(Path(sys.executable).parent / "loreloop"), "serve", "--data", os.path.relpath(data, folder)]
    arguments = ["--model", ".", "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    file, deadline = data / "run" / "server.json", time.monotonic() + 60
    try:
        while not file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield msgspec.json.decode(file.read_bytes(), type=Address).url
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("path", [None, f"{os.pathsep}/nowhere"])
def test_nothing_of_the_working_folder_runs(hostile: Path, tmp_path: Path, path: str | None) -> None:
    data = tmp_path / "data"
    if path:  # the interpreter's own business, before anything of ours
        for name in ("sitecustomize", "usercustomize"):
            (hostile / f"{name}.py").unlink()
    run_it = f"import runpy; runpy.run_path({str(SHOUTER)!r}, run_name='__main__')"  # `-c` looks where it works
    with keys.transaction(str(data), new=True) as connection:
        secret = create(connection, "test", ("admin",), time.time()).secret
        tools.add(connection, ToolServer("shouter", (sys.executable, "-c", run_it), None), time.time())
    more = {"XDG_CACHE_HOME": str(tmp_path / "cache")} | ({"PYTHONPATH": path} if path else {})
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    asked = {"model": "hostile", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    bodies = [
        asked | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        asked | {"tools": [{"type": "mcp", "server_label": "shouter"}], "agent_loop": {}},
    ]
    with (
        serving(hostile, data, environment(**more)) as url,
        httpx.Client(base_url=url, headers={"x-api-key": secret}, timeout=60) as client,
    ):
        for body in bodies:
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
    assert not (hostile / "ran").exists(), (hostile / "ran").read_text()


def test_the_module_run_by_its_name_takes_the_folder_off_before_libraries(hostile: Path) -> None:
    """What the interpreter itself imports to find a module, `runpy` first, nobody can keep it from."""
    for name in ("runpy", "sitecustomize", "usercustomize"):
        (hostile / f"{name}.py").unlink()
    command = [sys.executable, "-m", "loreloop.cli", "models", "list", "--data", str(hostile / "data")]
    done = subprocess.run(command, cwd=hostile, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (hostile / "ran").exists(), (hostile / "ran").read_text()


def test_a_model_that_was_added_goes_before_a_folder_of_its_name(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loreloop.formats.catalog import Catalog

    shutil.copytree(tiny_folder, tmp_path / "data" / "models" / "mine")
    shutil.copytree(tiny_folder, tmp_path / "work" / "mine")
    monkeypatch.chdir(tmp_path / "work")
    catalog = Catalog(tmp_path / "data")
    assert catalog.find("mine").folder == tmp_path / "data" / "models" / "mine"
    assert catalog.find("./mine").folder == tmp_path / "work" / "mine"


def test_a_tool_servers_files_are_found_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "server.py").touch()
    (tmp_path / "clock").mkdir()
    told = ("python", "server.py", "-m", "clock", "./clock", "--in=./clock", "nothing.py", ".")
    found = ("python", f"{tmp_path}/server.py", "-m", "clock", f"{tmp_path}/clock", "--in=./clock", "nothing.py")
    assert absolute(told, tmp_path) == (*found, str(tmp_path))
