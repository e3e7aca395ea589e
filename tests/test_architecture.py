"""The shape of the code: who may import whom, how long a file and a function may be, what opens a file.

The table of rooms is the one of docs/architecture.md, and a test holds the two together.
"""

import ast
import re
import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeGuard

import msgspec
import pytest

from loreloop.config import Config, EngineConfig, LimitConfig, SessionConfig

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "loreloop"
GENERATED = {"wire_pb2.py"}

MAY_IMPORT = {
    "protocol": set(),
    "config": {"protocol"},
    "store": {"protocol", "config"},
    "text": {"protocol", "config"},
    "images": {"protocol", "config"},
    "kernels": set(),
    "model": {"protocol", "config", "kernels"},
    "formats": {"protocol", "config", "kernels", "model"},
    "parallel": {"protocol", "config", "model"},
    "plan": {"protocol", "model", "parallel"},
    "engine": {"protocol", "config", "images", "kernels", "model", "formats", "parallel"},
    "scheduler": {"protocol", "config", "text", "engine"},
    "outside": {"protocol", "config", "engine"},
    "host": {"protocol", "config", "store"},
    "deployments": {"protocol", "config", "store", "text"},
    "mcp": {"protocol", "config", "store", "text"},
    "memory": {"protocol", "text"},
    "learn": {"protocol", "config", "text"},
    "http": {"protocol", "config", "store", "text", "images", "host", "deployments", "mcp", "memory", "learn"},
    "demo": set(),
    "cli": {
        *(
            "protocol",
            "config",
            "store",
            "text",
            "model",
            "formats",
            "parallel",
            "plan",
            "engine",
            "scheduler",
            "outside",
            "host",
        ),
        *("deployments", "mcp", "memory", "learn", "http", "demo"),
    },
}
NO_TORCH = {
    *("protocol", "config", "store", "text", "images", "scheduler", "outside", "host"),
    *("deployments", "mcp", "memory", "learn", "http", "demo"),
}
# Sub-rooms that must not know one another: what they share stands in the room above them.
STRANGERS = (
    {"engine/training", "engine/sampling"},
    {"http/tinker", "http/openai", "http/anthropic", "http/operations"},
)
BROAD_EXCEPT_FILES = {"protocol/errors.py", "http/application.py", "mcp/toolbox.py"}
MOST_CAUGHT = 4  # classes named together; more are a broad except in disguise

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in GENERATED)
MODULES = [path for path in FILES if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow"
            yield from ([node.module] if node.module != "loreloop" else [f"loreloop.{a.name}" for a in node.names])


def constants() -> dict[str, ast.expr]:
    """What stands behind the names of modules' constants; of those that share a name, the longest tuple."""
    found: dict[str, ast.expr] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, node.value
                if n_named(value, {}) >= n_named(found.get(name), {}):
                    found[name] = value
    return found


def n_named(kinds: ast.expr | None, known: dict[str, ast.expr]) -> int:
    """How many classes an except clause names, behind constants too."""
    match kinds:
        case ast.Tuple():
            return sum(n_named(kind, known) for kind in kinds.elts)
        case ast.Starred():
            return n_named(kinds.value, known)
        case ast.Name(name) if name in known:
            return n_named(known[name], {})
    return 1


def is_broad(handler: ast.ExceptHandler, known: dict[str, ast.expr]) -> bool:
    kind = handler.type
    if kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")):
        return True
    return n_named(kind, known) > MOST_CAUGHT


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_follow_the_table(path: Path) -> None:
    room = room_of(path)
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "loreloop" and len(parts) > 1 and parts[1] not in (room, "__version__"):
            assert parts[1] in MAY_IMPORT[room], f"{room} may not import {name}"
            assert room != "scheduler" or parts[1] != "engine" or name == "loreloop.engine.contract", name
        assert not (parts[0] == "torch" and room in NO_TORCH), f"{room} may not hold torch"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_opens_with_its_purpose_and_fits_in_the_head(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a file says what it is"
    assert len(text.splitlines()) < 500


def undocumented(node: ast.Module | ast.ClassDef, inside: str = "") -> Iterator[str]:
    """The public functions, methods and classes without a docstring; those inside of functions are nobody's to call."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not each.name.startswith("_"):
            if not ast.get_docstring(each):
                yield inside + each.name
            if isinstance(each, ast.ClassDef):
                yield from undocumented(each, f"{inside}{each.name}.")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    names = [*undocumented(ast.parse(path.read_text()))]
    assert not names, "say what it gives, in which units, and what it raises"


def test_names_without_a_docstring_are_found() -> None:
    source = '''
class A:
    """Documented."""
    def f(self): ...
    def _g(self): ...
    class B: ...
async def h(): ...
def i():
    """Documented."""
    def inner(): ...
class _C:
    def j(self): ...
'''
    assert [*undocumented(ast.parse(source))] == ["A.f", "A.B", "h"]


LEAST_COMMENTED = 0.04  # of the package's lines


def test_comments_say_why() -> None:
    """Whether they do nobody can count, but code without any leaves the reader to guess."""
    lines = commented = 0
    for path in FILES:
        lines += len(path.read_text().splitlines())
        with tokenize.open(path) as file:
            tokens = tokenize.generate_tokens(file.readline)
            commented += len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})
    assert commented >= LEAST_COMMENTED * lines


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_fit_on_a_screen_and_are_typed(path: Path) -> None:
    for function in functions(ast.parse(path.read_text())):
        assert (function.end_lineno or 0) - function.lineno + 1 < 60, function.name
        arguments = [a for a in function.args.args if a.arg not in ("self", "cls")]
        device = any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)
        assert device or len(arguments) <= 6, f"{function.name}: more than six positional arguments"
        untyped = [a.arg for a in arguments + function.args.kwonlyargs if a.annotation is None]
        assert not untyped, f"{function.name}: {untyped}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stand_at_the_top_outside_the_command_line(path: Path) -> None:
    if path.is_relative_to(PACKAGE / "cli"):
        return
    for function in functions(ast.parse(path.read_text())):
        assert not [name for name in imports(function) if name.startswith("loreloop")], function.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_state_hides_in_modules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]


def test_memory_is_traced_in_a_process_of_its_own() -> None:
    tracing = [
        file for file in (ROOT / "tests").rglob("*.py") if re.search(r"^import tracemalloc", file.read_text(), re.M)
    ]
    assert tracing == [ROOT / "tests" / "peak.py"], "turned on beside the SDK's threads it ends the whole process"


def test_three_excepts_are_broad() -> None:
    """One for whatever others' work raises (`outcome_of`), one for requests, one for foreign tool servers."""
    known = constants()
    broad = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and is_broad(node, known)
    ]
    assert sorted(broad) == sorted(BROAD_EXCEPT_FILES)


@pytest.mark.parametrize(
    ("clause", "broad"),
    [
        ("", True),
        ("Exception", True),
        ("(A, B, C, D)", False),
        ("(A, B, C, D, E)", True),
        ("SOME", False),
        ("(A, B, *SOME)", True),
    ],
)
def test_many_classes_are_a_broad_except(clause: str, broad: bool) -> None:
    (handler,) = ast.parse(f"try: pass\nexcept {clause}: pass").body[0].handlers
    assert is_broad(handler, {"SOME": ast.parse("(X, Y, Z)", mode="eval").body}) == broad


MANY_FIELDS = 5  # a struct of more is built by keyword, but for the two that say what it is


class Structs:
    """The package's structs and dataclasses, by the file and the name under which each is known there."""

    def __init__(self) -> None:
        self.trees = {self.module(path): ast.parse(path.read_text()) for path in FILES}
        self.classes = {
            (module, node.name): node
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }
        self.known = {module: self._known(module) for module in self.trees}

    @staticmethod
    def module(path: Path) -> str:
        return ".".join(("loreloop", *path.relative_to(PACKAGE).with_suffix("").parts))

    def _known(self, module: str) -> dict[str, tuple[str, str]]:
        imported = {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in ast.walk(self.trees[module])
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        return imported | {name: (where, name) for where, name in self.classes if where == module}

    def n_fields(self, where: tuple[str, str]) -> int:
        """0 for what is no struct."""
        node = self.classes.get(where)
        if node is None:
            return 0
        names = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        of_bases = sum(self.n_fields(self.known[where[0]].get(name, ("", ""))) for name in names)
        is_data = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        own = sum(isinstance(each, ast.AnnAssign) for each in node.body)
        return of_bases + own if of_bases or is_data or {"Struct", "NamedTuple"} & {*names} else 0


def test_structs_of_many_fields_are_built_by_keyword() -> None:
    structs, found = Structs(), []
    for module, tree in structs.trees.items():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            by_place = len(call.args) > 2 or any(isinstance(argument, ast.Starred) for argument in call.args)
            if by_place and structs.n_fields(structs.known[module].get(call.func.id, ("", ""))) > MANY_FIELDS:
                found.append(f"{module}:{call.lineno} {call.func.id}")
    assert not found, "name the fields"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_parameter_is_a_tuple_of_unlike_things(path: Path) -> None:
    """It would dodge the limit on arguments; a small frozen struct says what its parts are."""
    for function in functions(ast.parse(path.read_text())):
        for argument in (*function.args.args, *function.args.kwonlyargs):
            match argument.annotation:
                case ast.Subscript(ast.Name("tuple"), ast.Tuple(parts)):
                    kinds = {ast.unparse(part) for part in parts} - {"..."}
                    assert len(kinds) == 1, f"{function.name}: {argument.arg}"


def test_one_file_knows_how_token_ids_lie_in_bytes() -> None:
    knowing = [str(path.relative_to(PACKAGE)) for path in FILES if re.search(r"[\"'][<=]?[if]4[\"']", path.read_text())]
    assert knowing == ["protocol/token_ids.py"]


def shape_letters(tree: ast.AST) -> set[str]:
    """The letters of the shapes that names end with: those of `weight_OI` are O and I."""
    names = {node.id if isinstance(node, ast.Name) else node.arg for node in ast.walk(tree) if is_named(node)}
    shapes = [match[1] for name in names if (match := re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)", name or ""))]
    return {*"".join(shapes)} - {*"0123456789"}


def is_named(node: ast.AST) -> TypeGuard[ast.Name | ast.arg]:
    return isinstance(node, ast.Name | ast.arg)


def test_shapes_are_read_from_names() -> None:
    assert shape_letters(ast.parse("def f(x_TD, cos_T1E): k_B2GE = MAX_N + a.b_V")) == {*"TDEBG"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_letters_of_shapes_are_in_the_legend_of_their_file(path: Path) -> None:
    tree = ast.parse(path.read_text())
    _, _, legend = (ast.get_docstring(tree) or "").partition("Legend: ")
    assert shape_letters(tree) - {*re.findall(r"\b[A-Z]\b", legend)} == set(), "the header ends with `Legend: …`"


def test_rooms_have_no_two_way_arrows() -> None:
    arrows = {(a, b) for a, targets in MAY_IMPORT.items() for b in targets}
    assert not {(a, b) for a, b in arrows if (b, a) in arrows}


@pytest.mark.parametrize("rooms", STRANGERS, ids=lambda rooms: " ".join(sorted(rooms)))
def test_sub_rooms_do_not_know_one_another(rooms: set[str]) -> None:
    for room in rooms:
        strangers = tuple(f"loreloop.{other.replace('/', '.')}." for other in rooms - {room})
        for path in (PACKAGE / room).glob("*.py"):
            known = [name for name in imports(ast.parse(path.read_text())) if f"{name}.".startswith(strangers)]
            assert not known, f"{path.name} knows {known}"


def test_only_the_application_knows_the_pages() -> None:
    knowing = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if not path.is_relative_to(PACKAGE / "http" / "ui")
        and any(name.startswith("loreloop.http.ui") for name in imports(ast.parse(path.read_text())))
    }
    assert knowing == {"http/application.py"}


def test_the_table_is_the_one_in_the_documentation() -> None:
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|.*\| ([^|]*) \|$", (ROOT / "docs/architecture.md").read_text(), re.M)
    documented = {room: set(re.findall(r"\w+", may)) for room, may in rows}
    present = {room_of(path) for path in MODULES}
    assert documented == {room: MAY_IMPORT[room] for room in documented}
    assert present <= documented.keys()


def test_routes_are_short() -> None:
    for path in (PACKAGE / "http").rglob("*.py"):
        for function in functions(ast.parse(path.read_text())):
            if any(argument.arg == "request" for argument in function.args.args):
                assert (function.end_lineno or 0) - function.lineno < 25, f"{path.name}: {function.name}"


def test_settings_are_few() -> None:
    trees = (Config, EngineConfig, SessionConfig, LimitConfig)
    assert sum(len(msgspec.structs.fields(tree)) for tree in trees) < 70


def targets_of(tree: ast.AST, modules: Collection[str]) -> Iterator[str]:
    """The modules that a file imports, those left out that it needs for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module or "" for name in whole)
        yield from targets_of(node, modules)


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {Structs.module(path).removesuffix(".__init__"): path for path in FILES}
    left = {}
    for module, path in modules.items():
        left[module] = {*targets_of(ast.parse(path.read_text()), modules)} & modules.keys() - {module}
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    assert not left, "these lie on a circle, or lead to one"
