"""The tables of docs/protocol.md hold the application's routes, each with the scope that it asks for."""

import re

import pytest

from tests.http.site import Site, play
from tests.test_docs import documented

PAGE = documented("protocol.md")
TABLES = PAGE.split("<!-- endpoints: every row is tested -->")[1].split("<!-- end of endpoints -->")[0]
ROWS = re.findall(r"^\| ([A-Z]+) \| `([^`]+)` \| ([^|]+) \| ([^|]+) \|.*\|$", TABLES, re.M)
NEEDS = {(method, path): needs.strip("`") for method, path, _, needs in ROWS}
SIGNED = "a signature"
# What a key of these scopes may not do, by the words of the column.
JUDGING = "feedback:NAME"
GIVING_UP = "/api/v1/auth/apikey/me"  # the only route that takes the caller's key away
REFUSED = {
    "infer:elsewhere": {"infer", "train", "admin", JUDGING},
    "infer": {"train", "admin", JUDGING},
    "train": {"admin", JUDGING},
    "feedback": {"infer:NAME", "infer", "train", "admin"},
    "feedback:elsewhere": {"infer:NAME", "infer", "train", "admin"},
}


def served(site: Site) -> set[tuple[str, str]]:
    found = set()
    for prefix, route in site.routes():
        path = re.sub(r"\{(\w+):path\}", r"{\1}", prefix + route.path)
        found |= {(method, path) for method in (route.methods or set()) - {"HEAD"}}
    return found


def test_the_tables_hold_every_route_once_and_nothing_else() -> None:
    async def scene(site: Site) -> None:
        also_openai = {(method, f"/oai/api{path}") for method, path in NEEDS if path.startswith("/v1/")}
        assert also_openai | NEEDS.keys() == served(site)
        assert len(NEEDS) == len(ROWS)
        assert all(what.strip() for _, _, what, _ in ROWS)

    play(scene, engine=False)


def test_a_row_without_a_key_answers_strangers_and_the_others_do_not() -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(None) as stranger:
            for (method, path), needs in NEEDS.items():
                answer = await stranger.request(method, f"http://site{path}", json={})
                assert (answer.status_code == 401) == (needs not in ("–", SIGNED)), path

    play(scene, engine=False)


@pytest.mark.parametrize("scope", REFUSED)
def test_a_row_names_the_scope_that_is_asked_for(scope: str) -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(site.new_key(scope)) as client:
            # Last, since nothing can be asked after it.
            for (method, path), needs in sorted(NEEDS.items(), key=lambda row: row[0] == ("DELETE", GIVING_UP)):
                answer = await client.request(method, f"http://site{path}", json={})
                refused = answer.status_code == 403 and "needs the scope" in answer.text
                assert refused == (needs in REFUSED[scope]), (path, answer.text)

    play(scene)
