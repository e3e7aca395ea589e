"""Docs that lag fail: settings, commands and losses each have a line; `tests/http` holds the endpoints."""

import re
from pathlib import Path

import click
import msgspec

from loreloop.cli.main import cli
from loreloop.config import Config, EngineConfig, LimitConfig, SessionConfig, load_config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


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
