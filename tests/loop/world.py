"""A world of a loop without a server and without training: a deployment in memory, and a death at any moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from loreloop.learn.loop import cycle_files, persons_kept, state
from loreloop.learn.loop.config import config_of
from loreloop.learn.loop.cycle import Course, Work
from loreloop.learn.loop.door import Deployed
from loreloop.learn.loop.gate import Gated
from loreloop.learn.loop.persons import PersonCourse
from loreloop.learn.loop.state import LoopFolder
from loreloop.learn.loop.training import Made
from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.errors import BadRequest, Conflict
from loreloop.protocol.feedback import Feedback
from loreloop.protocol.loop_rest import LoopStanding
from tests.loop.feeds import Feeds


class Died(BaseException):
    """The process is gone; nothing may catch this."""


@dataclass
class Fate:
    """Dies at the n-th moment at which something is about to be done, or has just been done; 0: never."""

    at: int = 0
    n: int = 0

    def moment(self) -> None:
        self.n += 1
        if self.n == self.at:
            raise Died


@dataclass
class World:
    """The server's side, which outlives the loop's process."""

    feeds: Feeds = field(default_factory=Feeds)
    deployed: Deployed = field(default_factory=lambda: Deployed("tiny", version=1))
    marked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    began: list[str | None] = field(default_factory=list)
    fate: Fate = field(default_factory=Fate)
    trained: list[dict[str, Any]] = field(default_factory=list)
    refuses: str = ""  # what the server has against every training
    stands: list[LoopStanding] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # limits that every candidate breaks

    def deployment(self) -> Deployed:
        return self.deployed

    def deploy(self, target: str, canary: str | None = None, percent: float = 0.0, expected: int | None = None) -> None:
        self.fate.moment()
        if (self.deployed.target, self.deployed.canary, self.deployed.canary_percent) != (target, canary, percent):
            if expected not in (None, self.deployed.version):
                raise Conflict("The deployment is at another version.")
            self.deployed = Deployed(target, canary, percent, self.deployed.version + 1)
        self.fate.moment()

    def turns(self, after: int = 0) -> Iterable[Turn]:
        return [one for one in self.feeds.turns if one.number > after]

    def feedback(self, after: int = 0) -> Iterable[Feedback]:
        return [one for one in self.feeds.feedback if one.number > after]

    def mark_used(
        self, candidate: str, revision: str | None, turns: Sequence[str], start: str | None = None
    ) -> tuple[str, ...]:
        self.fate.moment()
        self.began.append(start)
        self.marked.append((revision, tuple(turns)))
        self.feeds.turns = [
            replace(one, fate="used", candidate=candidate) if one.id in turns else one for one in self.feeds.turns
        ]
        self.fate.moment()
        known = {one.id for one in self.feeds.turns}
        return tuple(one for one in turns if one not in known)

    def deleted_persons(self) -> frozenset[str]:
        return frozenset(f"{one.key_id}\n{one.user}" for one in self.feeds.deleted)

    def stand(self, standing: LoopStanding) -> None:
        self.stands.append(standing)

    # What a cycle does

    async def train(self, folder: Path, start: str | None, name: str) -> Made | None:
        self.fate.moment()
        lines = {file.stem: file.read_text() for file in folder.glob("*.jsonl")}
        if self.refuses:
            raise BadRequest(self.refuses)
        self.trained.append({"start": start, "name": name, "lines": lines})
        self.fate.moment()
        return Made(f"tinker://{name}/sampler_weights/s", f"tinker://{name}/weights/s") if lines else None

    async def look(self, sides: Any, turns: Sequence[Turn], prompts: Sequence[Turn]) -> Gated:
        self.fate.moment()
        return Gated({"kl": 0.1}, list(self.broken))

    async def learn_reward(self, turns: Sequence[Turn], statements: Sequence[Feedback]) -> str:
        return ""

    def course(
        self, folder: Path, golden: frozenset[str] = frozenset(), now: Callable[[], float] = lambda: 1e9, **more
    ):
        plain = {
            "deployment": "assistant",
            "triggers": {"feedback": 4},
            "training": {"least_examples": 2},
            "canary": {"percent": 10, "least_episodes": 5, "most_episodes": 100, "gain": 0.3},
        }
        work = Work(train=self.train, look=self.look, learn_reward=self.learn_reward, golden=lambda: golden)
        config, loop = config_of(plain | more), LoopFolder(folder)
        persons = PersonCourse(
            rules=config.persons,
            folder=loop,
            server=self,
            train=self.train,
            right=self.right,
            now=now,
            deployment="assistant",
        )
        course = Course(config=config, folder=loop, server=self, work=work, now=now, persons=persons)
        course.begin("tiny")
        return course

    # Persons

    owns: dict[str, str] = field(default_factory=dict)
    share_right: float = 1.0

    def person_target(self, user: str, key_id: str = "") -> str | None:
        return self.owns.get(user)

    def set_person(self, user: str, target: str, key_id: str = "") -> None:
        self.fate.moment()
        self.owns[user] = target
        self.fate.moment()

    def clear_person(self, user: str, key_id: str = "") -> None:
        self.fate.moment()
        self.owns.pop(user, None)
        self.fate.moment()

    async def right(self, target: str, lines: Sequence[Any]) -> float:
        return self.share_right

    # What users do

    def corrected(self, n: int, user: str = "ann", key: str = "key") -> None:
        for k in range(n):
            turn = self.feeds.turn(f"{user} asks {k}", "no", person=Person(key, user))
            self.feeds.say(turn.id, "demonstration", f"yes {k}")

    def voted(self, n: int, candidate: bool, champion: bool) -> None:
        """So many episodes of either arm, all of one mind."""
        for arm, value in (("canary", candidate), ("main", champion)):
            for k in range(n):
                who = Person("key", f"user {k}")
                turn = self.feeds.turn("hello", "hi", arm=arm, version=self.deployed.version, person=who)
                self.feeds.say(turn.id, "thumb", value=value, who=turn.id)


def mortal(world: World, monkeypatch) -> None:
    """Has every write of the loop be a moment at which it may die, before and behind, and a torn line in between."""
    written, appended = state.written, state.appended

    def write(file: Path, content: bytes) -> None:
        world.fate.moment()
        written(file, content)
        world.fate.moment()

    def append(file: Path, line: bytes) -> None:
        world.fate.moment()
        world.fate.n += 1
        if world.fate.n == world.fate.at:
            with file.open("ab") as opened:
                opened.write(line[: len(line) // 2])
            raise Died
        appended(file, line)
        world.fate.moment()

    for module in (state, cycle_files, persons_kept):
        monkeypatch.setattr(module, "written", write)
    monkeypatch.setattr(state, "appended", append)
