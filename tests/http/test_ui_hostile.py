"""Whatever names, words and answers hold, a page shows it as text: bounded, escaped, its unseen letters by numbers."""

import time

import msgspec
import pytest
from sqlalchemy import Connection

from loreloop.protocol.training import LoraSpec
from loreloop.store import deployments, jobs, keys, runs, turn_keeping
from loreloop.store.job_rows import JobRow
from loreloop.store.rows import Arm, RecordingRule, RunRow, Split
from loreloop.store.turn_bodies import packed
from tests.http.browser import Browser, signed_in
from tests.http.recorded import Room, play_recorded
from tests.http.site import Site, play
from tests.store.place import write_now
from tests.store.test_turns import BODY, new
from tests.store.test_uploads import plan

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "template": "{{ 7 * 7 }}{% for x in y %}",
    "comment": "--><!-- </title></textarea></pre>",
    "direction": "safe\u202e\u2066gnp.exe",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "unseen": "a\u200b\ufeff\u2028b\x00c\x7f",
    "long": "w" * (1 << 20),
}
ids = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def check_harmless(page: str) -> None:
    assert "<script>alert" not in page
    assert 'onmouseover="' not in page
    assert "<!-- " not in page
    assert page.count("</title>") == 1
    assert not {*page} & {*"\u202e\u2066\u200b\ufeff\u2028\x00\x07\x1b\x7f\x9b"}
    assert len(page) < 400_000


@ids
def test_names_and_metadata_of_runs_are_text(text: str) -> None:
    async def scene(site: Site) -> None:
        session, now = site.office.session_id, time.time()
        made = write_now(site.office.store, keys.create, text, ("train",), now)
        metadata = {text: text, "nested": {"list": [text]}}
        row = RunRow(f"{session}:train:0", session, made.row.id, text, LoraSpec(8, 1), now, now, metadata, True, text)
        write_now(site.office.store, runs.create, row)
        browser = await signed_in(site, "admin")
        for path in ("/runs", f"/runs/{row.id}", f"/compare?runs={row.id}", "/keys"):
            check_harmless(await browser.look(path))
        own = Browser(site)
        await own.sign_in(made.secret)
        check_harmless(await own.look("/"))
        told = await browser.read(f"/runs/{row.id}")
        assert told["run"]["base_model"] == text

    play(scene, engine=False)


@ids
def test_words_of_jobs_are_text(text: str) -> None:
    async def scene(site: Site) -> None:
        named = plan(base_model="fake", model=text, name=text, hyperparameters={text: text})
        job = JobRow(id=jobs.new_id(), key_id=site.office.key_id, created=time.time(), plan=named)
        job = await site.services.desk.create(job)
        write_now(site.office.store, jobs.say, job.id, "warn", text, time.time())
        write_now(site.office.store, jobs.stepped, job.id, 1, {text[:500]: 1.0}, trained_tokens=1, now=time.time())
        browser = await signed_in(site, "admin")
        for path in ("/jobs", f"/jobs/{job.id}"):
            check_harmless(await browser.look(path))

    play(scene, engine=False)


@pytest.mark.parametrize("text", [text for name, text in HOSTILE.items() if name != "long"], ids=[*HOSTILE][:-1])
def test_questions_answers_and_feedback_are_text(text: str) -> None:
    async def scene(room: Room) -> None:
        asked = await room.ask(text, messages=[{"role": "user", "content": text}], user=text)
        await room.turns()
        said = {"target_id": asked.id, "metric": "comment", "value": text, "why": text, "who": "ann"}
        await room.loop("POST", "/feedback", json=said)
        decided = {"at": 1.0, "cycle": 1, "stage": text[:80], "verdict": text[:80], "sentence": text}
        told = {"stage": "canary", "cycle": 1, "champion": text, "candidate": text, "sentence": text}
        await room.loop("PUT", "/deployments/bot/standing", json=told | {"decisions": [decided]})
        browser = Browser(room.site)
        await browser.sign_in(room.key)
        for path in ("/deployments/bot", f"/turns/{asked.id}"):
            check_harmless(await browser.look(path))

    play_recorded(scene)


@ids
def test_an_address_is_text(text: str) -> None:
    async def scene(site: Site) -> None:
        browser = await signed_in(site, "admin")
        query = {"left": text[:3000], "right": text[:3000]}
        answer = await browser.client.get("http://site/ui/playground", params=query)
        check_harmless(answer.text)
        for client in (browser.client, Browser(site).client):
            answer = await client.get("http://site/ui/audit", params={"day": text[:3000]})
            assert answer.status_code in (400, 401)
            check_harmless(answer.text)

    play(scene, engine=False)


@ids
def test_recorded_words_of_any_form_are_text(text: str) -> None:
    calls = [{"id": text, "type": "function", "function": {"name": text, "arguments": text}}]
    body = msgspec.structs.replace(
        BODY,
        messages=({"role": text, "content": [{"type": "text", "text": text}]}, {"role": "user", "content": text}),
        answer={"role": "assistant", "content": text, "tool_calls": calls},
    )

    def fill(connection: Connection) -> None:
        recording = RecordingRule(record=True)
        deployments.set(connection, "bot", None, Split(Arm("fake", "fake")), 1.0, text, recording=recording)
        turn_keeping.keep(connection, [new(1, packed(body), user=text, created=time.time(), revision=text)])

    async def scene(site: Site) -> None:
        write_now(site.office.store, fill)
        browser = await signed_in(site, "admin")
        for path in ("/deployments", "/deployments/bot", "/turns/t1"):
            check_harmless(await browser.look(path))
        assert (await browser.read("/turns/t1"))["turn"]["messages"][1]["content"] == text

    play(scene, engine=False)
