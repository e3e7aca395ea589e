"""What every client is put through, and how a script tells what came of it. Knows no client, and nothing of loreloop.

A script is run in its client's own environment, with the server's address, a key and a model, and prints JSON: for each
of its ways of asking, for each scene, what the client made of the answers. Nothing else of the test's reaches it.
"""

import asyncio
import contextlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

ADDRESS, KEY, MODEL = sys.argv[1:4]
OPENAI, ANTHROPIC = f"{ADDRESS}/v1", f"{ADDRESS}/anthropic/api"
GREETING = "How are you?"
QUESTION = "How is the weather in Oslo?"
HEARD = "rain tomorrow"
RAISED = "raised"


class Weather:
    """The tool: it counts what it hears."""

    def __init__(self) -> None:
        self.cities: list[str] = []

    def ask(self, city: str) -> str:
        self.cities.append(city)
        return HEARD


def tell(ways: dict[str, dict[str, Callable[[], Any]]]) -> None:
    """Plays all scenes and prints what they gave; a scene that raises is told by its traceback."""
    with contextlib.redirect_stdout(sys.stderr):  # some clients print
        found = {way: {name: told(scene) for name, scene in scenes.items()} for way, scenes in ways.items()}
    print(json.dumps(found))


def told(scene: Callable[[], Any]) -> Any:
    try:
        found = scene()
        return asyncio.run(found) if inspect.iscoroutine(found) else found
    except BaseException:
        return {RAISED: traceback.format_exc()}
