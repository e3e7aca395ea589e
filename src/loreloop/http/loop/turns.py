"""Recorded turns: the feed of a deployment, one turn, one episode, marks, counts, and what was trained on them."""

from __future__ import annotations

from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import limit_of
from loreloop.http.bodies import answer, read_json
from loreloop.http.loop.access import answer_apart, managed_deployment, read_apart, reader_of, visible_turn
from loreloop.http.services import asker, now, services
from loreloop.protocol.episodes import Fate
from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.loop_rest import MarkTurn, UseTurns
from loreloop.store import turn_marks, turn_uses, turns
from loreloop.store.turns import Wanted

USUAL_PAGE, MAX_PAGE = 100, 1000
FATES = get_args(Fate)


async def list_turns(request: Request) -> Response:
    """The feed of a deployment, in the order in which turns were kept or marked last; a page may hold fewer than its
    limit where they are large, and the feed has ended, for now, where one holds none."""
    found, query = managed_deployment(request), request.query_params
    fate = query.get("fate")
    if fate is not None and fate not in FATES:
        raise BadRequest(f"fate is {fate[:40]!r}; it must be one of {', '.join(FATES)}.")
    limit = limit_of(request, USUAL_PAGE, MAX_PAGE)
    wanted = Wanted(found.name, _after(request), limit, fate, query.get("user"))
    return await answer_apart(await read_apart(services(request), turns.page, wanted))


async def get_turn(request: Request) -> Response:
    """One turn with what became of it."""
    return await answer_apart(visible_turn(request))


async def mark_turn(request: Request) -> Response:
    """Says afterwards that a turn is a side turn, or whether its person consents; the turn as it is then."""
    key, turn = asker(request), visible_turn(request)
    marks = await read_json(request, MarkTurn)
    return await answer_apart(await services(request).store.write(turn_marks.mark, turn.id, marks, key.id))


async def get_episode(request: Request) -> Response:
    """The turns of an episode, of all deployments in which this key may read it, by pages."""
    key, episode_id, after = asker(request), str(request.path_params["episode_id"]), _after(request)
    limit = limit_of(request, USUAL_PAGE, MAX_PAGE)
    found = await read_apart(services(request), turns.episode_page, episode_id, reader_of(key), after, limit)
    if not found.turns and not after:
        raise NotFound(
            f"There is no episode {episode_id[:80]!r} of this key; what was said last is kept within a second."
        )
    return await answer_apart(found)


async def count_turns(request: Request) -> Response:
    """How many turns have which fate, and what is gone already."""
    found = managed_deployment(request)
    counts = await read_apart(services(request), turns.counts, found.name)
    return answer(
        {
            "recording": found.recording.record,
            "fates": dict.fromkeys(FATES, 0) | counts.fates,
            "bytes": counts.n_bytes,
            "expired": counts.expired,
            "dropped": counts.dropped,
            "mixed_episodes": counts.mixed_episodes,
        }
    )


async def use_turns(request: Request) -> Response:
    """Notes that a candidate was trained on these turns. Those in `unknown` are not kept here: expired, dropped, or of
    persons who were deleted meanwhile; from those in `withdrawn` nothing may be learned any more: a no was said, or a
    mark was set. A candidate which has learned from either should not be promoted."""
    found = managed_deployment(request)
    used = await read_json(request, UseTurns)
    left = await services(request).store.write(turn_uses.use, found.name, used, now())
    n_used = len(used.turns) - len(left.unknown) - len(left.withdrawn)
    return answer({"candidate": used.candidate, "used": n_used} | msgspec.to_builtins(left))


def _after(request: Request) -> int:
    after = request.query_params.get("after", "0")
    if not after.isdecimal() or len(after) > 18:
        raise BadRequest(f"after is {after[:40]!r}; it must be a turn's number, or 0.")
    return int(after)


ROUTES = [
    Route("/deployments/{name}/turns", list_turns, methods=["GET"]),
    Route("/deployments/{name}/turns/counts", count_turns, methods=["GET"]),
    Route("/deployments/{name}/used", use_turns, methods=["POST"]),
    Route("/turns/{turn_id}", get_turn, methods=["GET"]),
    Route("/turns/{turn_id}", mark_turn, methods=["POST"]),
    Route("/episodes/{episode_id}", get_episode, methods=["GET"]),
]
