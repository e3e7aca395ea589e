"""The pages for users hold to the code: quoted messages, commands, flags, settings and the quickstart's program."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from loreloop.cli.main import cli
from loreloop.config import Config, EngineConfig, LimitConfig, SessionConfig
from loreloop.protocol import errors

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
ERRORS = (ROOT / "docs/errors.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]+)` \|.*\|.*\|$", ERRORS, re.M)


def templates() -> Iterator[str]:
    """Every text of the source, with … for what is put in."""
    for node in nodes():
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield plain(template(node))


def nodes() -> Iterator[ast.AST]:
    for path in (ROOT / "src").rglob("*.py"):
        if path.name != "fake.py":  # the engine of the tests, which no user meets
            yield from ast.walk(ast.parse(path.read_text()))


def template(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def raised() -> Iterator[str]:
    """The message of every `raise` of an error that users meet, where it has words of its own."""
    known = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"BadParameter", "UsageError"}
    for node in nodes():
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            name = ast.unparse(node.exc.func).split(".")[-1]
            message = plain(template(node.exc.args[0]))
            if name in known and re.search(r"\w\w", message):
                yield message


def plain(text: str) -> str:
    """Quotes and the bars of a table's cell aside, and one … for several."""
    return re.sub(r"…(?:[ :,]*…)+", "…", text.replace("`", "").replace("\\|", "|"))


SOURCE = "\n".join(templates())


@pytest.mark.parametrize("message", MESSAGES)
def test_every_quoted_message_is_one_of_the_source(message: str) -> None:
    wanted = plain(message).removesuffix("…").strip()
    assert wanted.removeprefix("…").strip() in SOURCE


def test_every_error_has_a_row() -> None:
    # A row without words of its own, which some message begins with, would stand for all.
    worded = [message for message in MESSAGES if re.search(r"\w\w", message)]
    rows = [re.compile(re.escape(plain(message)).replace("…", ".*")) for message in worded]
    assert len(rows) > 400
    assert [message for message in raised() if not any(row.fullmatch(message) for row in rows)] == []


def test_a_message_is_quoted_once() -> None:
    assert sorted(set(MESSAGES)) == sorted(MESSAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist_with_their_flags(page: Path) -> None:
    for words, rest in re.findall(r"(?<![\w/`]/)\bloreloop((?: [a-z][a-z-]*)+)([^`\n]*)", page.read_text()):
        name, *verbs = words.split()
        if name not in cli.commands:
            continue
        command: click.Command = cli.commands[name]
        if isinstance(command, click.Group):
            assert verbs, f"{page.name}: loreloop{words}"
            assert verbs[0] in command.commands, f"{page.name}: loreloop{words}"
            command = command.commands[verbs[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"{page.name}: loreloop{words}{rest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_exist(page: Path) -> None:
    trees = {"engine": EngineConfig, "session": SessionConfig, "limits": LimitConfig}
    known = {f"{name}.{field.name}" for name, tree in trees.items() for field in msgspec.structs.fields(tree)}
    named = set(re.findall(r"\b((?:engine|session|limits)\.[a-z_]+)\b", page.read_text()))
    assert named - {"engine.md"} <= known | {field.name for field in msgspec.structs.fields(Config)}


def test_the_quickstart_trains_as_the_readme_does() -> None:
    block = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
    (program,) = block.findall((ROOT / "docs/quickstart.md").read_text())
    readme = block.findall((ROOT / "README.md").read_text())[0]
    assert program.splitlines()[:-1] == readme.splitlines()[:-2]


def test_the_pages_are_in_the_table_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES if f"](docs/{page.name})" not in readme] == []


def test_every_decision_has_a_date_and_its_three_parts() -> None:
    decisions = (ROOT / "docs/decisions.md").read_text().split("\n### ")[1:]
    assert len(decisions) > 60
    for decision in decisions:
        parts = re.findall(r"^- \*\*(.+?)\.\*\*", decision, re.M)
        assert parts == ["Decision", "Why", "Considered instead"], decision
        assert re.match(r".+\n\n20\d\d-\d\d-\d\d\n\n", decision), decision


def test_the_figures_of_hardware_are_those_of_the_benchmarks() -> None:
    benchmarks = (ROOT / "docs/benchmarks.md").read_text()
    table = re.findall(r"^\| [^|]+ \| ([\d.]+ (?:tokens/s|MB)) \|$", (ROOT / "docs/hardware.md").read_text(), re.M)
    assert len(table) == 4
    for figure in table:
        assert figure in benchmarks, figure
