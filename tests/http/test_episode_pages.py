"""Episodes and exports by pages: nobody's turns hide another's, and nothing large is answered in one piece."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, update

from loreloop.store import deployments, turn_keeping, turns
from loreloop.store.schema import DEPLOYMENTS
from loreloop.store.turn_bodies import packed
from tests.http.recorded import Room, play_recorded
from tests.http.test_persons import key_id
from tests.store.place import write_now
from tests.store.test_turns import BODY, new


def fill(room: Room, owner: str, n: int, n_characters: int = 2, episode_id: str = "e") -> None:
    """Turns of one key in one episode, as a recorder would keep them."""
    store = room.site.office.store
    deployment = store.read(deployments.current, "bot")
    body = packed(msgspec.structs.replace(BODY, answer={"role": "assistant", "content": "x" * n_characters}))
    made = {"key_id": owner, "episode_id": episode_id, "version_created": deployment.created}
    batch = [new(number, body, id=f"{owner}-{number}", **made) for number in range(n)]
    write_now(store, turn_keeping.keep, batch)


async def paged(room: Room, path: str, limit: int, key: str | None = None) -> list[str]:
    seen: list[str] = []
    after = 0
    while (page := await room.loop("GET", path, key=key, params={"limit": limit, "after": after}))["turns"]:
        seen += [turn["id"] for turn in page["turns"]]
        after = page["next"]
    return seen


def test_turns_of_other_keys_under_the_same_id_hide_nobody_s() -> None:
    async def scene(room: Room) -> None:
        mine, other = room.site.new_key("infer"), room.site.new_key("infer")
        fill(room, key_id(room, other), 1200)
        fill(room, key_id(room, mine), 3)
        found = await room.loop("GET", "/episodes/e", key=mine)
        assert {turn["person"]["key_id"] for turn in found["turns"]} == {key_id(room, mine)}
        assert len(found["turns"]) == 3
        assert len(await paged(room, "/episodes/e", 500)) == 1203, "an admin reads everybody's"

    play_recorded(scene)


def test_an_owner_reads_all_turns_of_an_episode_of_its_deployment() -> None:
    async def scene(room: Room) -> None:
        owner, app = room.site.new_key("train"), room.site.new_key("infer")
        fill(room, key_id(room, app), 2)
        # The deployment of a bare base is no key's own, so it is for admins and for who asked.
        await room.loop("GET", "/episodes/e", 404, key=owner)
        write_now(room.site.office.store, own, "bot", key_id(room, owner))
        assert len((await room.loop("GET", "/episodes/e", key=owner))["turns"]) == 2
        assert len((await room.loop("GET", "/episodes/e", key=app))["turns"]) == 2

    play_recorded(scene)


def own(connection: Connection, name: str, owner: str) -> None:
    connection.execute(update(DEPLOYMENTS).where(DEPLOYMENTS.c.name == name).values(key_id=owner))


def test_an_episode_is_read_by_pages_that_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(room: Room) -> None:
        owner = key_id(room, room.key)
        fill(room, owner, 30)
        assert await paged(room, "/episodes/e", 7) == [f"{owner}-{number}" for number in range(30)]
        monkeypatch.setattr(turns, "PAGE_BYTES", 1)
        assert len((await room.loop("GET", "/episodes/e"))["turns"]) == 1
        assert len(await paged(room, "/episodes/e", 30)) == 30
        await room.loop("GET", "/episodes/e", 400, params={"after": "x"})
        await room.loop("GET", "/episodes/nothing", 404)

    play_recorded(scene)


def test_an_export_is_sent_piece_by_piece() -> None:
    async def scene(room: Room) -> None:
        fill(room, key_id(room, room.key), 50, 100_000)
        pieces: list[int] = []

        async def send(message: Any) -> None:
            pieces.append(len(message.get("body", b"")))

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/loop/v1/persons/ann/export",
            "query_string": b"",
            "headers": [(b"x-api-key", room.key.encode())],
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }
        await room.site.app(scope, receive, send)
        assert sum(pieces) > 50 * 100_000
        assert max(pieces) < 2 * 100_000

    play_recorded(scene)
