"""TensorZero's body of feedback as one of ours.

Its ids are UUIDs; ours hold one behind a prefix, and both are taken.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from loreloop.http.loop.targets import Targets
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.feedback import EDIT
from loreloop.protocol.feedback_rest import GiveFeedback, TensorZeroFeedback

UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
PREFIXES = ("chatcmpl-", "resp_", "msg_", "cmpl-")


def as_ours(body: TensorZeroFeedback, targets: Targets) -> GiveFeedback:
    """The same statement; BadRequest where it names both ids or none, or a value that no metric has."""
    if (body.inference_id is None) == (body.episode_id is None):
        raise BadRequest(
            "Feedback names one of inference_id and episode_id: the first for metrics of the level inference, the "
            "other for those of the level episode."
        )
    given = body.inference_id or body.episode_id or ""
    target_id = _own_id(given, targets)
    for found in targets.issued(target_id)[:1]:
        # The level is part of what TensorZero's clients say, so an id of the other level is a mistake of theirs.
        if (found.level == "inference") != (body.inference_id is not None):
            raise BadRequest(
                f"{given[:80]!r} is the id of an {found.level} and was sent as that of another level; send it as "
                f"{found.level}_id."
            )
    return GiveFeedback(
        target_id=target_id,
        metric=body.metric_name,
        value=_value(body),
        tags=body.tags or {},
        dryrun=bool(body.dryrun),
    )


def _own_id(given: str, targets: Targets) -> str:
    if UUID.fullmatch(given):
        number = given.replace("-", "").lower()
        for candidate in (given, *(prefix + number for prefix in PREFIXES)):
            if targets.issued(candidate):
                return candidate
    return given


def _value(body: TensorZeroFeedback) -> bool | float | str:
    if body.metric_name == EDIT:
        return _text(body.value)
    if not isinstance(body.value, bool | int | float | str):
        raise BadRequest(f"The value of {body.metric_name!r} is a boolean, a number or a text, and was something else.")
    return body.value


def _text(value: Any) -> str:
    """A demonstration is a text, a list of blocks of text, or the JSON that a function would have given."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        return "".join(str(part["text"]) for part in value)
    return msgspec.json.encode(value).decode()
