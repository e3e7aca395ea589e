"""How the code is measured: `python -m tests.quality` prints the rows of docs/quality.md as they are now.

A row is a number, with the bounds that it should lie between. It counts what is there and judges nothing.
"""

import ast
import io
import re
import statistics
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loreloop.config import Config, EngineConfig, LimitConfig, SessionConfig
from tests.test_architecture import FILES, MODULES, constants, functions, imports, is_broad, room_of

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """One measure, and what it should be: from `least` to `most`, both included."""

    name: str
    value: float
    most: float
    least: float = 0

    @property
    def passes(self) -> bool:
        return self.least <= round(self.value, 1) <= self.most


@dataclass(frozen=True)
class Source:
    """Some files, read and parsed."""

    paths: Sequence[Path]

    def texts(self) -> list[str]:
        return [path.read_text() for path in self.paths]

    def trees(self) -> list[ast.Module]:
        return [ast.parse(text) for text in self.texts()]

    def n_lines(self) -> list[int]:
        return [len(text.splitlines()) for text in self.texts()]


def share_below(values: Sequence[int], share: float) -> int:
    """The value that this share of the others lies below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def lengths(trees: Sequence[ast.AST]) -> list[int]:
    """Lines of every function, its docstring counted, decorators not."""
    return [(f.end_lineno or 0) - f.lineno + 1 for tree in trees for f in functions(tree)]


def n_comment_lines(text: str) -> int:
    """Lines that hold a comment, alone or behind code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def annotated_percent(trees: Sequence[ast.AST]) -> float:
    """How many arguments have a type; `self` and `cls` aside."""
    arguments = [
        argument
        for tree in trees
        for function in functions(tree)
        for argument in (*function.args.args, *function.args.kwonlyargs)
        if argument.arg not in ("self", "cls")
    ]
    return 100 * sum(argument.annotation is not None for argument in arguments) / len(arguments)


def n_two_way_pairs() -> int:
    """Pairs of rooms that import each other."""
    arrows = {
        (room_of(path), name.split(".")[1])
        for path in MODULES
        for name in imports(ast.parse(path.read_text()))
        if name.startswith("loreloop.")
    }
    return sum((b, a) in arrows for a, b in arrows if a < b)


def deferred_percent() -> float:
    """How many of the imports between our own files stand inside functions, the command line aside."""
    every, deferred = 0, 0
    for path in MODULES:
        tree = ast.parse(path.read_text())
        every += sum(name.startswith("loreloop") for name in imports(tree))
        if room_of(path) != "cli":
            inner = (name for function in functions(tree) for name in imports(function))
            deferred += sum(name.startswith("loreloop") for name in inner)
    return 100 * deferred / every


def n_calls(trees: Sequence[ast.AST], *names: str) -> int:
    """Calls of these functions."""
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(isinstance(call.func, ast.Name) and call.func.id in names for call in calls)


def texts_of_tests(source: Source) -> Iterator[str]:
    """The text of every test function."""
    for text, tree in zip(source.texts(), source.trees(), strict=True):
        for function in functions(tree):
            if function.name.startswith("test"):
                yield "\n".join(text.splitlines()[function.lineno - 1 : function.end_lineno])


def rows() -> list[Row]:
    """All rows, in the order of docs/quality.md."""
    package, tests = Source(FILES), Source(sorted((ROOT / "tests").rglob("*.py")))
    trees, n_lines = package.trees(), package.n_lines()
    total, known = sum(n_lines), constants()
    files = [n for n in n_lines if n > 5]
    of_functions = lengths(trees)
    handlers = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    written = list(texts_of_tests(tests))
    mocky = [text for text in written if re.search(r"monkeypatch|mock|\bpatch(?:ed)?\b", text, re.I)]
    settings = sum(len(msgspec.structs.fields(tree)) for tree in (Config, EngineConfig, SessionConfig, LimitConfig))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    comments = sum(map(n_comment_lines, package.texts()))
    return [
        Row("package, thousand lines", total / 1000, 25),
        Row("file, median", statistics.median(files), 200, least=80),
        Row("file, 90th percentile", share_below(files, 0.9), 349),
        Row("largest file", max(files), 499),
        Row("function, median", statistics.median(of_functions), 11),
        Row("longest function", max(of_functions), 59),
        Row("two-way pairs of rooms", n_two_way_pairs(), 0),
        Row("deferred imports outside `cli/`, %", deferred_percent(), 2.9),
        Row("broad excepts", sum(is_broad(handler, known) for handler in handlers), 3),
        Row("arguments with a type, %", annotated_percent(trees), 100, least=100),
        Row("lines with a comment, %", 100 * comments / total, 10, least=5),
        Row("`hasattr` and `getattr` in 1,000 lines", 1000 * n_calls(trees, "hasattr", "getattr") / total, 0.9),
        Row("settings", settings, 59),
        Row("lines of tests for a line of code", sum(tests.n_lines()) / total, 1.2, least=0.8),
        Row("test function, median", statistics.median(text.count("\n") + 1 for text in written), 14),
        Row("tests that patch something, %", 100 * len(mocky) / len(written), 4.9),
        Row("run-time dependencies", len(project["dependencies"]), 15),
    ]


if __name__ == "__main__":
    for row in rows():
        print(f"{row.name:<40} {row.value:>8.1f}  {'' if row.passes else 'misses'}")
