"""A browser on a site's pages, as far as forms, cookies and the headers of browsers go."""

from __future__ import annotations

import html
import re
from typing import Any

import httpx

from tests.http.site import Site

UI = "http://site/ui"
TOKEN = re.compile(r'name="form_token" value="(\w+)"')


class Browser:
    """Signed in once `sign_in` was called; `origin` is what it says of where a form comes from."""

    def __init__(self, site: Site, origin: str | None = "http://site") -> None:
        self.client = site.client_with(None)
        self.client.headers["accept"] = "text/html,application/xhtml+xml,*/*;q=0.8"
        self.origin = origin

    async def sign_in(self, key: str, wanted: str = "/ui/") -> httpx.Response:
        return await self.send("/sign-in", {"key": key, "wanted": wanted})

    async def look(self, path: str, status: int = 200) -> str:
        """The page at a path below `/ui`."""
        answer = await self.client.get(UI + path)
        assert answer.status_code == status, answer.text
        return answer.text

    async def read(self, path: str, status: int = 200) -> Any:
        """What is at the same path for programs."""
        answer = await self.client.get(UI + path, headers={"accept": "application/json"})
        assert answer.status_code == status, answer.text
        return answer.json()

    async def send(self, path: str, fields: dict[str, Any], **headers: str) -> httpx.Response:
        """A form, with what a browser says of its page."""
        origin = {"origin": self.origin} if self.origin is not None else {}
        return await self.client.post(UI + path, data=fields, headers=origin | headers)

    async def submit(self, page: str, path: str, fields: dict[str, Any] | None = None) -> httpx.Response:
        """A form of a page, with the token that the page has put into it."""
        token = TOKEN.search(await self.look(page))
        assert token, "the page has a form"
        return await self.send(path, {"form_token": token[1], **(fields or {})})


async def signed_in(site: Site, *scopes: str) -> Browser:
    """A browser with a new key of these scopes."""
    browser = Browser(site)
    answer = await browser.sign_in(site.new_key(*scopes))
    assert answer.status_code == 303, answer.text
    return browser


def words(page: str) -> str:
    """What people read of a page."""
    without_tags = re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S))
    return re.sub(r"\s+", " ", html.unescape(without_tags)).strip()
