"""A site where some turns exist, in a table in place of a recorder, and short ways to speak of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from loreloop.store import deployments
from loreloop.store.rows import Arm, Split
from loreloop.store.turns import Known, State
from tests.http.site import Site
from tests.store.place import write_now

LOOP = "http://site/loop/v1"
TURN, OTHER_TURN, EPISODE = "chatcmpl-one", "chatcmpl-two", "ep-one"


class NamedTargets:
    """Turns and episodes of a table."""

    def __init__(self, targets: Mapping[str, Known]) -> None:
        self.targets = dict(targets)

    def issued(self, id: str) -> Sequence[Known]:
        return [self.targets[id]] if id in self.targets else []


def deploy(site: Site, name: str, owner: str | None = None) -> None:
    write_now(site.office.store, deployments.set, name, owner, Split(Arm("fake", "fake")), time.time(), "test")


def know(site: Site, *targets: Known) -> None:
    site.services.feedback.targets = NamedTargets({target.id: target for target in targets})


def turn(id: str, deployment: str = "bot", key_id: str = "asker", state: State = "kept") -> Known:
    return Known(id, "inference", deployment, key_id, state)


def episode(id: str, deployment: str = "bot") -> Known:
    return Known(id, "episode", deployment, "asker")


def set_up(site: Site) -> None:
    """Two turns and an episode of the deployment `bot`, which is another key's; one of `elsewhere`."""
    for name in ("bot", "elsewhere"):
        deploy(site, name, site.office.key_id)
    foreign = turn("chatcmpl-foreign", "elsewhere")
    know(site, turn(TURN), turn(OTHER_TURN), episode(EPISODE), foreign)


async def give(site: Site, client: httpx.AsyncClient | None = None, status: int = 200, **fields: Any) -> dict[str, Any]:
    """The answer to a statement; usually a thumb up for the first turn."""
    body = {"target_id": TURN, "metric": "thumb", "value": True} | fields
    answer = await (client or site.client).post(f"{LOOP}/feedback", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def refusal(site: Site, client: httpx.AsyncClient | None = None, status: int = 400, **fields: Any) -> str:
    """The words of a refusal."""
    return (await give(site, client, status, **fields))["error"]["message"]


async def feed(site: Site, after: int = 0, name: str = "bot") -> list[dict[str, Any]]:
    answer = await site.client.get(f"{LOOP}/deployments/{name}/feedback", params={"after": after})
    assert answer.status_code == 200, answer.text
    return answer.json()["feedback"]
