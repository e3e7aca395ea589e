"""A package's wheel is fetched where its environment has no pip, from the index of the user's own settings."""

from __future__ import annotations

import importlib.util
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from loreloop.formats import progress, registry
from loreloop.protocol.errors import ServerError

FIND_SPEC = importlib.util.find_spec


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks for packages in, with one, and no other index."""
    folder = tmp_path / "index" / "little"
    folder.mkdir(parents=True)
    info = "little-1.0.dist-info"
    with zipfile.ZipFile(folder / "little-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: little\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    page = '<!doctype html><a href="little-1.0-py3-none-any.whl">little-1.0-py3-none-any.whl</a>'
    (folder / "index.html").write_text(page)
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "index"


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else FIND_SPEC(name))
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("pip", "setting"),  # uv's settings speak for environments that have no pip
    [(True, "PIP_INDEX_URL"), (False, "PIP_INDEX_URL"), (False, "UV_DEFAULT_INDEX"), (False, "uv.toml")],
)
def test_the_wheel_comes_from_the_users_index(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: bool, setting: str
) -> None:
    if not pip:
        without_pip(monkeypatch)
    if setting == "uv.toml":
        (tmp_path / "config" / "uv").mkdir(parents=True)
        text = f'[[index]]\nname = "ours"\nurl = "{index.as_uri()}"\ndefault = true\n'
        (tmp_path / "config" / "uv" / "uv.toml").write_text(text)
    else:
        monkeypatch.setenv(setting, index.as_uri() if setting.startswith("PIP") else f"ours={index.as_uri()}")
    (tmp_path / "got").mkdir()
    wheel = registry.download("little==1.0", tmp_path / "got", 1000)
    assert wheel.read_bytes() == (index / "little" / wheel.name).read_bytes()


def test_what_each_way_said_is_told(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())
    with pytest.raises(ServerError, match=r"other==2.0 could not be downloaded.*(?s:.*)No matching distribution"):
        registry.download("other==2.0", tmp_path, 1000)


def test_without_any_pip_it_is_said_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    monkeypatch.setattr(registry, "_bundled_pip", lambda: None)
    with pytest.raises(ServerError, match="There is no pip"):
        registry.download("little==1.0", tmp_path, 1000)


def test_progress_is_lines_where_no_terminal_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    with progress.shown("Fetching it", tmp_path, 4 << 20):
        (tmp_path / "part").write_bytes(bytes(1 << 20))
        time.sleep(0.2)
        (tmp_path / "part").write_bytes(bytes(4 << 20))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Fetching it: about 4 MiB …"
    assert any(line.startswith("Fetching it:  25%  1 of 4 MiB") for line in lines)
    assert lines[-1].startswith("Fetching it: 100%  4 of 4 MiB")


def test_progress_of_what_fails_does_not_end_with_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broke"), progress.shown("Fetching it", tmp_path, 4 << 20):
        raise ValueError("it broke")
    assert "100%" not in capsys.readouterr().err
