"""Turns and statements as a recording deployment would hand them out, for tests of what is learned from them."""

import itertools

from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.feedback import Feedback

NUMBERS = itertools.count(1)


def turn(id: str, answer: str = "It is 4.", *, asked: str = "What is 2 + 2?", user: str = "ada", **fields) -> Turn:
    usual = {
        "number": next(NUMBERS),
        "episode_id": f"episode-{id}",
        "deployment": "helper",
        "person": Person("key", user),
        "created": 1000.0,
        "messages": ({"role": "user", "content": asked},),
        "answer": {"role": "assistant", "content": answer},
        "base_model": "tiny",
        "version": 1,
    }
    return Turn(**{**usual, "id": id, **fields})


def said(
    target: str, value: bool | float | str = True, metric: str = "thumb", *, who: str = "ada", **fields
) -> Feedback:
    number = fields.pop("number", next(NUMBERS))
    usual = {
        "number": number,
        "id": f"said-{number}",
        "level": "inference",
        "deployment": "helper",
        "created": 1000.0 + number,
    }
    return Feedback(**{**usual, "target_id": target, "value": value, "metric": metric, "who": who, **fields})
