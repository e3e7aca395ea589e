"""The pages' scripts in a real browser: parts that are sent anew, and what an answer may hold."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import tinker

from bench.browser import NAMES, Browser, browser
from loreloop.cli.server import RunningServer
from tests.sdk.clients import datum, trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="needs Chromium"),
]
SECONDS = 30.0
HIDE = """Object.defineProperty(document, 'hidden', {value: %s, configurable: true});
document.dispatchEvent(new Event('visibilitychange'))"""
N_STEPS = "Number([...document.querySelectorAll('.facts div')].find(e => e.textContent.includes('Steps'))"
N_STEPS += ".querySelector('dd').textContent)"


@pytest.fixture
def look(server: RunningServer) -> Iterator[Browser]:
    """A browser that is signed in."""
    with browser() as found:
        found.open(f"{server.url}/ui/sign-in")
        found.run(f"document.getElementById('key').value = {json.dumps(server.key)}; document.forms[0].submit()")
        found.settle()
        found.problems.clear()
        yield found
        assert found.problems == []


def step(client: tinker.TrainingClient) -> None:
    client.forward_backward([datum()], "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def test_a_page_is_renewed_unless_somebody_reads_in_it_or_nobody_sees_it(server: RunningServer, look: Browser) -> None:
    client = trainer(server)
    step(client)
    look.open(f"{server.url}/ui/runs/{client.model_id}")
    assert until(lambda: look.run(N_STEPS) == 1)
    step(client)
    assert until(lambda: look.run(N_STEPS) == 2)
    # What is marked stays as it is read, and what has come meanwhile is shown behind it.
    look.run("getSelection().selectAllChildren(document.querySelector('h1'))")
    step(client)
    time.sleep(6)
    assert look.run(N_STEPS) == 2
    look.run("getSelection().removeAllRanges()")
    assert until(lambda: look.run(N_STEPS) == 3)
    look.run(HIDE % "true")
    step(client)
    time.sleep(6)
    assert look.run(N_STEPS) == 3
    look.run(HIDE % "false")
    assert until(lambda: look.run(N_STEPS) == 4)
    assert until(lambda: look.run("document.querySelectorAll('.uplot').length") >= 3)


def test_the_playground_shows_what_turns_lines_around_by_its_number(server: RunningServer, look: Browser) -> None:
    look.open(f"{server.url}/ui/playground")
    shown = look.run(r"harmless('safe\u202egnp\x1b[2J\r\n\u{e0041}')")
    assert shown == "safe\\u202egnp\\u001b[2J\n\\ue0041"


def test_a_click_on_a_curve_leads_to_what_the_step_has_learned_from(server: RunningServer, look: Browser) -> None:
    client = trainer(server)
    for _ in range(2):
        step(client)
    look.open(f"{server.url}/ui/runs/{client.model_id}")
    assert until(lambda: look.run("document.querySelectorAll('.uplot').length") >= 3)
    place = "document.querySelector('.u-over').getBoundingClientRect()"
    look.run("document.querySelector('.u-over').scrollIntoView({block: 'center'})")
    x, y = (look.run(f"{place}.{side}") for side in ("right", "top"))
    for kind, clicks in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 1)):
        look.ask("Input.dispatchMouseEvent", type=kind, x=x - 4, y=y + 20, button="left", clickCount=clicks)
    assert until(lambda: look.run("location.pathname").endswith("/steps/2"))
    look.settle()
    assert look.run("document.querySelectorAll('article').length") == 1
    assert look.run("document.querySelectorAll('.token').length") > 3


def test_the_playground_asks_again_and_takes_thumbs(server: RunningServer, look: Browser) -> None:
    with httpx.Client(base_url=server.url, headers={"x-api-key": server.key}, trust_env=False, timeout=60) as web:
        web.put("/loop/v1/deployments/judged", json={"target": "tiny", "record": True}).raise_for_status()
        look.open(f"{server.url}/ui/playground?left=judged&right=tiny")
        look.run("document.getElementById('prompt').value = 'hello'; document.getElementById('max_tokens').value = 8")
        look.run("document.getElementById('ask').requestSubmit()")
        thumbs = "[...document.querySelectorAll('.thumbs')].map(e => e.hidden)"
        assert until(lambda: look.run(thumbs) == [False, True])
        answers = "[...document.querySelectorAll('pre.answer')].map(e => e.textContent)"
        left, right = look.run(answers)
        assert left == right, "the same weights and the same seed"
        look.run("document.querySelector('.thumbs button').click()")
        assert until(lambda: look.run("document.querySelector('.said').textContent") == "Kept: good.")
        (said,) = web.get("/loop/v1/deployments/judged/feedback").json()["feedback"]
        assert (said["metric"], said["value"]) == ("thumb", True)
        look.run("document.getElementById('again').click()")
        assert until(lambda: look.run(thumbs) == [False, True] and look.run(answers) != [left, right])
        assert look.run("document.getElementById('seed').value") == "2"
