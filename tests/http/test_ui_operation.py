"""Pages of whoever runs the server: engines, keys and the audit log; they need no engine."""

import pytest
from sqlalchemy import Connection

from loreloop.store import keys
from tests.http.browser import Browser, signed_in, words
from tests.http.site import Site, play
from tests.store.place import write_now


async def operator(site: Site) -> tuple[Browser, str]:
    """A browser with an admin key, and the key."""
    secret, browser = site.new_key("admin"), Browser(site)
    await browser.sign_in(secret)
    return browser, secret


def test_the_operation_is_told_with_an_engine_and_without() -> None:
    async def scene(site: Site) -> None:
        browser, _ = await operator(site)
        shown = words(await browser.look("/operation"))
        assert "down" in shown
        assert "An engine is down. Nothing is lost" in shown
        await site.start_engine()
        shown = words(await browser.look("/operation"))
        assert "An engine is down" not in shown
        assert "free of" in shown
        told = await browser.read("/operation")
        assert [engine["up"] for engine in told["engines"]] == [True]
        assert told["waiting"]["samples"] == 0

    play(scene, engine=False)


@pytest.mark.parametrize("path", ["/operation", "/operation/live", "/keys", "/audit"])
def test_others_are_not_told(path: str) -> None:
    async def scene(site: Site) -> None:
        browser = await signed_in(site, "train")
        assert "needs the scope" in words(await browser.look(path, 403))
        assert 'href="/ui/keys"' not in await browser.look("/runs")

    play(scene, engine=False)


def test_a_key_is_made_shown_once_and_revoked() -> None:
    async def scene(site: Site) -> None:
        browser, secret = await operator(site)
        fields = {"name": "new", "scope": ["infer", "feedback"], "scopes": "infer:bot", "own_key": secret}
        answer = await browser.submit("/keys", "/keys", fields)
        made = next(row for row in site.office.store.read(keys.list_all) if row.name == "new")
        assert made.scopes == ("infer", "feedback", "infer:bot")
        shown = [word for word in words(answer.text).split() if word.startswith("tml-")]
        assert len(shown) == 1
        assert "tml-" not in words(await browser.look("/keys"))
        other = Browser(site)
        assert (await other.sign_in(shown[0])).status_code == 303
        assert (await browser.submit("/keys", f"/keys/{made.id}/revoke")).status_code == 303
        await other.look("/runs", 401)
        log = words(await browser.look("/audit"))
        assert "key_create" in log
        assert "key_revoke" in log
        assert "tml-" not in log
        assert (await browser.submit("/keys", f"/keys/{made.id}/revoke")).status_code == 404

    play(scene, engine=False)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": "a\u202eb"}, "needs a name"),
        ({"scope": "root"}, "none of the scopes"),
        ({"scopes": "infer:no slash/"}, "none of the scopes"),
        ({"own_key": ""}, "typed once more"),
    ],
    ids=["nameless", "unreadable", "root", "slash", "forgotten"],
)
def test_a_key_that_cannot_be_is_not_made(fields: dict[str, str], why: str) -> None:
    async def scene(site: Site) -> None:
        browser, secret = await operator(site)
        n_keys = len(site.office.store.read(keys.list_all))
        answer = await browser.submit("/keys", "/keys", {"name": "new", "own_key": secret} | fields)
        assert answer.status_code in (400, 403)
        assert why in words(answer.text)
        assert len(site.office.store.read(keys.list_all)) == n_keys

    play(scene, engine=False)


def test_a_key_is_not_made_with_anothers_key() -> None:
    async def scene(site: Site) -> None:
        browser, _ = await operator(site)
        other = site.new_key("admin")
        answer = await browser.submit("/keys", "/keys", {"name": "new", "own_key": other})
        assert answer.status_code == 403

    play(scene, engine=False)


def test_very_many_keys_are_shown_by_pages_those_in_force_first() -> None:
    def fill(connection: Connection) -> None:
        for number in range(300):
            made = keys.create(connection, f"old-{number}", ("infer",), 1.0 + number)
            keys.revoke(connection, made.row.id, 2.0)

    async def scene(site: Site) -> None:
        browser, _ = await operator(site)
        write_now(site.office.store, fill)
        told = await browser.read("/keys")
        assert (len(told["keys"]), told["total"]) == (200, 303)
        assert [key["revoked"] is None for key in told["keys"]] == [True] * 3 + [False] * 197
        page = await browser.look("/keys")
        assert ">More<" in page
        assert ">Before<" not in page
        rest = await browser.look("/keys?offset=200")
        assert "old-0<" in rest
        assert ">More<" not in rest

    play(scene, engine=False)


def test_a_day_of_the_log_is_chosen() -> None:
    async def scene(site: Site) -> None:
        browser, _ = await operator(site)
        assert "Nothing was done" in words(await browser.look("/audit?day=2020-01-31"))
        assert "is no date" in words(await browser.look("/audit?day=yesterday", 400))
        for day in ("0001-01-01", "9999-12-31"):
            assert "Nothing was done" in words(await browser.look(f"/audit?day={day}"))

    play(scene, engine=False)
