"""The OpenAPI document that the server serves: it has every route for programs, with the bodies that they read."""

import ast
import re
from pathlib import Path

import loreloop.http
from loreloop.http.openapi import BODIES, LEFT_OUT, OTHER_BODIES, QUERIES
from tests.http.site import Site, play

ROOM = Path(loreloop.http.__file__).parent
READERS = ("read_json", "read_as_sent", "decode")


def endpoints() -> dict[str, ast.AsyncFunctionDef]:
    """The functions of the room's files that take a request, those of pages left out."""
    files = [path for path in ROOM.rglob("*.py") if "ui" not in path.relative_to(ROOM).parts]
    nodes = [node for path in files for node in ast.parse(path.read_text()).body]
    return {node.name: node for node in nodes if isinstance(node, ast.AsyncFunctionDef)}


def test_it_names_every_route_for_programs_once() -> None:
    async def scene(site: Site) -> None:
        document = (await site.client_with(None).get("http://site/openapi.json")).json()
        found = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        wanted = set()
        for prefix, route in site.routes():
            if prefix not in LEFT_OUT:
                path = re.sub(r"\{(\w+):path\}", r"{\1}", prefix + route.path)
                wanted |= {(method, path) for method in (route.methods or set()) - {"HEAD", "OPTIONS"}}
        assert found == wanted
        operations = [one for methods in document["paths"].values() for one in methods.values()]
        assert len({one["operationId"] for one in operations}) == len(operations)
        assert all(one["summary"] for one in operations)
        text = str(document)
        assert "\\\\A" not in text
        assert set(re.findall(r"#/components/schemas/([\w.]+)", text)) <= document["components"]["schemas"].keys()

    play(scene, engine=False)


def test_a_route_that_reads_a_body_says_which() -> None:
    said = {endpoint.__name__: kind.__name__ for endpoint, kind in BODIES.items()}
    read = {
        name: ast.unparse(call.args[1]).split(".")[-1]
        for name, node in endpoints().items()
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in READERS
        if len(call.args) > 1 and name not in READERS
    }
    assert said == read


def test_names_in_an_address_are_said_of_routes_that_there_are() -> None:
    assert QUERIES.keys() | OTHER_BODIES.keys() <= endpoints().keys()
    asking = {name for name, node in endpoints().items() if "limit_of(" in ast.unparse(node)}
    assert asking <= QUERIES.keys()
