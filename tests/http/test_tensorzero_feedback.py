"""Bodies as TensorZero's clients send them, and the metrics of its file."""

from typing import Any

import httpx
import pytest

from tests.http.loop_rig import EPISODE, LOOP, TURN, feed, give, know, set_up, turn
from tests.http.site import Scene, Site, play

# The tables of its documentation, in a file that holds others as well.
FILE = """
[gateway]
bind_address = "0.0.0.0:3000"

[metrics.draft_accepted]
type = "boolean"
level = "inference"
optimize = "max"

[metrics.user_rating]
type = "float"
level = "episode"
optimize = "max"

[metrics.seconds]
type = "float"
optimize = "min"
"""


def play_about(scene: Scene) -> None:
    async def whole(site: Site) -> None:
        set_up(site)
        answer = await site.client.put(f"{LOOP}/deployments/bot/metrics", content=FILE)
        assert answer.status_code == 200, answer.text
        await scene(site)

    play(whole, engine=False)


async def send(site: Site, **body: Any) -> httpx.Response:
    return await site.client.post("http://site/feedback", json=body)


@pytest.mark.parametrize(
    ("body", "level", "value"),
    [
        ({"inference_id": TURN, "metric_name": "draft_accepted", "value": True}, "inference", True),
        ({"episode_id": EPISODE, "metric_name": "user_rating", "value": 10}, "episode", 10.0),
        ({"inference_id": TURN, "metric_name": "comment", "value": "Short."}, "inference", "Short."),
        ({"episode_id": EPISODE, "metric_name": "comment", "value": "Long."}, "episode", "Long."),
        ({"inference_id": TURN, "metric_name": "demonstration", "value": "4"}, "inference", "4"),
        (
            {"inference_id": TURN, "metric_name": "demonstration", "value": [{"type": "text", "text": "4"}]},
            "inference",
            "4",
        ),
        ({"inference_id": TURN, "metric_name": "demonstration", "value": {"sum": 4}}, "inference", '{"sum":4}'),
        (
            {"inference_id": TURN, "metric_name": "draft_accepted", "value": False, "tags": None, "episode_id": None},
            "inference",
            False,
        ),
    ],
)
def test_its_bodies_are_taken_as_they_are(body: dict[str, Any], level: str, value: object) -> None:
    async def scene(site: Site) -> None:
        answer = await send(site, **{"tags": {"author": "Alice"}} | body)
        assert answer.status_code == 200, answer.text
        (said,) = await feed(site)
        assert answer.json() == {"feedback_id": said["id"]}
        assert (said["level"], said["value"]) == (level, value)
        assert said["tags"] == ({} if "tags" in body else {"author": "Alice"})

    play_about(scene)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"metric_name": "draft_accepted", "value": True}, 400, "one of inference_id and episode_id"),
        (
            {"metric_name": "comment", "value": "x", "inference_id": TURN, "episode_id": EPISODE},
            400,
            "one of inference_id and episode_id",
        ),
        ({"metric_name": "user_rating", "value": 1, "inference_id": TURN}, 400, "is about an episode"),
        ({"metric_name": "draft_accepted", "value": True, "episode_id": EPISODE}, 400, "is about a turn"),
        ({"metric_name": "comment", "value": "x", "episode_id": TURN}, 400, "send it as inference_id"),
        ({"metric_name": "draft_accepted", "value": 1, "inference_id": TURN}, 400, "takes true or false"),
        ({"metric_name": "draft_accepted", "value": [1], "inference_id": TURN}, 400, "was something else"),
        ({"metric_name": "unheard", "value": 1, "inference_id": TURN}, 400, "has no metric 'unheard'"),
        ({"metric_name": "comment", "value": "x", "inference_id": "nothing"}, 404, "no turn or episode"),
        ({"metric_name": "comment", "inference_id": TURN}, 400, "value"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_it_would_refuse_is_refused(body: dict[str, Any], status: int, words: str) -> None:
    async def scene(site: Site) -> None:
        answer = await send(site, **body)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]["message"]
        assert await feed(site) == []

    play_about(scene)


def test_a_dry_run_keeps_nothing() -> None:
    async def scene(site: Site) -> None:
        answer = await send(site, inference_id=TURN, metric_name="comment", value="x", dryrun=True)
        assert answer.json()["feedback_id"]
        assert await feed(site) == []

    play_about(scene)


def test_its_uuids_find_our_ids() -> None:
    async def scene(site: Site) -> None:
        know(site, turn("chatcmpl-0123456789abcdef0123456789abcdef"))
        await send(site, inference_id="01234567-89AB-cdef-0123-456789abcdef", metric_name="comment", value="x")
        assert [each["target_id"] for each in await feed(site)] == ["chatcmpl-0123456789abcdef0123456789abcdef"]

    play_about(scene)


def test_metrics_are_shown_and_replaced() -> None:
    async def scene(site: Site) -> None:
        found = (await site.client.get(f"{LOOP}/deployments/bot/metrics")).json()
        assert found["metrics"]["seconds"] == {
            "name": "seconds",
            "kind": "float",
            "level": "inference",
            "optimize": "min",
        }
        assert "thumb" in found["built_in"]
        await give(site, metric="seconds", value=3)
        said = await site.client.put(
            f"{LOOP}/deployments/bot/metrics", json={"metrics": {"seconds": {"type": "boolean"}}}
        )
        assert said.status_code == 409
        fewer = await site.client.put(f"{LOOP}/deployments/bot/metrics", json={"metrics": {}})
        assert fewer.json()["metrics"] == {}
        await give(site, status=400, metric="seconds", value=3)

    play_about(scene)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("[metrics.x]\ntype = 'int'", "[metrics.x] is wrong"),
        ("[metrics.x]\nlevel = 'inference'", "type"),
        ("[metrics.x]\ntype = 'float'\noptimise = 'max'", "optimise"),
        ("[metrics.x]\ntype = 'float'\nlevel = 'day'", "level"),
        ("[metrics.'a b']\ntype = 'float'", "cannot be called 'a b'"),
        ("[metrics.comment]\ntype = 'float'", "is built in as comment"),
        ("[metrics.thumb]\ntype = 'float'", "is built in as boolean"),
        ("metrics = 1", "is no table"),
        ("metrics.x = 1", "[metrics.x] is wrong"),
        ("[metrics", "cannot be read as TOML"),
        ('{"metrics": ', "cannot be read as TOML or JSON"),
        ("a = " + "[" * 5000, "cannot be read"),
        ("\xff\xfe", "cannot be read"),
        ("# " + "x" * 70_000, "bytes"),
        ("".join(f"[metrics.m{number}]\ntype = 'float'\n" for number in range(101)), "101 metrics"),
    ],
    ids=lambda each: each[:30].replace("\n", " "),
)
def test_malformed_metrics_are_refused_by_name(file: str, words: str) -> None:
    async def scene(site: Site) -> None:
        answer = await site.client.put(f"{LOOP}/deployments/bot/metrics", content=file.encode("latin-1"))
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]

    play_about(scene)


def test_a_metric_of_ours_may_be_declared_at_another_level() -> None:
    async def scene(site: Site) -> None:
        content = "[metrics.thumb]\ntype = 'boolean'\nlevel = 'episode'"
        await site.client.put(f"{LOOP}/deployments/bot/metrics", content=content)
        await give(site, status=400)
        await give(site, target_id=EPISODE)

    play_about(scene)
