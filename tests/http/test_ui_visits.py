"""Visits of the pages: who gets in, by which forms, and what ends a visit."""

import asyncio
import re
import time
from dataclasses import replace

import httpx
import pytest

from loreloop.http.ui import live, visits
from loreloop.store import keys
from tests.http.browser import UI, Browser, signed_in, words
from tests.http.site import Site, play
from tests.store.place import write_now

PAGES = (
    *("/", "/runs", "/jobs", "/deployments", "/playground", "/operation", "/keys", "/audit", "/compare", "/sign-in"),
    *("/nowhere", "/runs/none", "/jobs/none", "/deployments/none", "/turns/none"),
)


def test_a_stranger_is_asked_for_a_key() -> None:
    async def scene(site: Site) -> None:
        browser = Browser(site)
        page = await browser.look("/runs?limit=3", 401)
        assert 'name="key"' in page
        assert 'value="/ui/runs?limit=3"' in page
        assert (await browser.read("/runs", 401))["error"]["type"] == "authentication_error"

    play(scene, engine=False)


def test_a_key_opens_the_page_that_was_wanted() -> None:
    async def scene(site: Site) -> None:
        browser = Browser(site)
        answer = await browser.sign_in(site.new_key("train"), "/ui/jobs")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/jobs")
        cookie = answer.headers["set-cookie"].lower()
        assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/ui", "max-age="))
        assert "Fine-tuning jobs" in await browser.look("/jobs")

    play(scene, engine=False)


@pytest.mark.parametrize("address", ["https://elsewhere/ui/", "//elsewhere", "/ui//elsewhere", "/ui/\\elsewhere", ""])
def test_a_key_leads_to_no_page_of_others(address: str) -> None:
    async def scene(site: Site) -> None:
        answer = await Browser(site).sign_in(site.new_key("train"), address)
        assert answer.headers["location"] == "/ui/"

    play(scene, engine=False)


def test_a_wrong_key_is_told_so() -> None:
    async def scene(site: Site) -> None:
        answer = await Browser(site).sign_in("tml-wrong")
        assert answer.status_code == 401
        assert "not one of this server" in words(answer.text)
        assert "set-cookie" not in answer.headers

    play(scene, engine=False)


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("http://elsewhere", {}),
        ("null", {}),
        (None, {}),
        ("http://site", {"sec-fetch-site": "cross-site"}),
        ("http://site", {"sec-fetch-site": "same-site"}),
    ],
    ids=["elsewhere", "null", "none", "cross-site", "same-site"],
)
def test_a_form_of_another_site_does_nothing(origin: str | None, headers: dict[str, str]) -> None:
    async def scene(site: Site) -> None:
        key = site.new_key("train")
        stranger = Browser(site, origin)
        assert (await stranger.send("/sign-in", {"key": key}, **headers)).status_code == 403
        browser = await signed_in(site, "admin")
        browser.origin = origin
        token = re.search(r'name="form_token" value="(\w+)"', await browser.look("/keys"))
        assert token
        answer = await browser.send("/sign-out", {"form_token": token[1]}, **headers)
        assert answer.status_code == 403
        assert "nothing was done" in words(answer.text)
        await browser.look("/keys")

    play(scene, engine=False)


def test_a_form_needs_the_token_of_its_own_visit() -> None:
    async def scene(site: Site) -> None:
        ann, bob = await signed_in(site, "admin"), await signed_in(site, "admin")
        of_bob = re.search(r'name="form_token" value="(\w+)"', await bob.look("/keys"))
        assert of_bob
        for token in ("", of_bob[1], "é"):
            assert (await ann.send("/sign-out", {"form_token": token})).status_code == 403
        assert (await ann.submit("/keys", "/sign-out")).status_code == 303

    play(scene, engine=False)


def test_signing_out_ends_a_copied_cookie_too() -> None:
    async def scene(site: Site) -> None:
        browser, copy = await signed_in(site, "train"), Browser(site)
        copy.client.cookies.update(browser.client.cookies)
        await copy.look("/runs")
        answer = await browser.submit("/runs", "/sign-out")
        assert answer.headers["location"] == "/ui/sign-in"
        await browser.look("/runs", 401)
        await copy.look("/runs", 401)

    play(scene, engine=False)


def test_a_visit_that_was_ended_stays_so_when_the_server_is_started_anew() -> None:
    async def scene(site: Site) -> None:
        browser, other, copy = await signed_in(site, "train"), await signed_in(site, "train"), Browser(site)
        copy.client.cookies.update(browser.client.cookies)
        assert (await browser.submit("/runs", "/sign-out")).status_code == 303
        again = Site(site.office, replace(site.services))
        for ended in (browser, copy):
            ended.client = moved(again, ended)
            await ended.look("/runs", 401)
        other.client = moved(again, other)
        await other.look("/runs")

    play(scene, engine=False)


def moved(site: Site, browser: Browser) -> httpx.AsyncClient:
    """The browser's client at another site, with its cookies."""
    client = site.client_with(None)
    client.headers["accept"] = browser.client.headers["accept"]
    client.cookies.update(browser.client.cookies)
    return client


def test_another_sites_form_takes_no_cookie_away() -> None:
    async def scene(site: Site) -> None:
        stranger = Browser(site, "http://elsewhere")
        answer = await stranger.send("/sign-out", {})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    play(scene, engine=False)


@pytest.mark.parametrize("end", ["sign-out", "time"])
def test_what_is_sent_anew_ends_with_the_visit(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(live, "PAUSE_TIMES", 0)
    if end == "time":
        monkeypatch.setattr(visits, "VISIT_SECONDS", 2)

    async def scene(site: Site) -> None:
        browser = await signed_in(site, "admin")
        watching = asyncio.create_task(browser.client.get(f"{UI}/operation/live"))
        if end == "sign-out":
            other = Browser(site)
            other.client.cookies.update(browser.client.cookies)
            await asyncio.sleep(0.5)  # the stream has begun
            assert (await other.submit("/operation", "/sign-out")).status_code == 303
        answer = await asyncio.wait_for(watching, 10)
        assert answer.text.startswith("event: page")

    play(scene, engine=False)


def test_a_page_that_names_a_checkpoint_is_come_back_to() -> None:
    async def scene(site: Site) -> None:
        wanted = "/ui/playground?left=fake&right=tinker%3A//run/sampler_weights/first"
        answer = await Browser(site).sign_in(site.new_key("train"), wanted)
        assert answer.headers["location"] == wanted

    play(scene, engine=False)


def test_a_visit_ends_with_its_key() -> None:
    async def scene(site: Site) -> None:
        made = write_now(site.office.store, keys.create, "brief", ("train",), time.time())
        browser = Browser(site)
        await browser.sign_in(made.secret)
        await browser.look("/runs")
        write_now(site.office.store, keys.revoke, made.row.id, time.time())
        await browser.look("/runs", 401)

    play(scene, engine=False)


def test_a_cookie_opens_pages_alone_and_only_whole() -> None:
    async def scene(site: Site) -> None:
        browser = await signed_in(site, "admin")
        (cookie,) = browser.client.cookies.values()
        programs = site.client_with(None)
        headers = {"cookie": f"loreloop_visit={cookie}"}
        assert (await programs.get("http://site/loop/v1/deployments", headers=headers)).status_code == 401
        for wrong in (cookie[:-2], cookie.swapcase(), "", "x" * 5000):
            asked = await programs.get(f"{UI}/runs", headers={"cookie": f"loreloop_visit={wrong}"})
            assert asked.status_code == 401

    play(scene, engine=False)


def test_a_program_may_bring_its_key() -> None:
    async def scene(site: Site) -> None:
        answer = await site.client.get(f"{UI}/runs", headers={"accept": "application/json"})
        assert answer.json() == {"runs": [], "total": 0, "offset": 0, "limit": 50}

    play(scene, engine=False)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_nothing_from_elsewhere_and_runs_nothing_that_is_put_into_it(path: str) -> None:
    async def scene(site: Site) -> None:
        for browser in (await signed_in(site, "admin"), Browser(site)):
            answer = await browser.client.get(UI + path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["content-type"].startswith("text/html")
            assert not re.search(
                r"<script(?![^>]* src=\"/ui/)|<style|\sstyle=|\son\w+=|(src|href)=\"(https?:)?//", answer.text
            )
            assert answer.text.count("<h1>") == 1

    play(scene, engine=False)


def test_the_files_of_the_pages_are_a_list() -> None:
    async def scene(site: Site) -> None:
        browser = Browser(site)
        for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
            answer = await browser.client.get(f"{UI}/static/{name}")
            assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)
        for name in ("__init__.py", "..%2f__init__.py", "%2e%2e/frame.py", "uPlot.LICENSE.txt", "none.css"):
            assert (await browser.client.get(f"{UI}/static/{name}")).status_code == 404

    play(scene, engine=False)
