"""README's blocks: they parse, their commands exist; and, slowly, all of them run in order as they stand."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import click
import pytest

from loreloop.cli.main import cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
README = (ROOT / "README.md").read_text()
PYTHON = [text for kind, text in BLOCK.findall(README) if kind == "python"]
SHOWN_EXPORTS = re.findall(r"^export (\w+)=", README, re.M)


def test_every_python_block_parses() -> None:
    assert len(PYTHON) == 2
    for text in PYTHON:
        ast.parse(text)


def test_every_command_exists_with_its_flags() -> None:
    found = re.findall(r"\.?(?:venv/bin/)?loreloop ((?:[a-z]+ ?)+)((?:--[a-z-]+ \S+ ?)*)", README)
    commands = [(words.split(), re.findall(r"--[a-z-]+", flags)) for words, flags in found]
    known = [(words, flags) for words, flags in commands if words[0] in cli.commands]
    assert len(known) >= 4
    for words, flags in known:
        command: click.Command = cli.commands[words[0]]
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.commands[words[1]]
        assert set(flags) <= {name for param in command.params for name in param.opts}, (words, flags)


@contextmanager
def first_start(home: Path) -> Iterator[dict[str, str]]:
    """README's server, in an empty home; gives what it tells its client's shell to export."""
    command = [str(Path(sys.executable).parent / "loreloop"), "serve", "--model", "smollm2-135m", "--port", "0"]
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")  # the kernels are compiled once
    environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": cache}
    command += ["--parent-pid", str(os.getpid())]
    process = subprocess.Popen(command, env=environment, stdout=PIPE, text=True)
    assert process.stdout is not None
    try:
        exports: dict[str, str] = {}
        while len(exports) < len(SHOWN_EXPORTS) and (line := process.stdout.readline()):
            print(line, end="")
            if line.startswith("export "):
                name, value = line.removeprefix("export ").strip().split("=")
                exports[name] = value.replace("~", str(home))
        yield exports
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
def test_the_examples_run_in_order_and_answer_sensibly(tmp_path: Path) -> None:
    with first_start(tmp_path) as exports:
        assert list(exports) == SHOWN_EXPORTS
        text = "".join(PYTHON).replace("http://127.0.0.1:8000", exports["TINKER_BASE_URL"])
        environment = os.environ | {"HOME": str(tmp_path)} | exports
        done = subprocess.run(
            [sys.executable, "-u", "-c", text],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"^step \d: loss ([\d.]+)$", done.stdout, re.M)]
    assert len(losses) == 8
    assert losses[-1] < 0.2 * losses[0]
    assert re.search(r"^tinker://\S+/sampler_weights/first$", done.stdout, re.M)
    assert done.stdout.count("Tokyo") == 1, done.stdout
    assert "bluebird" in done.stdout.rstrip().splitlines()[-1]
