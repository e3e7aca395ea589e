"""What goes wrong before the ranks of a Ray cluster have met; nothing of Ray is needed for it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from loreloop.cli import ray_probe, ray_ranks
from loreloop.cli.ray_facts import Facts
from loreloop.config import Config, EngineConfig
from loreloop.host.server_plan import ServerPlan
from loreloop.host.silence import Afar
from loreloop.protocol.errors import ServerError


def test_an_interface_that_is_not_there_is_told_in_our_words() -> None:
    assert ray_probe.trouble_with("auto", "nosuch0").startswith("The interface nosuch0 (`engine.interface`)")


class Group:
    """Seats whose actors run until they are given back."""

    def __init__(self) -> None:
        self.given_back = threading.Event()

    def give_back(self) -> None:
        self.given_back.set()


class RayError(Exception):
    """As Ray's own."""


class Enough(Exception):
    """The group has been asked for anew."""


@pytest.mark.parametrize("met_before", [True, False])
def test_a_rank_that_does_not_come_is_waited_for_by_whoever_had_met(
    met_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, facts, asked = Group(), Facts("there", "127.0.0.1", {}, "", True), list[str]()
    ray, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")

    def get(running: object) -> None:
        group.given_back.wait()
        raise RayError("its seat is gone")

    def met(*_: object) -> ray_ranks.Met:
        asked.append("met")
        if len(asked) > 1:
            raise Enough
        handle = SimpleNamespace(run=SimpleNamespace(remote=lambda orders: "running"))
        return ray_ranks.Met(group, facts, [ray_ranks.Actor(1, handle, facts)])  # type: ignore[arg-type]

    ray.get, exceptions.RayError = get, RayError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    monkeypatch.setattr(ray_ranks, "_met", met)
    monkeypatch.setattr(ray_ranks, "_end", lambda why: asked.append(f"ended: {why}"))
    monkeypatch.setattr(ray_ranks, "MEET_SECONDS", 0.2)
    monkeypatch.setattr(ray_ranks, "RETRY_SECONDS", 0.2)
    engine = EngineConfig(mesh="tp=2", ray="auto", threads=1)
    plan = ServerPlan(Config(engine=engine, data_dir=str(tmp_path)), {"tiny": str(tmp_path)})
    plan.run_folder.mkdir()
    if met_before:
        (plan.run_folder / f"ray-{plan.nonce}-0-tiny").touch()
    with pytest.raises(Enough if met_before else ServerError):
        ray_ranks.first_place(plan, "", "tiny", 0, Afar())
    assert group.given_back.is_set()
    assert asked == ["met"] * (1 + met_before), "the ranks that were given up do not end this process"
