"""One audit over all commands: help, wrong usage, JSON beside tables, and nothing made by those that only look."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from loreloop.cli.main import cli
from loreloop.protocol.errors import LoreloopError


def leaves(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(leaves(cli))
PATH = "tinker://nobody/weights/nothing"
MAKING = {
    ("serve",),
    ("demo",),
    ("loop", "demo"),
    ("models", "add"),
    ("keys", "create"),
    ("tools", "add"),
    ("memory", "eval"),
    ("files", "upload"),
}
ELSEWHERE = {("chat",), ("memory", "chat"), ("memory", "train"), ("memory", "answers")}  # ask a server
ELSEWHERE |= {("models", "check"), ("plan",), ("doctor",)}  # or look at a folder of somebody else's, or the machine
LOOPS = {
    ("loop", verb)
    for verb in (
        "init",
        "run",
        "status",
        "pause",
        "promote",
        "retrain",
        "rollback",
        "report",
        "decisions",
    )  # over one settings file
}
TRY = ("loop", "try")  # two arguments before the file
ELSEWHERE |= {words for words in COMMANDS if words[0] == "train"}
LISTS = {words for words in COMMANDS if words[-1] in ("list", "usage", "calls", "verify")}
ARGUMENTS = {
    ("status",): [],
    ("ps",): [],
    ("tail",): [],
    ("repair",): [],
    ("runs", "show"): ["nobody"],
    ("runs", "rm"): ["nobody", "--yes"],
    ("checkpoints", "show"): [PATH],
    ("checkpoints", "rm"): [PATH, "--yes"],
    ("checkpoints", "accept"): [PATH],
    ("checkpoints", "export"): [PATH, "out"],
    ("deploy", "set"): ["bot", "tinker://nobody/sampler_weights/nothing"],
    ("deploy", "history"): ["bot"],
    ("deploy", "rollback"): ["bot"],
    ("deploy", "delete"): ["bot"],
    ("deploy", "turns"): ["bot"],
    ("persons", "export"): ["ann", "--key", "nobody"],
    ("persons", "delete"): ["ann", "--key", "nobody"],
    ("deploy", "metrics"): ["bot"],
    ("loop", "turns"): ["bot"],
    ("loop", "review"): ["bot"],
    ("loop", "signs"): ["bot"],
    ("keys", "revoke"): ["nobody"],
    ("jobs", "show"): ["nobody"],
    ("jobs", "events"): ["nobody"],
    ("jobs", "cancel"): ["nobody"],
    ("jobs", "pause"): ["nobody"],
    ("jobs", "resume"): ["nobody"],
    ("files", "delete"): ["nobody"],
    ("tools", "remove"): ["nobody"],
    ("models", "remove"): ["nobody"],
    ("memory", "show"): ["nobody"],
    ("memory", "forget"): ["nobody", "--turn", "1"],
    ("memory", "resize"): ["nobody", "--budget", "100"],
    ("models", "count"): ["nobody"],
    ("models", "export"): ["nobody", PATH, "out"],
    ("models", "import-adapter"): [".", "--base", "nobody"],
}


def ended(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_the_audit_knows_every_command() -> None:
    assert set(COMMANDS) == MAKING | ELSEWHERE | LISTS | LOOPS | {TRY} | set(ARGUMENTS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_goes_to_the_output_and_misuse_ends_with_2(words: tuple[str, ...]) -> None:
    shown = ended(*words, "--help")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert COMMANDS[words].help
    wrong = ended(*words, "--no-such-option")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "No such option" in wrong.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_prints_a_table_prints_json_too(words: tuple[str, ...]) -> None:
    callback = COMMANDS[words].callback
    assert callback is not None
    called = set(inspect.unwrap(callback).__code__.co_names)
    options = {name for parameter in COMMANDS[words].params for name in parameter.opts}
    assert ("--json" in options) == bool(
        called
        & {"show", "show_all", "show_current", "table_of", "text_of", "answer_table", "_print", "_by_hand", "_show"}
    )


@pytest.mark.parametrize("words", sorted(LISTS), ids=" ".join)
def test_lists_of_nothing_make_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    data = tmp_path / "none"
    plain, exact = (ended(*words, "--data", str(data), *more) for more in ([], ["--json"]))
    assert (plain.exit_code, exact.exit_code) == (0, 0)
    if words == ("models", "list"):
        assert "smollm2-135m" in plain.stdout
    else:
        assert plain.stdout == ""
        assert " yet" in plain.stderr
        assert json.loads(exact.stdout) == []
    assert not data.exists()


@pytest.mark.parametrize("words", ARGUMENTS, ids=" ".join)
def test_what_is_not_there_is_said_and_makes_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    data = tmp_path / "none"
    refused = ended(*words, *ARGUMENTS[words], "--data", str(data))
    assert isinstance(refused.exception, LoreloopError), refused.exception  # `main` makes exit code 1 of it
    assert "There is no" in refused.exception.message
    assert refused.stdout == ""
    assert not data.exists()


@pytest.mark.parametrize("words", [*sorted(LOOPS - {("loop", "init")}), TRY], ids=" ".join)
def test_a_loop_without_its_file_says_so_and_makes_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    refused = ended(*words, *(["tinker://r/sampler_weights/a", PATH] if words == TRY else []), str(file))
    assert isinstance(refused.exception, LoreloopError), refused.exception
    assert str(file) in refused.exception.message
    assert refused.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_new_data_folder_is_its_users_alone(tiny_folder: Path, tmp_path: Path) -> None:
    for words in (["keys", "create", "ann"], ["models", "add", str(tiny_folder)]):
        data = tmp_path / words[0]
        assert ended(*words, "--data", str(data)).exit_code == 0
        assert data.stat().st_mode & 0o777 == 0o700


def test_a_folder_without_a_database_stays_so(tmp_path: Path) -> None:
    assert ended("runs", "list", "--data", str(tmp_path)).exit_code == 0
    assert list(tmp_path.iterdir()) == []
