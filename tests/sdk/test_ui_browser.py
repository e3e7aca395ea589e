"""The pages' scripts in a real browser: parts that are sent anew, and what an answer may hold."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator

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
