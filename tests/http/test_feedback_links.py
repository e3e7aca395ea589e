"""Links that a person answers without a key, and tokens that a page of another origin gives feedback with."""

from html.parser import HTMLParser

import httpx
import pytest

from loreloop.http.loop import links, speakers
from loreloop.store import keys
from tests.http.loop_rig import EPISODE, LOOP, TURN, feed, set_up
from tests.http.site import Scene, Site, play
from tests.store.place import write_now

PAGE = "https://shop.example"


def play_about(scene: Scene) -> None:
    async def whole(site: Site) -> None:
        set_up(site)
        await scene(site)

    play(whole, engine=False)


async def link(site: Site, **fields: object) -> str:
    body = {"target_id": TURN, "metric": "thumb", "who": "ann"} | fields
    answer = await site.client.post(f"{LOOP}/feedback-links", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["url"]


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_looking_at_a_link_votes_nothing_and_its_form_does() -> None:
    async def scene(site: Site) -> None:
        url = await link(site)
        async with site.client_with(None) as mail:
            for _ in range(3):  # as a scanner of mails does
                assert (await mail.get(url)).status_code == 200
                assert (await mail.head(url)).status_code == 200
            assert await feed(site) == []
            answer = await mail.post(url, data={"value": "true", "why": "clear"})
            assert "Recorded: <strong>good</strong>" in answer.text
            await mail.post(url, data={"value": "true", "why": "clear"})
            (said,) = await feed(site)
            assert (said["value"], said["who"], said["why"], said["source"]) == (True, "ann", "clear", "human")
            await mail.post(url, data={"value": "false"})
            assert [each["value"] for each in await feed(site)] == [True, False]
            assert (await feed(site))[1]["overrides"] == said["id"]

    play_about(scene)


@pytest.mark.parametrize(
    ("metric", "target", "form", "value"),
    [
        ("thumb", TURN, {"value": "false"}, False),
        ("accepted", EPISODE, {"value": "true"}, True),
        ("score", TURN, {"value": "0.5"}, 0.5),
        ("comment", EPISODE, {"value": " fine <b> "}, "fine <b>"),
        ("demonstration", TURN, {"value": "4"}, "4"),
    ],
)
def test_a_page_has_what_its_metric_needs_and_nothing_from_elsewhere(
    metric: str, target: str, form: dict[str, str], value: object
) -> None:
    async def scene(site: Site) -> None:
        url = await link(site, metric=metric, target_id=target)
        async with site.client_with(None) as mail:
            page = await mail.get(url)
            assert page.headers["content-security-policy"].startswith("default-src 'none'")
            assert page.headers["referrer-policy"] == "no-referrer"
            tags = Tags(page.text).found
            assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in tags}
            assert not [attributes for _, attributes in tags if {"src", "href"} & attributes.keys()]
            assert ("html", {"lang": "en"}) in tags
            fields = {each["id"] for tag, each in tags if tag in ("input", "textarea")}
            assert fields == {each["for"] for tag, each in tags if tag == "label"}, "each field has its label"
            answer = await mail.post(url, data=form)
            assert answer.status_code == 200, answer.text
            assert "<b>" not in answer.text
        assert [each["value"] for each in await feed(site)] == [value]

    play_about(scene)


@pytest.mark.parametrize("form", [{}, {"value": ""}, {"value": "maybe"}, {"why": "x"}])
def test_a_form_without_a_value_is_sent_back(form: dict[str, str]) -> None:
    async def scene(site: Site) -> None:
        for metric in ("thumb", "score"):
            async with site.client_with(None) as mail:
                answer = await mail.post(await link(site, metric=metric), data=form)
                assert (answer.status_code, answer.headers["content-type"]) == (400, "text/html; charset=utf-8")
                assert "brought no value" in answer.text
        assert await feed(site) == []

    play_about(scene)


def test_a_link_ends_with_its_time_and_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        secret = site.new_key("feedback:bot")
        async with site.client_with(secret) as maker, site.client_with(None) as mail:
            body = {"target_id": TURN, "metric": "thumb", "expires_seconds": 60}
            url = (await maker.post(f"{LOOP}/feedback-links", json=body)).json()["url"]
            with monkeypatch.context() as later:
                later.setattr(links, "now", lambda: 9e9)
                refused = await mail.post(url, data={"value": "true"})
                assert refused.status_code == 403
                assert "has expired" in refused.text
            row = site.services.store.read(keys.find, secret, 0.0)
            assert row is not None
            write_now(site.office.store, keys.revoke, row.id, 1.0)
            refused = await mail.post(url, data={"value": "true"})
            assert refused.status_code == 403
            assert "its key was revoked" in refused.text
        assert await feed(site) == []

    play_about(scene)


def test_no_letters_but_the_server_s_own_are_a_link() -> None:
    async def scene(site: Site) -> None:
        url = await link(site)
        head, _, letters = url.rpartition("/")
        token = (await site.client.post(f"{LOOP}/feedback-tokens", json=token_body())).json()["token"]
        forged = [letters[:-1] + ("A" if letters[-1] != "A" else "B"), letters[5:], "x", "é", "A" * 5000]
        async with site.client_with(None) as mail:
            for each in (*forged, token.removeprefix(speakers.PREFIX)):
                assert (await mail.get(f"{head}/{each}")).status_code == 403, each

    play_about(scene)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"metric": "preference"}, 400, "a preference is about two"),
        ({"metric": "mood"}, 400, "has no metric"),
        ({"metric": "demonstration", "target_id": EPISODE}, 400, "is about a turn"),
        ({"target_id": "nothing"}, 404, "no turn or episode"),
        ({"expires_seconds": 1}, 400, "expires_seconds"),
        ({"expires_seconds": 10**9}, 400, "expires_seconds"),
    ],
)
def test_a_link_to_nothing_is_not_made(fields: dict[str, object], status: int, words: str) -> None:
    async def scene(site: Site) -> None:
        body = {"target_id": TURN, "metric": "thumb"} | fields
        answer = await site.client.post(f"{LOOP}/feedback-links", json=body)
        assert answer.status_code == status
        assert words in answer.text

    play_about(scene)


def token_body(**fields: object) -> dict[str, object]:
    return {"deployment": "bot", "origins": [PAGE]} | fields


async def post(client: httpx.AsyncClient, token: str, origin: str | None = PAGE, **fields: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} | ({"origin": origin} if origin else {})
    body = {"target_id": TURN, "metric": "thumb", "value": True} | fields
    return await client.post(f"{LOOP}/feedback", json=body, headers=headers)


def test_a_page_gives_feedback_on_one_deployment_and_reads_what_it_is_told() -> None:
    async def scene(site: Site) -> None:
        token = (await site.client.post(f"{LOOP}/feedback-tokens", json=token_body())).json()["token"]
        async with site.client_with(None) as browser:
            asked = {"origin": PAGE, "access-control-request-method": "POST"}
            before = await browser.options(f"{LOOP}/feedback", headers=asked)
            assert before.status_code == 204
            assert before.headers["access-control-allow-origin"] == PAGE
            assert "authorization" in before.headers["access-control-allow-headers"]
            given = await post(browser, token, who="ann")
            assert (given.status_code, given.headers["access-control-allow-origin"]) == (200, PAGE)
            assert given.json()["giver"].endswith("/browser")
            wrong = await post(browser, token, value=3)
            assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (400, PAGE)
            headers = {"authorization": f"Bearer {token}", "origin": PAGE}
            gone = await browser.delete(f"{LOOP}/feedback/{given.json()['id']}", headers=headers)
            assert (gone.status_code, gone.headers["access-control-allow-origin"]) == (200, PAGE)
        assert [each["retracted"] for each in await feed(site)] == [True]

    play_about(scene)


@pytest.mark.parametrize(
    ("origin", "fields", "status"),
    [
        ("https://evil.example", {}, 403),
        (None, {}, 403),
        ("null", {}, 403),
        (PAGE, {"target_id": "chatcmpl-foreign"}, 404),
        (PAGE, {"source": "judge"}, 400),
        (PAGE, {"metric": "verdict", "value": 1}, 400),
        (PAGE, {"tags": {"golden": "1"}}, 400),
        (PAGE, {"source": "implicit"}, 200),
    ],
)
def test_a_token_is_good_for_nothing_else(origin: str | None, fields: dict[str, object], status: int) -> None:
    async def scene(site: Site) -> None:
        token = (await site.client.post(f"{LOOP}/feedback-tokens", json=token_body())).json()["token"]
        async with site.client_with(None) as browser:
            assert (await post(browser, token, origin, **fields)).status_code == status
            headers = {"authorization": f"Bearer {token}", "origin": PAGE}
            for path in ("/loop/v1/deployments/bot/feedback", "/v1/models", "/loop/v1/feedback/x"):
                assert (await browser.get(f"http://site{path}", headers=headers)).status_code == 401
            for path in ("feedback-links", "feedback-tokens"):
                assert (await browser.post(f"{LOOP}/{path}", json={}, headers=headers)).status_code == 401

    play_about(scene)


def test_a_token_has_a_rate_and_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        made = await site.client.post(f"{LOOP}/feedback-tokens", json=token_body(per_minute=6))
        token = made.json()["token"]
        async with site.client_with(None) as browser:
            assert (await post(browser, token)).status_code == 200
            fast = await post(browser, token, value=False)
            assert (fast.status_code, fast.headers["access-control-allow-origin"]) == (429, PAGE)
            monkeypatch.setattr(speakers, "now", lambda: made.json()["expires"] + 1.0)
            late = await post(browser, token)
            assert late.status_code == 401
            assert "has expired" in late.text

    play_about(scene)


@pytest.mark.parametrize(
    ("origin", "is_one"),
    [
        ("*", True),
        ("https://shop.example", True),
        ("http://127.0.0.1:8080", True),
        ("capacitor://localhost", True),
        ("https://[::1]:8080", True),
        ("https://shop.example/", False),
        ("shop.example", False),
        ("null", False),
        ("https://a,https://b", False),
        ("https://a\r\nx: y", False),
        ("https://a\n", False),
        ("", False),
    ],
)
def test_origins_are_as_browsers_write_them(origin: str, is_one: bool) -> None:
    async def scene(site: Site) -> None:
        answer = await site.client.post(f"{LOOP}/feedback-tokens", json=token_body(origins=[origin]))
        assert answer.status_code == (200 if is_one else 400)
        assert is_one or "origins" in answer.text

    play_about(scene)


def test_the_letters_of_a_link_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(site: Site) -> None:
        url = await link(site)
        with caplog.at_level("INFO"):
            async with site.client_with(None) as mail:
                for method in ("GET", "POST", "DELETE"):
                    await mail.request(method, url, data={"value": "true"})
        shown = [record.getMessage() for record in caplog.records if record.name.endswith("application")]
        assert len(shown) == 3
        assert all(" /f/... " in line for line in shown)
        assert url.rpartition("/")[2] not in caplog.text.replace(url, "")

    play_about(scene)


@pytest.mark.parametrize("scopes", [("feedback:elsewhere",), ("feedback",)])
def test_a_token_for_a_deployment_needs_a_key_for_it(scopes: tuple[str, ...]) -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(site.new_key(*scopes)) as client:
            answer = await client.post(f"{LOOP}/feedback-tokens", json=token_body())
            assert answer.status_code == 404

    play_about(scene)
