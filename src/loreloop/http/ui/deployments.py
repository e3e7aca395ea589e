"""Pages of deployments: what answers under a name, since when, what was recorded and said; the last change undone."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from loreloop.http.addresses import limit_of
from loreloop.http.loop.access import manages, visible_turn
from loreloop.http.loop.standings import Told
from loreloop.http.operations.deployments import deployment_json, name_of, rollout
from loreloop.http.services import ADMIN, TRAIN, asker, caller, has, services
from loreloop.http.ui.curves import Measure, picture
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.rendering import render
from loreloop.http.ui.visits import form
from loreloop.store import deployments, feedback, page_lists
from loreloop.store.rows import Deployment, KeyRow
from loreloop.store.store import Store

USUAL_PAGE, MAX_PAGE = 100, 500
VERSIONS, RECENT = 20, 50  # on a deployment's page
ABOUT = (
    "How much more content users are with the candidate, by judged episodes of both. The interval holds the difference "
    "at all times at once, so it may be looked at after every episode. Worry where its upper end falls below zero."
)
COUNTED = 10_000  # turns, the newest ones; the route for programs counts all


async def deployments_page(request: Request) -> Response:
    """The deployments that the key may see, by the rule of the route for programs."""
    key, store = asker(request), services(request).store
    limit, after = limit_of(request, USUAL_PAGE, MAX_PAGE), request.query_params.get("after", "")
    found = await deployments_seen(store, key, limit + 1, after)
    rows = [deployment_json(row) for row in found[:limit]]
    return render(
        request, "deployments.html", {"deployments": rows, "next": rows[-1]["name"] if len(found) > limit else None}
    )


async def deployments_seen(store: Store, key: KeyRow, limit: int, after: str) -> list[Deployment]:
    """The deployments that a key may see behind a name, in the order of their names."""
    if has(key, ADMIN):
        return await store.read_apart(deployments.all, limit, after)
    owner_id = key.id if has(key, TRAIN) else None
    return await store.read_apart(deployments.of_key, owner_id, key.deployments, limit, after)


async def deployment_page(request: Request) -> Response:
    """One deployment with its history; to whoever manages it also what was recorded, and what was said of that."""
    key, name, store = asker(request), name_of(request), services(request).store
    found = rollout(request, key).visible(name)
    history = [deployment_json(row) for row in await store.read_apart(deployments.history, name, VERSIONS)]
    # Turns are other people's words.
    recorded = await recorded_of(request, found) if manages(key, found) else None
    may_undo = manages(key, found) and len(history) > 1
    told = services(request).standings.told.get(name) if manages(key, found) else None
    data = {"deployment": deployment_json(found), "history": history, "recorded": recorded, "may_undo": may_undo}
    data["loop"] = None if told is None else msgspec.to_builtins(told)
    return render(request, "deployment.html", data, {"comparison": comparison(told)})


def comparison(told: Told | None) -> list[dict[str, Any]]:
    """The picture of the looks at a candidate, by judged episodes; none before there are two."""
    if told is None or len(told.looks) < 2:
        return []
    ends = [Measure(told.looks[place].n_episodes, 0.0) for place in (0, -1)]
    curves: dict[str, list[Measure]] = {"difference": [], "upper end": [], "lower end": [], "no difference": ends}
    for look in told.looks:
        for name, value in (("difference", look.difference), ("upper end", look.high), ("lower end", look.low)):
            curves[name].append(Measure(look.n_episodes, value))
    return [{"picture": picture("difference", curves), "title": "Candidate less champion", "about": ABOUT}]


async def recorded_of(request: Request, found: Deployment) -> dict[str, Any]:
    """What a deployment has recorded of late, and how much of it has which fate."""
    store = services(request).store
    fates = await store.read_apart(page_lists.fates_of_newest, found.name, COUNTED)
    tally = await store.read_apart(page_lists.tally, found.name)
    recent = await store.read_apart(page_lists.newest_turns, found.name, RECENT)
    said = await store.read_apart(page_lists.newest_feedback, found.name, RECENT)
    return {
        "counts": {"of_newest": COUNTED, "fates": fates, **tally},
        "turns": msgspec.to_builtins(recent),
        "feedback": msgspec.to_builtins(said),
    }


async def undo_change(request: Request) -> Response:
    """Makes the version before the current one the newest again, as the route for programs does."""
    change = rollout(request, caller(request, TRAIN))
    await form(request)
    change.visible(name_of(request))
    made = await change.rollback(name_of(request))
    return RedirectResponse(f"/ui/deployments/{made.name}", 303)


async def turn_page(request: Request) -> Response:
    """A recorded turn with what was said of it, for who asked for it and who manages its deployment."""
    key, found, store = asker(request), visible_turn(request), services(request).store
    told = msgspec.to_builtins(found)
    deployment = store.read(deployments.find, found.deployment)
    reads_all = has(key, ADMIN) if deployment is None else manages(key, deployment)
    said = await store.read_apart(feedback.about, [found.id])
    own = [
        msgspec.to_builtins(one)
        for one in said
        # Who only asked hears what came by its own key, as by the route for programs: the rest are others' words.
        if one.deployment == found.deployment and (reads_all or one.giver.partition("/")[0] == key.id)
    ]
    # Ids of tokens say nothing to people, and are many.
    shown = {name: value for name, value in told.items() if name not in ("prompt", "tokens", "logprobs")}
    return render(request, "turn.html", {"turn": shown, "n_tokens": len(found.tokens), "feedback": own})


ROUTES = [
    page_route("/deployments", deployments_page),
    page_route("/deployments/{name}", deployment_page),
    page_route("/deployments/{name}/undo", undo_change, "POST"),
    page_route("/turns/{turn_id}", turn_page),
]
