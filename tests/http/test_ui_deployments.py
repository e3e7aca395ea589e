"""Pages of deployments: who sees them, the change that is undone, turns and feedback for whoever manages them."""

import msgspec

from loreloop.http.loop.standings import MOST_LOOKS
from loreloop.protocol.loop_rest import LoopStanding
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


def standing(n: int, **more: object) -> dict[str, object]:
    """What a loop tells after so many judged episodes of either arm."""
    numbers = {"candidate_episodes": n, "champion_episodes": n, "difference": 0.1}
    numbers |= {"difference_low": 0.1 - 1 / n, "difference_high": 0.1 + 1 / n}
    usual = {"stage": "canary", "cycle": 2, "champion": "fake", "candidate": "tinker://run/sampler_weights/two"}
    return usual | {"sentence": f"After {n} episodes nothing is sure.", "numbers": numbers} | more


def test_why_nothing_was_promoted_yet_is_told_with_the_course_of_the_comparison() -> None:
    async def scene(room: Room) -> None:
        browser = await browser_of(room)
        assert "Why not promoted" not in words(await browser.look("/deployments/bot"))
        await room.loop("GET", "/deployments/bot/standing", 404)
        decided = {"at": 1.0, "cycle": 1, "stage": "gate", "verdict": "rejected", "sentence": "It holds no limit."}
        for n in (5, 10, 10, 20):
            await room.loop("PUT", "/deployments/bot/standing", json=standing(n, decisions=[decided]))
        page = await browser.look("/deployments/bot")
        for text in ("Why not promoted yet", "After 20 episodes", "Candidate less champion", "It holds no limit."):
            assert text in words(page)
        assert page.count("<polyline") == 4
        assert "difference: 0.1 upper end: 0.15 lower end: 0.05 no difference: 0" in words(page)
        told = await room.loop("GET", "/deployments/bot/standing")
        assert [look["n_episodes"] for look in told["looks"]] == [10, 20, 40]
        assert (await browser.read("/deployments/bot"))["loop"]["looks"] == told["looks"]
        # Another candidate begins with nothing, and what is no comparison adds nothing.
        other = standing(3, candidate="tinker://run/sampler_weights/three")
        await room.loop("PUT", "/deployments/bot/standing", json=other)
        assert len((await room.loop("GET", "/deployments/bot/standing"))["looks"]) == 1
        idle = standing(3, stage="idle", candidate=None, numbers={}, sentence="It waits.")
        await room.loop("PUT", "/deployments/bot/standing", json=idle)
        page = words(await browser.look("/deployments/bot"))
        assert "Where its loop stands It waits." in page
        assert "Candidate less champion" not in page

    play_recorded(scene)


def test_looks_at_a_comparison_are_bounded() -> None:
    async def scene(room: Room) -> None:
        for n in range(1, 3 * MOST_LOOKS):
            standings = room.site.services.standings
            standings.tell("bot", msgspec.convert(standing(n), LoopStanding), float(n))
        looks = standings.told["bot"].looks
        assert len(looks) <= MOST_LOOKS
        places = [look.n_episodes for look in looks]
        assert places == sorted(places)
        assert (places[0], places[-1]) == (2, 2 * (3 * MOST_LOOKS - 1))
        assert "Candidate less champion" in await (await browser_of(room)).look("/deployments/bot")

    play_recorded(scene)


def test_a_loops_standing_is_for_whoever_manages_the_deployment_and_goes_with_it() -> None:
    async def scene(room: Room) -> None:
        await room.loop("PUT", "/deployments/bot/standing", json=standing(5, sentence="a secret sentence"))
        for scope in ("infer:bot", "train"):
            key = room.site.new_key(scope)
            status = 404 if scope == "train" else 403
            await room.loop("PUT", "/deployments/bot/standing", status, key=key, json=standing(9))
            await room.loop("GET", "/deployments/bot/standing", status, key=key)
        asker = await signed_in(room.site, "infer:bot")
        assert "secret sentence" not in await asker.look("/deployments/bot")
        for wrong in ({"sentence": "x" * 3000}, {"numbers": {"a": "b"}}, {"stage": None}, {"more": 1}):
            await room.loop("PUT", "/deployments/bot/standing", 400, json=standing(5) | wrong)
        await room.loop("DELETE", "/deployments/bot")
        await room.deploy()
        await room.loop("GET", "/deployments/bot/standing", 404)

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
