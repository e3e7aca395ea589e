"""`loreloop loop demo`: simulated people teach a deployed model what they like, beside a loop that runs as ever."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from loreloop.cli.loop_beside import LoopBeside
    from loreloop.cli.server import RunningServer
    from loreloop.demo.loop_goals import Found, Goals
    from loreloop.demo.people import Population
    from loreloop.learn.loop.door import Door
    from loreloop.learn.loop.state import Decision, Revision

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
general = 0  # what these people teach is the form of all answers
liked = 1
batch_size = 8
least_examples = 8
most_examples = 600

[gate]
# The people here want other answers than the model gave before, so it may go far; and the planted candidate, who says
# the same to everybody, is to meet people, so that they are who turn it away.
kl_most = 200.0
length_least = 0.0

[canary]
percent = 50.0
then_percent = 50.0
gain = 0.3
least_episodes = 10
most_episodes = {most_episodes}

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
EPOCHS = 6  # of a cycle's corrections
ROUND = 40  # answers between two looks at a canary
# How long the demo waits for a candidate, for a canary's decision, and for one person's weights.
TRAINING_SECONDS, CANARY_SECONDS, PERSON_SECONDS = 1200.0, 1800.0, 900.0


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
    from loreloop.demo.loop_goals import Goals
    from loreloop.formats.adding import ensure
    from loreloop.formats.catalog import Catalog

    catalog = Catalog(Path(data_dir or Config().data_dir).expanduser())
    ensure(catalog, MODEL)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loreloop-loop-demo-") as scratch:
        # The model is linked into the scratch folder, since it is large and may be there already.
        Path(scratch, "models").symlink_to(catalog.folder)
        with running_server(scratch, ["--model", MODEL]) as server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan = Sizes(cycles=cycles, answers=answers, exam=exam)
            LoopDemo(server=server, out=folder, scratch=Path(scratch), plan=plan).run(people, Goals())


@dataclass(frozen=True)
class Sizes:
    """How much is done: cycles, answers before each, questions of an exam, and the most episodes of a canary."""

    cycles: int
    answers: int
    exam: int
    most_episodes: int = 400


@dataclass
class LoopDemo:
    """One run of the demo, with what it has found."""

    server: RunningServer
    out: Path
    scratch: Path
    plan: Sizes
    model: str = MODEL
    exams: list[tuple[str, float]] = field(default_factory=list)

    def run(self, n_people: int, goals: Goals) -> Found:
        """The whole demo; prints which step it is at, and ends with the page and the numbers in the folder. ServerError
        where it has not shown what it is to show."""
        import time

        from loreloop.cli.loop_beside import LoopBeside
        from loreloop.demo.loop_goals import Found
        from loreloop.demo.people import Population
        from loreloop.protocol.errors import ServerError

        started = time.monotonic()
        people = Population(url=self.server.url, key=self.server.key, model=NAME, n_people=n_people)
        self._deploy()
        beside = LoopBeside(file=self._settings(), log=self.out / "loop.log", key=self.server.key)
        self._exam(people, self.model, "before")
        with beside.running():
            verdicts, planted = self._cycles(people, beside)
            own, right, others = self._next_day(people, beside)
        found = Found(
            satisfaction=tuple(share for _, share in self.exams),
            weights=tuple(weights for weights, _ in self.exams),
            cycles=tuple(verdicts),
            planted=planted,
            person_weights=own,
            person_right=right,
            others_right=others,
            minutes=(time.monotonic() - started) / 60,
        )
        self._tell(beside, found)
        if missed := goals.missed(found):
            raise ServerError(
                f"The demo has not shown what it is to show: {'; '.join(missed)}. Its numbers are in "
                f"{self.out / 'numbers.json'}."
            )
        return found

    # The steps

    def _cycles(self, people: Population, beside: LoopBeside) -> tuple[list[str], str]:
        """All cycles, with an exam behind each; their verdicts, and that on the planted candidate."""
        bad, verdicts, planted, before = self._bad(people, beside), list[str](), "", 0
        for cycle in range(1, self.plan.cycles + 1):
            say(f"Cycle {cycle}: people ask, and say what they think")
            say(f"  {people.live(self.plan.answers):.2f} of the answers pleased")
            self._learned(beside, before)
            # While people meet the candidate, whatever else is asked of the loop waits for its turn.
            if cycle == 1:
                say("  A bad candidate is planted behind this one")
                beside.folder.propose(bad)
            if cycle == self.plan.cycles:
                self._corrected(people, beside)
            verdicts.append(self._decided(people, beside, before).verdict)
            if cycle == 1:
                say("The planted candidate has its turn")
                before += 1
                tried = self._decided(people, beside, before)
                planted = tried.verdict if tried.candidate == bad.target else "not tried"
            before += 1
            # By the path of the weights, so that neither a canary nor a person's own weights sit the exam, and no turn
            # of it is recorded.
            self._exam(people, beside.state().champion.target, f"after cycle {cycle}")
        return verdicts, planted

    def _learned(self, beside: LoopBeside, before: int) -> None:
        """Until a candidate meets people, or the cycle has ended without one."""
        told = ""

        def is_there() -> bool:
            nonlocal told
            if (why := beside.why()) != told:
                say(f"  {why}")
                told = why
            return beside.state().stage == "canary" or len(beside.ended()) > before

        beside.until(is_there, TRAINING_SECONDS)

    def _decided(self, people: Population, beside: LoopBeside, before: int) -> Decision:
        """The decision that ends the cycle, once the deployment stands as it says."""
        beside.until(lambda: len(beside.ended()) > before, CANARY_SECONDS, lambda: self._round(people, beside))
        decision = beside.ended()[before]
        # The decision is written first, then the deployment moves, then the state.
        beside.until(
            lambda: (state := beside.state()).cycle > decision.cycle or state.stage == "idle", TRAINING_SECONDS
        )
        say(f"  {decision.verdict.replace('_', ' ')}: {decision.sentence}")
        return decision

    def _round(self, people: Population, beside: LoopBeside) -> None:
        share = people.live(ROUND)
        say(f"  {beside.state().stage}: {share:.2f} of the last answers pleased; {beside.why()}")

    def _corrected(self, people: Population, beside: LoopBeside) -> None:
        """Zoe corrects three answers, and gets weights of her own while the loop has a candidate in hand."""
        say("  Zoe corrects three answers")
        for text, wanted in SECRETS:
            before = people.correct("zoe", text, wanted)
            say(f"    {text!r}: {before[:50]!r} becomes {wanted!r}")
        beside.until((beside.folder.path / "persons.json").exists, PERSON_SECONDS)
        say(f"    {[one for one in beside.folder.decisions() if one.stage == 'person'][-1].sentence}")

    def _next_day(self, people: Population, beside: LoopBeside) -> tuple[str | None, float, float]:
        """Zoe's weights, and the shares of her corrections that come back to her and to somebody else."""
        own = self._door().person_target("zoe")
        right = [people.ask(NAME, "zoe", text).strip() == wanted for text, wanted in SECRETS]
        others = [people.ask(NAME, "person-1", text).strip() == wanted for text, wanted in SECRETS]
        say(f"The next day {sum(right)} of {len(right)} are right for Zoe, and {sum(others)} for somebody else")
        return own, sum(right) / len(right), sum(others) / len(others)

    # Small things

    def _deploy(self) -> None:
        import httpx

        headers = {"authorization": f"Bearer {self.server.key}"}
        body = {"target": self.model, "record": True}
        url = f"{self.server.url}/loop/v1/deployments/{NAME}"
        httpx.put(url, json=body, headers=headers, timeout=120).raise_for_status()

    def _settings(self) -> Path:
        file = self.scratch / "loop.toml"
        plan = self.plan
        told = {"feedback": plan.answers, "epochs": EPOCHS, "most_episodes": plan.most_episodes}
        file.write_text(SETTINGS.format(name=NAME, url=self.server.url, **told))
        return file

    def _exam(self, people: Population, weights: str, when: str) -> None:
        say(f"The hidden exam {when}")
        share = people.exam(weights, self.plan.exam)
        say(f"  {share:.2f} of {self.plan.exam} unseen questions are answered as people like it")
        self.exams.append((weights, share))

    def _bad(self, people: Population, beside: LoopBeside) -> Revision:
        """Weights that say the same to everybody."""
        import asyncio
        import json

        import tinker

        from loreloop.learn.loop.config import Training
        from loreloop.learn.loop.state import Revision
        from loreloop.learn.loop.training import Made, Shop, trained
        from loreloop.learn.rendering import renderer_of

        folder, texts = self.scratch / "bad", beside.folder.path / "texts"
        folder.mkdir()
        asked = [one.text for one in people.asked[:32]]
        lines = [[{"role": "user", "content": text}, {"role": "assistant", "content": BAD}] for text in asked]
        (folder / "sft.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in lines))

        async def go() -> Made | None:
            with tinker.ServiceClient(base_url=self.server.url, api_key=self.server.key) as service:
                shop = Shop(
                    service=service,
                    renderer=renderer_of(texts),
                    texts=texts,
                    base_model=self.model,
                    training=Training(methods=("sft",), epochs=3, batch_size=8),
                )
                return await trained(shop, folder, None, "bad")

        made = asyncio.run(go())
        assert made is not None, "the folder holds a file"
        return Revision(target=made.path, state=made.state)

    def _tell(self, beside: LoopBeside, found: Found) -> None:
        """Writes the page and the numbers, and prints the latter."""
        import json
        from dataclasses import asdict

        from loreloop.learn.loop.config import load
        from loreloop.learn.loop.report import page_of

        loaded = load(beside.file)
        page = page_of(loaded.config, beside.folder, self._door())
        (self.out / "loop.html").write_text(page, encoding="utf-8")
        (self.out / "numbers.json").write_text(json.dumps(asdict(found) | {"rise": found.rise}, indent=1))
        shares = " → ".join(f"{one:.2f}" for one in found.satisfaction)
        say(f"Hidden satisfaction: {shares} ({found.rise:+.2f}) in {found.minutes:.1f} minutes")
        say(f"The page is {self.out / 'loop.html'}")

    def _door(self) -> Door:
        from loreloop.learn.loop.door import Door

        return Door.to(self.server.url, self.server.key, NAME)


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)
