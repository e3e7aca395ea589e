"""The page of a loop: satisfaction by revision over time, guards and decisions, and nothing from anywhere else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from loreloop.learn.loop import report
from loreloop.protocol.episodes import Person
from loreloop.protocol.feedback import Metric
from tests.loop.test_course import steps, to_canary
from tests.loop.world import World

FETCHING = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "use", "image"}


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes = list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def reported(folder: Path) -> str:
    world = World()
    course = to_canary(world, folder)
    for n in range(80):
        arm, who = ("main", "canary")[n % 2], Person("key", f"user {n}")
        revision = course.folder.load().candidate.target if arm == "canary" else None
        more = {"arm": arm, "version": world.deployed.version, "person": who, "revision": revision}
        turn = world.feeds.turn("hello <b>", "hi", **more)
        world.feeds.say(turn.id, "thumb", value=arm == "canary", who=f"{n}")
    steps(course)
    return report.page_of(course.config, course.folder, world)


def test_a_report_needs_no_network(tmp_path: Path) -> None:
    page = reported(tmp_path)
    found = Tags(page)
    assert not FETCHING & {*found.tags}
    assert not {"src", "href", "srcset", "action", "style", "xlink:href"} & {*found.attributes}
    assert not re.search(r"https?://|url\(|@import", page)


def test_a_report_shows_satisfaction_by_revision_and_every_decision(tmp_path: Path) -> None:
    page = reported(tmp_path)
    assert page.count("<polyline") == 2, "champion and candidate are a line each"
    assert "candidate 1" in page
    assert "<td>1.00</td>" in page
    assert "users are more content with the candidate" in page
    assert "<h2>Guards</h2>" in page


def test_a_metric_of_which_less_is_better_counts_the_other_way_round(tmp_path: Path) -> None:
    world = World()
    course = world.course(tmp_path, canary={"metrics": ["complaint"]})
    world.feeds.say(world.feeds.turn("hello", "hi").id, "complaint", value=True)
    metrics = {"complaint": Metric("complaint", "boolean", optimize="min")}
    assert "<td>0.00</td>" in report.page_of(course.config, course.folder, world, metrics)
