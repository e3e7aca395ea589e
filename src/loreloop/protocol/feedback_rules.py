"""What a statement may say: the value that a metric takes, who may override whom, and how metrics are declared.

Pure; BadRequest says what was given and what would do. Knows neither keys nor where anything is kept.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.feedback import (
    BUILT_IN,
    CHANNELS,
    GOLDEN_TAG,
    OF_PERSONS,
    OF_TURNS_ONLY,
    OPERATOR,
    PREFERENCE,
    SCORE,
    TOOL_OK,
    VERDICT,
    Feedback,
    Level,
    Metric,
    MetricKind,
    Source,
)
from loreloop.protocol.feedback_rest import LONGEST_TEXT, DeclareMetric

Value = bool | float | str
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
MOST_METRICS, MOST_BYTES = 100, 1 << 16
LARGEST = 1e9
# Whose word goes over whose: a person's over a program's, what was checked over what was judged or guessed.
STRENGTH: Mapping[Source, int] = {"human": 3, "code": 2, "judge": 1, "implicit": 0}
KINDS = {
    "boolean": "true or false",
    "float": f"a number between -{LARGEST:g} and {LARGEST:g}",
    "comment": f"a text of 1 to {LONGEST_TEXT} characters",
    "demonstration": f"the corrected answer, a text of 1 to {LONGEST_TEXT} characters",
    "preference": "the id of the turn that is worse than the target",
}


def metric_named(name: str, declared: Mapping[str, Metric], deployment: str) -> Metric:
    """A declared metric of the deployment, or one that every deployment has; BadRequest where there is none."""
    metric = declared.get(name) or BUILT_IN.get(name)
    if metric is None:
        known = ", ".join(sorted(BUILT_IN | dict(declared)))
        raise BadRequest(
            f"The deployment {deployment!r} has no metric {name[:64]!r}; it has {known}. "
            f"`loreloop deploy metrics {deployment} FILE` declares more."
        )
    return metric


def check_level(metric: Metric, level: Level, *, is_declared: bool) -> None:
    """BadRequest where the metric is not for a target of this level. A built-in one may speak of a turn or of a whole
    episode, unless only turns have what it speaks of."""
    if level == metric.level or not (is_declared or metric.name in OF_TURNS_ONLY):
        return
    wanted, given = ("a turn", "an episode") if metric.level == "inference" else ("an episode", "a turn")
    raise BadRequest(f"The metric {metric.name!r} is about {wanted}, and the id is that of {given}; send the other id.")


def checked_value(metric: Metric, value: object) -> Value:
    """The value as it is kept; BadRequest where the metric takes none such."""
    if metric.kind == "boolean" and isinstance(value, bool):
        return value
    if metric.kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        low, high = (0.0, 1.0) if metric.name == SCORE else (-LARGEST, LARGEST)
        # Compared first: an integer may be larger than any float.
        if low <= value <= high and math.isfinite(value):
            return float(value)
    elif metric.kind not in ("boolean", "float") and isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT:
        return value
    wanted = "a number from 0 to 1" if metric.name == SCORE else KINDS[metric.kind]
    raise BadRequest(f"The metric {metric.name!r} takes {wanted}, not {_short(value)}.")


def usual_source(metric: Metric) -> Source:
    """Who speaks where a statement does not say: code for what only code finds out, else a human."""
    return "code" if metric.name in (TOOL_OK, VERDICT) else "human"


def standing(statements: Iterable[Feedback]) -> list[Feedback]:
    """Of a feed, or a part of it, the statements that count, in the order of their numbers.

    Those that were neither retracted nor named in `overrides` by any other; of what one voice says of one subject the
    newest, where a feed has no `overrides`.
    """
    last: dict[str, Feedback] = {}
    for one in sorted(statements, key=lambda each: each.number):
        last[one.id] = one  # a retraction has the id of what it takes back
    overridden = {one.overrides for one in last.values()}
    newest: dict[tuple[object, ...], Feedback] = {}
    for one in sorted(last.values(), key=lambda each: each.number):
        if not one.retracted and one.id not in overridden:
            subject = pair_of(one) if one.metric == PREFERENCE else one.target_id
            newest[one.giver, one.source, one.who, one.deployment, one.asker, one.metric, subject] = one
    return sorted(newest.values(), key=lambda each: each.number)


def is_about(said: Feedback, turn: Turn) -> bool:
    """Whether a statement speaks of a turn, or of the whole episode that it belongs to. Clients choose the ids of
    episodes, so a stranger's may have the same."""
    if said.level == "inference":
        return said.target_id == turn.id
    return said.target_id == turn.episode_id and said.asker in ("", turn.person.key_id)


def speakers(said: Feedback, turn: Turn) -> tuple[Person, ...]:
    """The persons with whom a statement about a turn is deleted beside the turn's own, as the server's store finds it:
    names are a key's own, so it may be whoever has the name at the key that gave it, or at the key that asked."""
    if not said.who or said.source not in OF_PERSONS or said.giver.startswith(OPERATOR):
        return ()
    key_id, _, channel = said.giver.rpartition("/")
    giver = key_id if channel in CHANNELS else said.giver
    return tuple(Person(key, said.who) for key in dict.fromkeys((turn.person.key_id, giver)) if key)


def is_golden(said: Feedback) -> bool:
    """Whether a label was given to measure with, by its tag: then nothing may be trained on it."""
    return bool(said.tags.get(GOLDEN_TAG))


def same_voice(one: Feedback, other: Feedback) -> bool:
    """Whether the same giver, source and person speak."""
    return (one.giver, one.source, one.who) == (other.giver, other.source, other.who)


def same_subject(one: Feedback, other: Feedback) -> bool:
    """Whether two statements measure the same: one target, or for preferences one pair of answers, either way round."""
    if (one.deployment, one.metric) != (other.deployment, other.metric):
        return False
    # Two keys may have chosen one id for their episodes.
    if one.asker != other.asker and "" not in (one.asker, other.asker):
        return False
    return one.target_id == other.target_id if one.metric != PREFERENCE else pair_of(one) == pair_of(other)


def pair_of(said: Feedback) -> frozenset[str]:
    """The two turns of a preference."""
    return frozenset((said.target_id, str(said.value)))


def check_override(said: Feedback, old: Feedback | None, *, counts: bool, may_all: bool) -> None:
    """BadRequest where a statement may not override the one that it names; `may_all` lets it whoever speaks."""
    named = f"`overrides` names {said.overrides!r}"
    if old is None or not same_subject(said, old):
        raise BadRequest(f"{named}, which is no statement about this target and metric; name one that is, or none.")
    if not (may_all or same_voice(said, old) or STRENGTH[said.source] > STRENGTH[old.source]):
        raise BadRequest(
            f"{named}, a statement of the source {old.source}, and this one is of the source {said.source}: a human's "
            "overrides those of code, judges and implicit signals, code's those of judges, and nobody's an equal's."
        )
    if not counts:
        raise BadRequest(f"{named}, which no longer counts, since it was retracted or overridden; leave it out.")


def declared_metrics(text: bytes) -> tuple[Metric, ...]:
    """The metrics of a TOML file, or of its JSON form; other tables beside `[metrics.NAME]` are another program's.

    BadRequest names the metric and the field that is wrong.
    """
    if len(text) > MOST_BYTES:
        raise BadRequest(f"The metrics have {len(text)} bytes; {MOST_BYTES} are read.")
    tables = _tree(text).get("metrics", {})
    if not isinstance(tables, dict):
        raise BadRequest("`metrics` is no table; write [metrics.NAME] with type, level and optimize.")
    if len(tables) > MOST_METRICS:
        raise BadRequest(f"{len(tables)} metrics were declared; a deployment has {MOST_METRICS} at most.")
    return tuple(_declared(name, table) for name, table in sorted(tables.items()))


def _tree(text: bytes) -> dict[str, Any]:
    try:
        # A JSON object begins with a brace, which no TOML file does.
        if text.lstrip().startswith(b"{"):
            return msgspec.json.decode(text, type=dict[str, Any])
        return tomllib.loads(text.decode())
    # What is nested a thousand times ends the reader's own stack.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f"The metrics cannot be read as TOML or JSON: {error}.") from None


def _declared(name: str, table: object) -> Metric:
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"A metric cannot be called {name[:64]!r}: write 1 to 64 letters, digits, '_', '.' or '-', beginning with "
            "a letter or '_'."
        )
    try:
        found = msgspec.convert(table, DeclareMetric)
    except msgspec.ValidationError as error:
        raise BadRequest(f"[metrics.{name}] is wrong: {error}.") from None
    kind: MetricKind = found.type
    # Everybody who reads feedback relies on what these mean.
    if name in BUILT_IN and BUILT_IN[name].kind != kind:
        raise BadRequest(f"The metric {name!r} is built in as {BUILT_IN[name].kind}; declare yours by another name.")
    return Metric(name, kind, found.level, found.optimize)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
