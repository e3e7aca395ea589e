"""Pages of deployments: who sees them, the change that is undone, turns and feedback for whoever manages them."""

from loreloop.store import deployments
from tests.http.browser import Browser, signed_in, words
from tests.http.recorded import Room, play_recorded
from tests.http.site import Site, play


async def browser_of(room: Room) -> Browser:
    browser = Browser(room.site)
    await browser.sign_in(room.key)
    return browser


def test_a_page_without_deployments_says_how_one_is_made() -> None:
    async def scene(site: Site) -> None:
        assert "loreloop deploy set" in words(await (await signed_in(site, "train")).look("/deployments"))

    play(scene, engine=False)


def test_a_deployment_shows_its_history_and_goes_back_by_one_version() -> None:
    async def scene(room: Room) -> None:
        await room.deploy(record=False)
        browser = await browser_of(room)
        assert ">bot<" in await browser.look("/deployments")
        shown = words(await browser.look("/deployments/bot"))
        assert "Undo the last change" in shown
        assert "fake" in shown
        answer = await browser.submit("/deployments/bot", "/deployments/bot/undo")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/deployments/bot")
        assert room.site.office.store.read(deployments.current, "bot").version == 3
        assert len((await browser.read("/deployments/bot"))["history"]) == 3

    play_recorded(scene)


def test_what_has_no_version_before_is_not_undone() -> None:
    async def scene(room: Room) -> None:
        browser = await browser_of(room)
        assert "Undo" not in words(await browser.look("/deployments/bot"))
        answer = await browser.submit("/deployments", "/deployments/bot/undo")
        assert answer.status_code == 404
        assert "one version only" in words(answer.text)

    play_recorded(scene)


def test_turns_and_feedback_are_shown_to_whoever_manages_the_deployment() -> None:
    async def scene(room: Room) -> None:
        asked = await room.ask("a secret answer", user="ann")
        await room.turns()
        said = {"target_id": asked.id, "metric": "thumb", "value": False, "why": "too secret"}
        await room.loop("POST", "/feedback", json=said)
        browser = await browser_of(room)
        shown = words(await browser.look("/deployments/bot"))
        for text in (asked.id, "ann", "trainable", "thumb", "too secret"):
            assert text in shown
        turn = words(await browser.look(f"/turns/{asked.id}"))
        for text in ("be short", "a secret answer", "too secret", "trainable"):
            assert text in turn
        asker = await signed_in(room.site, "infer:bot")
        shown = words(await asker.look("/deployments/bot"))
        assert "Recorded turns" not in shown
        assert asked.id not in shown
        assert await asker.look(f"/turns/{asked.id}", 404) == await asker.look("/turns/chatcmpl-unknown", 404)

    play_recorded(scene)


def test_who_only_asked_reads_its_own_words_about_its_turn_and_nobody_elses() -> None:
    async def scene(room: Room) -> None:
        key = room.site.new_key("infer:bot")
        asked = await room.ask("an answer", key=key)
        await room.turns()
        said = {"target_id": asked.id, "metric": "score", "value": 0.25, "why": "a secret reason", "source": "judge"}
        await room.loop("POST", "/feedback", json=said | {"who": "the judge"})
        browser = Browser(room.site)
        await browser.sign_in(key)
        told = await browser.read(f"/turns/{asked.id}")
        assert told["turn"]["id"] == asked.id
        assert told["feedback"] == []
        assert "secret" not in await browser.look(f"/turns/{asked.id}")
        assert "a secret reason" in words(await (await browser_of(room)).look(f"/turns/{asked.id}"))

    play_recorded(scene)


def test_what_was_said_of_an_episode_leads_to_no_turn() -> None:
    async def scene(room: Room) -> None:
        await room.ask("an answer")
        (turn,) = await room.turns()
        await room.loop("POST", "/feedback", json={"target_id": turn["episode_id"], "metric": "thumb", "value": True})
        page = await (await browser_of(room)).look("/deployments/bot")
        assert f"the episode {turn['episode_id']}" in words(page)
        assert f'/ui/turns/{turn["episode_id"]}"' not in page

    play_recorded(scene)


def test_a_foreign_deployment_is_none() -> None:
    async def scene(room: Room) -> None:
        stranger = await signed_in(room.site, "infer:elsewhere")
        assert await stranger.look("/deployments/bot", 404) == await stranger.look("/deployments/unknown", 404)
        assert ">bot<" not in await stranger.look("/deployments")
        answer = await stranger.submit("/deployments", "/deployments/bot/undo")
        assert answer.status_code == 403

    play_recorded(scene)
