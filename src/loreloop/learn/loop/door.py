"""The loop's way into its server: the feeds of turns and feedback, the deployment, and persons, as typed values.

One HTTP client with the loop's key. Knows the routes under `/loop/v1`, and of Tinker's the one that says whether a
session lives. Knows no rule of the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from loreloop.learn.refusals import kind_of
from loreloop.protocol.episodes import Turn, TurnPage
from loreloop.protocol.errors import BadRequest, Gone, NotFound, Unavailable
from loreloop.protocol.feedback import Feedback, FeedbackPage, Metric
from loreloop.protocol.loop_rest import LoopStanding

T = TypeVar("T")
PAGE = 500
SECONDS = httpx.Timeout(10, read=300)  # new weights of two arms may warm up for two minutes each
MOST_MARKED = 5000  # turns of one request


class Recording(msgspec.Struct, frozen=True):
    """Whether a deployment keeps its turns."""

    record: bool = False


class Declared(msgspec.Struct, frozen=True):
    """A deployment's metrics by their names: its own, and those that every one has."""

    metrics: dict[str, Metric]
    built_in: dict[str, Metric]


class Deployed(msgspec.Struct, frozen=True):
    """A deployment as it is: its target, and its canary with the share that it gets."""

    target: str
    canary: str | None = None
    canary_percent: float = 0.0
    version: int = 0
    recording: Recording = Recording()


class Door:
    """One deployment of one server. Every method raises Unavailable where the server does not answer, and the server's
    own words where it refuses."""

    def __init__(self, http: httpx.Client, deployment: str) -> None:
        self.http, self.name = http, deployment
        self.place = f"/loop/v1/deployments/{quote(deployment, safe='')}"

    @classmethod
    def to(cls, url: str, key: str, deployment: str) -> Door:
        """With a client of its own. Not by a proxy of the environment, which would see the key."""
        headers = {"authorization": f"Bearer {key}"}
        return cls(httpx.Client(base_url=url, headers=headers, timeout=SECONDS, trust_env=False), deployment)

    def deployment(self) -> Deployed:
        """The deployment as it is now; NotFound where there is none."""
        return msgspec.convert(self._json("GET", self.place), Deployed)

    def deploy(self, target: str, canary: str | None = None, percent: float = 0.0, expected: int | None = None) -> None:
        """Moves the deployment, unless it stands there already. What it records stays as it was. With the version that
        is `expected`, Conflict where somebody has moved it meanwhile."""
        now = self.deployment()
        if (now.target, now.canary, now.canary_percent if now.canary else 0.0) == (target, canary, percent):
            return
        body: dict[str, Any] = {"target": target}
        if canary is not None:
            body |= {"canary": canary, "canary_percent": percent}
        if expected is not None:
            body["expected_version"] = expected
        self._json("PUT", self.place, body)

    def turns(self, after: int = 0) -> Iterator[Turn]:
        """Recorded turns behind a number, to the feed's present end."""
        while True:
            page = self._page("turns", after, TurnPage)
            yield from page.turns
            if not page.turns or page.next <= after:
                return
            after = page.next

    def feedback(self, after: int = 0) -> Iterator[Feedback]:
        """Statements behind a number, retractions included, to the feed's present end."""
        while True:
            page = self._page("feedback", after, FeedbackPage)
            yield from page.feedback
            if not page.feedback or page.next <= after:
                return
            after = page.next

    def mark_used(
        self, candidate: str, revision: str | None, turns: Sequence[str], start: str | None = None
    ) -> tuple[str, ...]:
        """Says which turns a candidate is trained on, and with which revision it began, so that each turn, and each
        person, can be told. The turns that are not there any more, or from which nothing may be learned any more:
        nobody may be trained on these."""
        gone: list[str] = []
        for first in range(0, len(turns), MOST_MARKED):
            body = {"candidate": candidate, "turns": list(turns[first : first + MOST_MARKED])}
            body |= {"revision": revision} if revision is not None else {}
            body |= {"start": start} if start is not None else {}
            told = self._json("POST", f"{self.place}/used", body)
            gone += [*told.get("unknown", []), *told.get("withdrawn", [])]
        return tuple(gone)

    def metrics(self) -> Declared:
        """By which metrics feedback on the deployment may be given."""
        return msgspec.convert(self._json("GET", f"{self.place}/metrics"), Declared)

    def counts(self) -> dict[str, Any]:
        """How many turns have which fate."""
        found: dict[str, Any] = self._json("GET", f"{self.place}/turns/counts")
        return found

    def deleted_persons(self) -> frozenset[str]:
        """Persons whose data was deleted, as `person_key` writes them: nothing of theirs may be trained on."""
        found, behind = set[str](), ""
        while True:
            page = self._json("GET", f"{self.place}/deleted-persons{behind}")
            found |= {person_key(one.get("key_id", ""), one["user"]) for one in page["persons"]}
            # An older server tells of one page only, and of no next one.
            if page.get("next") is None:
                return frozenset(found)
            behind = f"?after={page['next']}"

    def person_target(self, user: str, key_id: str = "") -> str | None:
        """The weights that answer one person; None where the deployment's own do."""
        try:
            found = self._json("GET", self._person(user, key_id))
        except NotFound:
            return None
        target: str | None = found.get("target")
        return target

    def set_person(self, user: str, target: str, key_id: str = "") -> None:
        """Has one person answered by weights of their own."""
        body = {"target": target} | ({"key": key_id} if key_id else {})
        self._json("PUT", f"{self.place}/persons/{quote(user, safe='')}", body)

    def clear_person(self, user: str, key_id: str = "") -> None:
        """Has one person answered by the deployment's own weights again."""
        try:
            self._json("DELETE", self._person(user, key_id))
        except NotFound:
            return

    def stand(self, standing: LoopStanding) -> None:
        """Says where the loop stands, for whoever looks at the server's pages."""
        self._answer("PUT", f"{self.place}/standing", msgspec.to_builtins(standing))

    def _person(self, user: str, key_id: str) -> str:
        """Where one person's weights are looked at and taken away."""
        whose = f"?key={quote(key_id, safe='')}" if key_id else ""
        return f"{self.place}/persons/{quote(user, safe='')}{whose}"

    def session_has_ended(self, session_id: str) -> bool:
        """Whether a session of the SDK is over, and with it all that it holds in the server's memory."""
        try:
            self._json("POST", "/api/v1/session_heartbeat", {"session_id": session_id})
        except (Gone, NotFound):
            return True
        return False

    def _page(self, what: str, after: int, kind: type[T]) -> T:
        response = self._answer("GET", f"{self.place}/{what}?after={after}&limit={PAGE}")
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.DecodeError as error:
            raise BadRequest(
                f"The server's feed of {what} cannot be read ({error}); run the same version of both."
            ) from None

    def _json(self, method: str, path: str, body: object = None) -> Any:
        return self._answer(method, path, body).json()

    def _answer(self, method: str, path: str, body: object = None) -> httpx.Response:
        try:
            response = (
                self.http.request(method, path, json=body) if body is not None else self.http.request(method, path)
            )
        except httpx.HTTPError as error:
            raise Unavailable(f"The server at {self.http.base_url} does not answer: {error}.") from None
        if response.status_code >= 400:
            raise _refusal(response)
        return response


def person_key(key_id: str, user: str) -> str:
    """One text for one person."""
    return f"{key_id}\n{user}"


def _refusal(response: httpx.Response) -> Exception:
    """The server's words, as an error of the kind that its status means."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = f"The server answered {response.status_code} to {response.request.url.path}."
    return kind_of(response.status_code)(message)
