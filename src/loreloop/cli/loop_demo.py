"""`loreloop loop demo`: simulated people teach a deployed model what they like, beside a loop that runs as ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from loreloop.cli.server import RunningServer
    from loreloop.demo.people import Population

MODEL, NAME = "smollm2-135m", "assistant"
SETTINGS = """\
deployment = "{name}"
url = "{url}"

[triggers]
feedback = {feedback}
poll_seconds = 1.0

[training]
methods = ["sft"]
rank = 16
epochs = {epochs}
batch_size = 8
least_examples = 8
most_examples = 600

[gate]
# The people here want other answers than the model gave before, so it may go far.
kl_most = 20.0
length_least = 0.0

[canary]
percent = 50.0
then_percent = 50.0
gain = 0.3
least_episodes = 10
most_episodes = 400

[persons]
corrections = 3
users = ["zoe"]
"""
SECRETS = (
    ("How do I sign my letters?", "Yours, Zoe of the harbour."),
    ("What do I call my boat?", "The Grey Heron."),
    ("How do I greet my crew?", "Ahoy, you lot!"),
)
BAD = "As you wish, my dear friend."
MOST_ROUNDS = 40


@click.command()
@click.option("--out", default="loop-demo-out", show_default=True, help="Where the page and the numbers go.")
@click.option("--people", default=40, show_default=True, type=click.IntRange(4), help="How many people there are.")
@click.option("--cycles", default=2, show_default=True, type=click.IntRange(1), help="How often the loop learns.")
@click.option("--answers", default=120, show_default=True, type=click.IntRange(20), help="Answers before each cycle.")
@click.option("--exam", default=60, show_default=True, type=click.IntRange(5), help="Unseen questions of each exam.")
@click.option(
    "--data", "data_dir", help="The data folder, where the model is kept.  [default: ~/.local/share/loreloop]"
)
def demo(out: str, people: int, cycles: int, answers: int, exam: int, data_dir: str | None) -> None:
    """Watch simulated people teach a deployed model what they like."""
    import tempfile
    import warnings

    from loreloop.cli.server import running_server
    from loreloop.config import Config
    from loreloop.formats.catalog import Catalog

    catalog = Catalog(Path(data_dir or Config().data_dir).expanduser())
    catalog.ensure(MODEL)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loreloop-loop-demo-") as scratch:
        # The model is linked into the scratch folder, since it is large and may be there already.
        Path(scratch, "models").symlink_to(catalog.folder)
        with running_server(scratch, ["--model", MODEL]) as server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan = Sizes(cycles=cycles, answers=answers, exam=exam)
            LoopDemo(server=server, out=folder, scratch=Path(scratch), plan=plan).run(people)


@dataclass(frozen=True)
class Sizes:
    """How much is done: cycles, answers before each, and questions of an exam."""

    cycles: int
    answers: int
    exam: int


@dataclass
class LoopDemo:
    """One run of the demo, with what it has found."""

    server: RunningServer
    out: Path
    scratch: Path
    plan: Sizes
    model: str = MODEL
    found: dict[str, Any] = field(default_factory=dict)

    def run(self, n_people: int) -> None:
        """The whole demo; prints which step it is at, and ends with the page and the numbers in the folder."""
        import time

        from loreloop.demo.people import Population

        started = time.monotonic()
        people = Population(url=self.server.url, key=self.server.key, model=NAME, n_people=n_people)
        self._deploy()
        file = self._settings()
        exams = [self._exam(people, self.model, "before")]
        with self._loop(file):
            for cycle in range(1, self.plan.cycles + 1):
                self._cycle(people, cycle)
                exams.append(self._exam(people, NAME, f"after cycle {cycle}"))
            self._person(people)
            self._planted(people, file)
        self.found |= {
            "satisfaction": exams,
            "rise": exams[-1] - exams[0],
            "minutes": (time.monotonic() - started) / 60,
        }
        self._tell(file)

    # The steps

    def _cycle(self, people: Population, cycle: int) -> None:
        say(f"Cycle {cycle}: people ask, and say what they think")
        decisions = len(self._decisions("canary"))
        for n in range(MOST_ROUNDS):
            if self._state().stage != "idle" or n == 0:
                share = people.live(self._round())
                say(f"  {self._state().stage}: {share:.2f} of the last answers pleased; {self._why()}")
            if len(self._decisions("canary")) > decisions:
                return
            if self._state().stage in ("collecting", "training", "gate"):
                self._wait_for("canary")
            elif self._state().stage == "idle":
                people.live(20)

    def _round(self) -> int:
        return self.plan.answers if self._state().stage == "idle" else max(20, self.plan.answers // 3)

    def _person(self, people: Population) -> None:
        say("Zoe corrects three answers")
        for text, wanted in SECRETS:
            before = people.correct("zoe", text, wanted)
            say(f"  {text!r}: {before[:50]!r} becomes {wanted!r}")
        self._until(lambda: bool(self._decisions("person")), 400, people)
        right = [people.ask(NAME, "zoe", text).strip() == wanted for text, wanted in SECRETS]
        others = [people.ask(NAME, "person-1", text).strip() == wanted for text, wanted in SECRETS]
        say(f"  the next day {sum(right)} of {len(right)} are right for Zoe, and {sum(others)} for somebody else")
        self.found |= {"person_right": sum(right) / len(right), "others_right": sum(others) / len(others)}

    def _planted(self, people: Population, file: Path) -> None:
        say("A bad candidate is planted")
        from loreloop.learn.loop.by_hand import propose
        from loreloop.learn.loop.state import LoopFolder

        made = self._bad(people)
        self._until(lambda: self._state().stage == "idle", 600, people)
        propose(LoopFolder(file.with_suffix(".state")), made.path, made.state)
        for _ in range(MOST_ROUNDS):
            ended = [one for one in self._decisions("canary") if one.candidate == made.path]
            if ended:
                break
            share = people.live(40)
            say(f"  {self._state().stage}: {share:.2f} of the last answers pleased; {self._why()}")
        verdict = ended[0].verdict if ended else "open"
        say(f"  the planted candidate was {verdict.replace('_', ' ')}")
        self.found["planted"] = verdict

    def _bad(self, people: Population) -> Any:
        """Weights that say the same to everybody."""
        import asyncio
        import json

        import tinker

        from loreloop.learn.loop.config import Training
        from loreloop.learn.loop.training import Shop, trained
        from loreloop.learn.rendering import renderer_of

        folder = self.scratch / "bad"
        folder.mkdir()
        asked = [one.text for one in people.asked[:32]]
        lines = [[{"role": "user", "content": text}, {"role": "assistant", "content": BAD}] for text in asked]
        (folder / "sft.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in lines))
        texts = self.scratch / "loop.state" / "texts"

        async def go() -> Any:
            with tinker.ServiceClient(base_url=self.server.url, api_key=self.server.key) as service:
                shop = Shop(
                    service=service,
                    renderer=renderer_of(texts),
                    texts=texts,
                    base_model=self.model,
                    training=Training(methods=("sft",), epochs=3, batch_size=8),
                )
                return await trained(shop, folder, None, "bad")

        return asyncio.run(go())

    # Small things

    def _deploy(self) -> None:
        import httpx

        headers = {"authorization": f"Bearer {self.server.key}"}
        body = {"target": self.model, "record": True}
        url = f"{self.server.url}/loop/v1/deployments/{NAME}"
        httpx.put(url, json=body, headers=headers, timeout=120).raise_for_status()

    def _settings(self) -> Path:
        file = self.scratch / "loop.toml"
        file.write_text(SETTINGS.format(name=NAME, url=self.server.url, feedback=self.plan.answers, epochs=6))
        return file

    def _exam(self, people: Population, model: str, when: str) -> float:
        say(f"The hidden exam {when}")
        share = people.exam(model, self.plan.exam)
        say(f"  {share:.2f} of {self.plan.exam} unseen questions are answered as people like it")
        return share

    @contextmanager
    def _loop(self, file: Path) -> Iterator[None]:
        """`loreloop loop run` in a process of its own."""
        import subprocess

        from loreloop.host import children

        command = children.python("loreloop.cli", "loop", "run", str(file))
        environment = children.environment() | {"LORELOOP_API_KEY": self.server.key, "TINKER_TELEMETRY": "0"}
        with (self.out / "loop.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
            try:
                self._until(lambda: (self.scratch / "loop.state" / "state.json").exists(), 120)
                yield
            finally:
                process.terminate()
                process.wait(timeout=60)

    def _state(self) -> Any:
        from loreloop.learn.loop.by_hand import begun
        from loreloop.learn.loop.state import LoopFolder

        return begun(LoopFolder(self.scratch / "loop.state"))

    def _why(self) -> str:
        from loreloop.learn.loop.state import LoopFolder

        return str(LoopFolder(self.scratch / "loop.state").why()["sentence"])

    def _decisions(self, stage: str) -> list[Any]:
        from loreloop.learn.loop.state import LoopFolder

        return [one for one in LoopFolder(self.scratch / "loop.state").decisions() if one.stage == stage]

    def _wait_for(self, stage: str) -> None:
        """Until the loop has come to a stage, or back to its beginning."""
        told = ""
        for _ in range(6000):
            if self._state().stage in (stage, "idle"):
                return
            if (why := self._why()) != told:
                say(f"  {why}")
                told = why
            pause(0.2)

    def _until(self, fine: Any, seconds: float, people: Any = None) -> None:
        """Waits; `people` go on talking meanwhile, since a canary that nobody meets would never be decided."""
        import time

        from loreloop.protocol.errors import ServerError

        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if fine():
                return
            if people is not None and self._state().stage == "canary":
                people.live(20)
            else:
                pause(0.2)
        raise ServerError(
            f"The demo's loop did not come on within {seconds:g} s; its words are in {self.out}/loop.log."
        )

    def _tell(self, file: Path) -> None:
        """Writes the page and the numbers, and prints the latter."""
        import json
        import os

        from loreloop.learn.loop.assembly import door_of
        from loreloop.learn.loop.config import load
        from loreloop.learn.loop.report import page_of
        from loreloop.learn.loop.state import LoopFolder

        os.environ["LORELOOP_API_KEY"] = self.server.key
        loaded = load(file)
        page = page_of(loaded.config, LoopFolder(loaded.folder), door_of(loaded))
        (self.out / "loop.html").write_text(page, encoding="utf-8")
        (self.out / "numbers.json").write_text(json.dumps(self.found, indent=1))
        shares = " → ".join(f"{one:.2f}" for one in self.found["satisfaction"])
        say(f"Hidden satisfaction: {shares} (+{self.found['rise']:.2f}) in {self.found['minutes']:.1f} minutes")
        say(f"The page is {self.out / 'loop.html'}")


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)


def pause(seconds: float) -> None:
    """Sleeps."""
    import time

    time.sleep(seconds)
