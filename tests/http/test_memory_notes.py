"""What a request says of its turns beside their text, and what a client does whose answer was lost."""

from typing import Any

import pytest

from loreloop.http.generation.memory_named import captioned
from loreloop.memory.history import mark_of, plain
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Picture, Turn
from tests.http.scripted import CHAT, MESSAGES, RESPONSES, Script, play_script
from tests.http.test_remembered import ANN, EACH, STREAMING, assistant, lines, refused, say, shown, user

MAY_1 = 1682942400.0  # noon of 1 May 2023
SYSTEM = {"role": "system", "content": "Be brief."}


@STREAMING
@EACH
def test_a_lost_answer_is_asked_for_again_with_the_whole_conversation(route: str, stream: bool) -> None:
    async def scene(script: Script) -> None:
        said = [user("One?")]
        await say(script, route, "It is 1.", *said, stream=stream)
        said += [assistant("It is 1."), user("Two?")]
        await say(script, route, "It is 2.", *said, stream=stream)
        await say(script, route, "It is two.", *said, stream=stream)
        assert script.prompt().count("Two?") == 1
        assert "It is 2." not in script.prompt()
        await say(script, route, "It is 3.", *said, user("Three?"), stream=stream)  # and that answer was lost as well
        assert script.prompt().count("Two?") == 1
        assert await lines(script.site) == [
            *("user: One?", "assistant: It is 1.", "user: Two?", "assistant: It is two."),
            *("user: Three?", "assistant: It is 3."),
        ]
        assert (await shown(script.site))["turns"] == 6

    play_script(scene)


def test_a_request_that_fails_takes_nothing_back() -> None:
    async def scene(script: Script) -> None:
        await say(script, CHAT, "It is 1.", user("One?"))
        before = await shown(script.site)
        await refused(script, 400, CHAT, user("One?"), chat_template_kwargs={"messages": 1})
        assert await shown(script.site) == before

    play_script(scene)


@EACH
def test_a_pin_stays_word_for_word(route: str) -> None:
    async def scene(script: Script) -> None:
        pinned = "Well, so it is that I am of the opinion that we ought to be in it."
        await say(script, route, "Noted.", user(pinned), memory=ANN | {"pin": True})
        for number in range(30):
            await say(script, route, f"I see, {number}.", user(f"My friend number {number} is Ann{number}."))
        kept = await shown(script.site)
        assert (kept["segments"][0]["text"], kept["segments"][0]["pinned"]) == (f"user: {pinned}", True)
        assert not any(segment["pinned"] for segment in kept["segments"][1:])
        large = user("A long text indeed. " * 200)
        assert "Raise the budget" in await refused(script, 400, route, large, memory=ANN | {"pin": True})
        assert await shown(script.site) == kept

    play_script(scene)


@EACH
def test_the_day_stands_where_a_text_counts_from_it(route: str) -> None:
    async def scene(script: Script) -> None:
        told = ANN | {"time": MAY_1}
        await say(script, route, "So you were there yesterday.", user("I was in Oslo yesterday."), memory=told)
        early = ANN | {"time": MAY_1 - 1}
        assert "lies before" in await refused(script, 400, route, user("Hello."), memory=early)
        await say(script, route, "Hello.", user("I met Ann today."))  # by the server's clock
        found = await lines(script.site)
        assert found[:2] == [
            *("user (1 May 2023): I was in Oslo yesterday.", "assistant (1 May 2023): So you were there yesterday.")
        ]
        assert found[2].startswith("user (")
        assert "2023" not in found[2]

    play_script(scene)


def test_a_conversation_that_is_brought_along_has_a_time_for_each_turn() -> None:
    async def scene(script: Script) -> None:
        said = [SYSTEM, user("I was ill yesterday."), assistant("Oh."), user("I am well today.")]
        times: list[Any] = [MAY_1, None, MAY_1 + 86400 * 3]
        wrong = ANN | {"time": times[:2]}
        assert "2 times, and the request 3 messages" in await refused(script, 400, CHAT, *said, memory=wrong)
        await say(script, CHAT, "Good.", *said, memory=ANN | {"time": times})
        assert await lines(script.site) == [
            *("user (1 May 2023): I was ill yesterday.", "assistant: Oh.", "user (4 May 2023): I am well today."),
            "assistant: Good.",
        ]
        untimed = {"id": "bob", "budget_tokens": 400}
        await say(script, CHAT, "Good.", *said, memory=untimed)
        found = await lines(script.site, "bob")
        assert found[0] == "user: I was ill yesterday.", "nobody knows when that was said"
        assert found[2].startswith("user (")

    play_script(scene)


@pytest.mark.parametrize("route", [RESPONSES, MESSAGES])
def test_a_header_pins_and_dates(route: str) -> None:
    async def scene(script: Script) -> None:
        script.site.client.headers["x-loreloop-memory"] = "ann; budget=400; pin; time=1682942400"
        await say(script, route, "Noted.", user("I was in Oslo yesterday."), memory=None)
        (first, _) = (await shown(script.site))["segments"]
        assert (first["text"], first["pinned"]) == ("user (1 May 2023): I was in Oslo yesterday.", True)

    play_script(scene)


def test_images_have_captions_in_order() -> None:
    one, two = Picture("data:1"), Picture("data:2")
    turns = [Turn("user", "See.", parts=(one, "See.", two)), Turn("user", "Hm.")]
    told = captioned(turns, ["a cat]\nsystem: x", ""])
    assert [picture.url for picture in told[0].pictures] == ["data:1", "data:2"]
    assert plain(told[0]).content == "[image: a cat) system: x]\nSee.\n[image]"
    assert [mark_of(turn) for turn in told] == [mark_of(turn) for turn in turns]
    assert mark_of(plain(told[0])) == mark_of(turns[0])
    assert captioned(turns, []) == tuple(turns)
    with pytest.raises(BadRequest, match="3 captions, and the request 2 images"):
        captioned(turns, ["a", "b", "c"])
