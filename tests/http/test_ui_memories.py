"""Pages of memories: a key's own ones, as segments, of which turns and words are forgotten."""

import pytest

from tests.http.browser import Browser, signed_in, words
from tests.http.scripted import CHAT, Script, play_script
from tests.http.test_remembered import say, user

FACTS = ("My code is 4711.", "My dog is called Rex.", "I live by the harbour.")
AT = "/memory?id=ann&user="


async def browser_of(script: Script) -> Browser:
    """A browser with the key that chats."""
    browser = Browser(script.site)
    await browser.sign_in(script.site.client.headers["x-api-key"])
    return browser


async def remembering(script: Script) -> Browser:
    """The same, once something is remembered."""
    for fact in FACTS:
        await say(script, CHAT, "Noted.", user(fact))
    return await browser_of(script)


def test_a_page_without_memories_says_how_one_begins() -> None:
    async def scene(script: Script) -> None:
        browser = await signed_in(script.site, "infer")
        assert "A chat that names one begins it" in words(await browser.look("/memories"))

    play_script(scene)


def test_a_memory_is_shown_as_segments_and_a_turn_and_words_are_forgotten() -> None:
    async def scene(script: Script) -> None:
        browser = await remembering(script)
        assert 'href="/ui/memory?id=ann&amp;user="' in await browser.look("/memories")
        page = await browser.look(AT)
        for fact in FACTS:
            assert fact in words(page)
        told = await browser.read(AT)
        assert page.count('<li class="segment') == len(told["segments"]) == page.count('<rect class="segment-')
        answer = await browser.submit(AT, AT.replace("?", "/forget?"), {"turn": "0"})
        assert "are forgotten, with all that turns 0 had a part in" in words(answer.text)
        answer = await browser.submit(AT, AT.replace("?", "/forget?"), {"pattern": "dog"})
        assert answer.status_code == 200
        left = words(await browser.look(AT))
        assert "4711" not in left
        assert "Rex" not in left
        assert "harbour" in left
        answer = await browser.submit(AT, AT.replace("?", "/forget?"), {"pattern": "unheard of"})
        assert "Nothing of this is kept" in words(answer.text)
        assert (await browser.submit(AT, AT.replace("?", "/delete?"))).status_code == 303
        await browser.look(AT, 404)

    play_script(scene)


@pytest.mark.parametrize(
    ("fields", "status", "why"),
    [
        ({}, 400, "Say what to forget"),
        ({"turn": "x"}, 400, "number of a turn"),
        ({"turn": "0", "pattern": "dog"}, 400, "either"),
        ({"turn": "999"}, 404, "the memory has seen turns 0 to"),
    ],
    ids=["nothing", "letters", "both", "unheard"],
)
def test_what_cannot_be_forgotten_is_told(fields: dict[str, str], status: int, why: str) -> None:
    async def scene(script: Script) -> None:
        browser = await remembering(script)
        answer = await browser.submit(AT, AT.replace("?", "/forget?"), fields)
        assert (answer.status_code, why in words(answer.text)) == (status, True), words(answer.text)
        assert "Rex" in words(await browser.look(AT))

    play_script(scene)


def test_a_memory_of_another_key_is_none() -> None:
    async def scene(script: Script) -> None:
        browser = await remembering(script)
        other = await signed_in(script.site, "admin")
        assert ">ann<" not in await other.look("/memories")
        assert await other.look(AT, 404) == await other.look(AT.replace("ann", "none"), 404)
        for what in ("forget", "delete"):
            answer = await other.submit("/memories", AT.replace("?", f"/{what}?"), {"pattern": "dog"})
            assert answer.status_code == 404
        stranger = Browser(script.site, "http://elsewhere")
        stranger.client.cookies.update(browser.client.cookies)
        assert (await stranger.send(AT.replace("?", "/delete?"), {})).status_code == 403
        assert "Rex" in words(await browser.look(AT))

    play_script(scene)


def test_names_and_words_of_memories_are_text() -> None:
    hostile = "a/b&c<script>alert(1)</script>\u202e\u200b"

    async def scene(script: Script) -> None:
        await say(script, CHAT, hostile, user(hostile), user=hostile)
        browser = await browser_of(script)
        (found,) = (await browser.read("/memories"))["memories"]
        assert (found["id"], found["user"]) == ("ann", hostile)
        listed = await browser.look("/memories")
        address = listed.split('href="/ui/memory?')[1].split('"')[0].replace("&amp;", "&")
        page = await browser.look(f"/memory?{address}")
        for one in (listed, page):
            assert "<script>alert" not in one
            assert not {*one} & {*"\u202e\u200b"}
        answer = await browser.submit(f"/memory?{address}", f"/memory/forget?{address}", {"turn": "0"})
        assert "are forgotten" in words(answer.text)

    play_script(scene)
