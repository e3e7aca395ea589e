"""The command line's manners: quick help, exit codes, results on stdout and the rest on stderr, JSON for tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from loreloop.cli.main import cli
from loreloop.cli.serve import overrides
from loreloop.config import load_config
from loreloop.protocol.errors import BadRequest

VERBS = sorted(cli.commands)


def loreloop(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loreloop.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def rows(*arguments: str) -> list[dict[str, object]]:
    return list(json.loads(loreloop(*arguments, "--json").stdout))


@pytest.mark.timed
def test_help_is_quick_and_loads_nothing_heavy() -> None:
    def seconds() -> float:
        """Of computing: by the clock it would say how busy the machine is."""
        before = os.times()
        assert "Usage" in loreloop("--help").stdout
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.5
    heavy = "import sys, loreloop.cli.main; print(sorted({'torch', 'transformers', 'sqlalchemy'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True) == "[]\n"


def test_a_server_is_planned_and_watched_without_a_library_of_tensors(tiny_folder: Path, tmp_path: Path) -> None:
    """It would take a second of every start, and 200 MB as long as the server runs."""
    code = (
        "import sys\n"
        "from loreloop.cli.serve import engine_environment, plan_of\n"
        "from loreloop.config import Config\n"
        "from loreloop.host.supervisor import Supervisor\n"
        "from loreloop.store.inspection import inspect_data\n"
        "config = Config(data_dir=sys.argv[2], models=(sys.argv[1],))\n"
        "plan_of(config), engine_environment(config)\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(tiny_folder), str(tmp_path)]
    assert subprocess.check_output(command, text=True) == "[]\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does(verb: str) -> None:
    help_text = CliRunner().invoke(cli, [verb, "--help"])
    assert help_text.exit_code == 0
    assert cli.commands[verb].help


@pytest.mark.parametrize(
    "arguments",
    [
        ["unheard-of"],
        ["serve", "--port", "many"],
        ["serve", "--alias", "Qwen/Qwen3-8B-Base"],
        ["keys", "create"],
        ["keys", "create", " "],
        ["chat", "--max-tokens", "0"],
        ["memory", "eval", "/nowhere/at/all"],
        ["keys", "create", "a", "--scope", "infer:"],
        ["keys", "create", "a", "--scope", "train:bot"],
        ["models", "add"],
        ["deploy", "set", "bot"],
    ],
)
def test_misuse_ends_with_2(arguments: list[str]) -> None:
    assert loreloop(*arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "revoke", "nobody"], "no active key"),
        (["models", "add", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_an_expected_error_ends_with_1_and_a_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    ended = loreloop(*arguments, "--data", str(tmp_path))
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    secret = loreloop("keys", "create", "laptop", "--scope", "infer", "--scope", "infer:bot", *data).stdout.strip()
    assert secret.startswith("tml-")
    (row,) = rows("keys", "list", *data)
    assert (row["name"], row["scopes"], row["revoked"]) == ("laptop", "infer infer:bot", False)
    assert secret not in loreloop("keys", "list", *data).stdout
    assert loreloop("keys", "revoke", str(row["id"]), *data).returncode == 0
    assert rows("keys", "list", *data)[0]["revoked"] is True


def test_a_key_is_revoked_by_its_name_unless_several_have_it(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    for name in ("laptop", "twin", "twin"):
        assert loreloop("keys", "create", name, *data).returncode == 0
    assert loreloop("keys", "revoke", "laptop", *data).returncode == 0
    assert loreloop("keys", "revoke", "laptop", *data).returncode == 1
    ambiguous = loreloop("keys", "revoke", "twin", *data)
    assert ambiguous.returncode == 1
    ids = [str(row["id"]) for row in rows("keys", "list", *data) if row["name"] == "twin"]
    assert all(key_id in ambiguous.stderr for key_id in ids)
    assert loreloop("keys", "revoke", ids[0], *data).returncode == 0
    assert loreloop("keys", "revoke", "twin", *data).returncode == 0


def test_what_is_no_tool_server_is_registered_only_unchecked(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    refused = loreloop("tools", "add", "clock", *data, "--", "date")
    assert refused.returncode == 1
    assert "--no-check" in refused.stderr
    assert rows("tools", "list", *data) == []
    assert loreloop("tools", "add", "clock", "--no-check", *data, "--", "date").returncode == 0
    adder = Path(__file__).parents[1] / "clients" / "adder.py"
    added = loreloop("tools", "add", "adder", *data, "--", sys.executable, str(adder))
    assert "double, fail, sleep" in added.stdout, added.stderr


def test_known_models_are_listed_before_they_are_there(tmp_path: Path) -> None:
    assert "smollm2-135m" in [row["name"] for row in rows("models", "list", "--data", str(tmp_path))]


def test_flags_lie_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "loreloop.toml"
    file.write_text('port = 9\nhost = "::1"\n[engine]\nthreads = 3\nprecision = "fp32"\n')
    flags = {"models": ("a", "b"), "aliases": ("X/Y=a",), "port": 0, "precision": "bf16", "deterministic": None}
    config = load_config(str(file), overrides(flags))
    assert (config.models, config.aliases, config.host, config.port) == (("a", "b"), {"X/Y": "a"}, "::1", 0)
    assert (config.engine.threads, config.engine.precision, config.engine.deterministic) == (3, "bf16", False)


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "loreloop.toml"
    file.write_text("[engine]\nthread = 3\n")
    with pytest.raises(BadRequest, match="thread"):
        load_config(str(file), {})
