"""What a request says of its turn, in its body, its metadata or its headers: the episode, a side turn, consent.

Knows no dialect's bodies beyond these fields, and not what is recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from loreloop.deployments.model_names import Asking
from loreloop.protocol.errors import BadRequest

EPISODE_HEADER, SIDE_HEADER, CONSENT_HEADER = "x-episode-id", "x-side-turn", "x-consent"
HEADERS = (EPISODE_HEADER, SIDE_HEADER, CONSENT_HEADER)
EPISODE, SIDE, CONSENT = "episode_id", "side_turn", "consent"
LONGEST_ID, LONGEST_USER = 200, 500  # characters
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.:@-]{{0,{LONGEST_ID - 1}}}")
# OpenAI's metadata and all headers are texts, so a yes comes in several.
_YES, _NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})


@dataclass(frozen=True)
class Marks:
    """`consent` is None where the request does not say. The two faults are why an id, or an answer, means nothing here:
    they matter to deployments alone, since anything may stand in OpenAI's metadata."""

    episode_id: str | None = None
    side: bool = False
    consent: bool | None = None
    id_fault: str | None = None
    answer_fault: str | None = None

    def check(self, user: object, *, is_recorded: bool) -> None:
        """Raises BadRequest for a fault that matters to a deployment that was asked by this user: ids, since its canary
        goes by them, a user whose name is longer than any that a person can have here, and answers where turns are
        recorded."""
        check_user(user)
        fault = self.id_fault or (self.answer_fault if is_recorded else None)
        if fault is not None:
            raise BadRequest(fault)


def check_user(user: object) -> None:
    """BadRequest for a name that is longer than any that a person can have here."""
    if isinstance(user, str) and len(user) > LONGEST_USER:
        raise BadRequest(f"The user has {len(user)} characters; a user here has at most {LONGEST_USER}.")


def marks_of(request: Request, episode_id: str | None, metadata: object) -> Marks:
    """What a request says, with its faults: an id that is none, an answer that is neither yes nor no, and places that
    contradict each other. `metadata` that is no object says nothing."""
    said: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    headers = request.headers
    # Nearly all requests say nothing, and they must not pay for those that do.
    if not episode_id and not said and not any(name in headers for name in HEADERS):
        return Marks()
    ids = {str(one) for one in (episode_id, said.get(EPISODE), headers.get(EPISODE_HEADER)) if one not in (None, "")}
    id_fault = _id_fault(ids)
    side = _answer(SIDE_HEADER, SIDE, headers.get(SIDE_HEADER), said.get(SIDE))
    consent = _answer(CONSENT_HEADER, CONSENT, headers.get(CONSENT_HEADER), said.get(CONSENT))
    return Marks(
        episode_id=next(iter(ids), None) if id_fault is None else None,
        side=side.given is True,
        consent=consent.given,
        id_fault=id_fault,
        answer_fault=side.fault or consent.fault,
    )


def _id_fault(ids: set[str]) -> str | None:
    if len(ids) > 1:
        return f"The request names its episode twice and differently: {', '.join(sorted(ids))[:300]!r}."
    episode = next(iter(ids), None)
    if episode is None or _ID.fullmatch(episode):
        return None
    return (
        f"An episode cannot be called {episode[:80]!r}: write 1 to {LONGEST_ID} letters, digits, '_', '.', ':', "
        "'@' or '-', beginning with a letter or digit; or send none, and pass back the episode_id of the answer."
    )


def asking_of(user: object, marks: Marks) -> Asking:
    """Who asks."""
    return Asking(user if isinstance(user, str) and user else None, marks.episode_id)


@dataclass(frozen=True)
class _Answer:
    given: bool | None = None
    fault: str | None = None


def _answer(header: str, name: str, in_header: str | None, in_metadata: object) -> _Answer:
    found: set[bool] = set()
    for given in (in_header, in_metadata):
        if given is None:
            continue
        word = str(given).strip().lower()
        # A mark that is misread would train on what nobody may train on; so it is refused.
        if word not in _YES | _NO:
            return _Answer(fault=f"{header} (or metadata's {name}) is {str(given)[:40]!r}; write yes or no.")
        found.add(word in _YES)
    if len(found) > 1:
        return _Answer(fault=f"{header} and metadata's {name} contradict each other; send one of them.")
    return _Answer(next(iter(found), None))
