"""Docs that lag fail: settings, commands and losses each have a line, and paths that pages name exist.

`tests/http` holds the endpoints.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from loreloop.cli.main import cli
from loreloop.config import Config, EngineConfig, LimitConfig, SessionConfig, load_config
from loreloop.formats.families_table import markdown

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src/loreloop"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])


def documented(page: str) -> str:
    return (DOCS / page).read_text()


def test_every_setting_has_a_line_with_its_default() -> None:
    page = documented("serving.md")
    trees = {"": Config, "engine.": EngineConfig, "session.": SessionConfig, "limits.": LimitConfig}
    for prefix, tree in trees.items():
        for field in msgspec.structs.fields(tree):
            if field.name not in ("engine", "session", "limits"):
                assert f"`{prefix}{field.name}`" in page, f"{prefix}{field.name} is not in serving.md"
                if prefix and isinstance(field.default, int | float):
                    row = next(line for line in page.splitlines() if line.startswith(f"| `{prefix}{field.name}`"))
                    assert f"{field.default:g}" in row or str(field.default).lower() in row, row


def test_every_command_has_help_and_a_line() -> None:
    pages = "".join(path.read_text() for path in [*DOCS.glob("*.md"), ROOT / "README.md"])
    for name, command in cli.commands.items():
        assert command.help, name
        assert f"loreloop {name}" in pages, name
        for verb in command.commands if isinstance(command, click.Group) else ():
            assert f"loreloop {name} {verb}" in pages, f"{name} {verb}"


def test_every_loss_has_a_line() -> None:
    page = documented("training.md")
    table = (ROOT / "src/loreloop/engine/losses/table.py").read_text()
    for name in re.findall(r'"(\w+)": \w+\(\)', table):
        assert f"`{name}`" in page, name


def test_the_table_of_families_is_that_of_the_code() -> None:
    assert markdown() in documented("models.md"), f"the table of models.md should be\n\n{markdown()}"


def test_links_lead_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_makefile_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_example_of_a_settings_file_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", documented("serving.md"), re.M | re.S)
    file = tmp_path / "server.toml"
    file.write_text(example)
    assert load_config(str(file), {}) != Config()


def named_paths(text: str) -> Iterator[str]:
    """Paths of this project in a page's code spans: they begin with a room or a folder of the repository, or end in the
    name of a source file. (Others belong to a data folder, or to the reader.)"""
    own = {folder.name for base in (ROOT, PACKAGE) for folder in base.iterdir() if folder.is_dir()}
    for span in re.findall(r"`([^`\n]+)`", text):
        for path in re.findall(r"(?<!\S)([\w.-]+/[\w./-]*)(?![^\s:,])", span):
            if path.split("/")[0] in own or path.endswith((".py", ".c")):
                yield path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    paths = [path for path in named_paths(text) if not any((base / path).exists() for base in (ROOT, PACKAGE))]
    bare = [
        name
        for name in re.findall(r"`(\w+\.py)`", text)
        if f"Save this as `{name}`" not in text and not any((base / name).exists() for base in (ROOT, PACKAGE))
    ]
    assert [*paths, *bare] == [], "paths begin at the repository or at src/loreloop"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_name_that_stands_beside_a_file_is_in_it(page: Path) -> None:
    for path, name in re.findall(r"`([\w/]+\.py)`(?: \(|, |: )`([\w.]+)`", page.read_text()):
        if not name.endswith(".py"):
            file = next(base / path for base in (PACKAGE, ROOT) if (base / path).exists())
            assert not {*name.split(".")} - {*re.findall(r"\w+", file.read_text())}, f"{path} has no {name}"


def test_paths_are_found_in_spans() -> None:
    text = "`http/sse.py`, `store/keys.py: of`, `runs/x`, `cat tests/tiny.py` and `…/model.py`; `model/families/`"
    assert [*named_paths(text)] == ["http/sse.py", "store/keys.py", "tests/tiny.py", "model/families/"]
