"""What a server refuses for good is not asked again for ever; what may pass is waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import tinker
from tinker.types import RequestErrorCategory

from loreloop.learn.loop import running
from loreloop.learn.loop.door import Door
from loreloop.learn.refusals import Refused, refusal
from loreloop.protocol import errors
from tests.loop.test_course import steps, verdicts
from tests.loop.world import World


def status_error(status: int) -> tinker.APIStatusError:
    response = httpx.Response(status, request=httpx.Request("POST", "http://site/x"))
    return tinker.APIStatusError("the SDK's words", response=response, body={"error": {"message": "no such thing"}})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Refused),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, Refused),
        (408, errors.Unavailable),
        (409, Refused),
        (410, errors.Gone),
        (413, Refused),
        (422, Refused),
        (429, errors.Unavailable),
        (500, errors.Unavailable),
        (503, errors.Unavailable),
    ],
)
def test_what_the_sdk_hears_is_for_good_or_for_now(status: int, kind: type) -> None:
    found = refusal(status_error(status), "the training")
    assert type(found) is kind
    assert found.message.endswith("the training: no such thing")


def test_what_was_refused_on_its_way_and_what_was_not_heard_are_told_apart() -> None:
    user = tinker.RequestFailedError("too long", "id", RequestErrorCategory.User)
    server = tinker.RequestFailedError("broken", "id", RequestErrorCategory.Server)
    away = tinker.APIConnectionError(request=httpx.Request("POST", "http://site/x"))
    assert [type(refusal(one, "it")) for one in (user, server, away)] == [
        Refused,
        errors.Unavailable,
        errors.Unavailable,
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (408, errors.Unavailable),
        (409, errors.Conflict),
        (410, errors.Gone),
        (429, errors.Unavailable),
        (502, errors.Unavailable),
    ],
)
def test_so_does_the_door(status: int, kind: type) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"error": {"message": "because"}})

    http = httpx.Client(base_url="http://site", transport=httpx.MockTransport(answer))
    with http, pytest.raises(errors.LoreloopError, match="because") as caught:
        Door(http, "assistant").deployment()
    assert type(caught.value) is kind


@dataclass
class Strict(World):
    """A world that refuses one kind of step, in its own words."""

    errors: dict[str, list[Exception]] = field(default_factory=dict)

    def refuse(self, what: str) -> None:
        if waiting := self.errors.get(what):
            raise waiting.pop(0)

    def deployment(self):
        self.refuse("deployment")
        return super().deployment()

    def deploy(self, *change, **more) -> None:
        self.refuse("deploy")
        super().deploy(*change, **more)

    def set_person(self, *person) -> None:
        self.refuse("set_person")
        super().set_person(*person)

    async def train(self, *asked):
        self.refuse("train")
        return await super().train(*asked)

    async def look(self, *asked):
        self.refuse("look")
        return await super().look(*asked)

    async def right(self, *asked):
        self.refuse("right")
        return await super().right(*asked)


def run(course, wish: Callable[[], bool]) -> list[str]:
    said: list[str] = []
    asyncio.run(running.run(course, running.Running(wish=wish, tell=said.append)))
    return said


@pytest.mark.parametrize(
    ("step", "error", "sentence"),
    [
        ("look", Refused("there are no such weights"), "there are no such weights"),
        ("deploy", errors.BadRequest("Nothing was changed"), "The server did not take the candidate: Nothing was"),
        ("deploy", errors.NotFound("There is no checkpoint"), "The server did not take the candidate: There is no"),
        ("train", Refused("no model can do this"), "The training was refused: no model can do this"),
    ],
)
def test_a_cycle_that_is_refused_for_good_ends(tmp_path: Path, step: str, error: Exception, sentence: str) -> None:
    world = Strict(errors={step: [error]})
    world.corrected(5)
    course = world.course(tmp_path)
    steps(course)
    last = course.folder.decisions()[-1]
    assert (last.verdict, course.folder.load().stage) == ("void", "idle")
    assert last.sentence.startswith(sentence)
    assert not list(tmp_path.glob("cycles/*/*.jsonl"))
    world.corrected(5, "bob")
    steps(course)
    assert course.folder.load().stage == "canary", "the next cycle goes on"


@pytest.mark.parametrize("step", ["deployment", "train", "look"])
@pytest.mark.parametrize("kind", [errors.Forbidden, errors.Unauthorized, errors.Gone])
def test_a_loop_that_is_refused_for_good_ends_with_the_servers_words(tmp_path: Path, step: str, kind: type) -> None:
    world = Strict()
    world.corrected(5)
    course = world.course(tmp_path)
    world.errors[step] = [kind("this key may not")]
    with pytest.raises(kind, match="this key may not"):
        run(course, lambda: False)
    assert course.folder.why()["sentence"] == "this key may not"
    assert not verdicts(tmp_path), "it goes on from there when it is started again"


def test_what_the_sdk_raises_in_any_other_place_is_told_apart_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.0)
    world = Strict()
    world.corrected(5)
    course = world.course(tmp_path)
    world.errors["look"] = [status_error(503), status_error(403)]
    with pytest.raises(errors.Forbidden, match="The server refused a step of the loop: no such thing"):
        run(course, lambda: False)
    assert not world.errors["look"], "the first was waited for"


def test_what_may_pass_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.0)
    world = Strict()
    world.corrected(5)
    course = world.course(tmp_path)
    world.errors = {"train": [errors.Unavailable("busy", 0.0)] * 3, "look": [errors.Unavailable("away", 0.0)]}
    said = run(course, lambda: course.folder.load().stage == "canary")
    assert {"busy", "away"} <= {*said}
    assert verdicts(tmp_path) == ["passed"]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("train", Refused("too long for the window")),
        ("right", Refused("too long for the window")),
        ("set_person", errors.NotFound("too long for the window")),
    ],
)
def test_a_person_whose_weights_are_refused_holds_up_nobody(tmp_path: Path, step: str, error: Exception) -> None:
    world = Strict(errors={step: [error]})
    world.corrected(3, "ann")
    world.corrected(3, "bob")
    course = world.course(tmp_path, persons={"corrections": 3}, triggers={"feedback": 0})
    steps(course, 1)
    assert not world.owns
    last = course.folder.decisions()[-1]
    assert last.verdict == "rejected"
    assert "too long for the window" in last.sentence
    steps(course, 1)
    steps(course, 1)
    assert [*world.owns] == ["bob"]


def test_a_deployment_that_moves_while_a_persons_weights_warm_up_is_asked_again(tmp_path: Path) -> None:
    moved = errors.Conflict("The deployment 'assistant' was changed meanwhile")
    world = Strict(errors={"set_person": [moved, moved]})
    world.corrected(3, "ann")
    course = world.course(tmp_path, persons={"corrections": 3}, triggers={"feedback": 0})
    steps(course, 1)
    assert [*world.owns] == ["ann"]
    world.errors["set_person"] = [moved] * 3
    world.corrected(3, "ann")
    steps(course, 1)
    assert len(course.folder.decisions()) == 2
    assert json.loads((tmp_path / "persons.json").read_text())["key\nann"]["heard"] == 3, "this person waits, alone"
    steps(course, 1)
    assert json.loads((tmp_path / "persons.json").read_text())["key\nann"]["heard"] == 6
    assert len(world.trained) == 2, "the adapter was made already"
