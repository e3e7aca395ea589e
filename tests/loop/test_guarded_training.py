"""Guards amid a training: an alarm stops it where it is, and what was good last goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.loop.assembly import asked_again
from loreloop.learn.loop.config import Training
from loreloop.learn.loop.guarding import Guards
from loreloop.learn.loop.state import LoopFolder, State
from loreloop.learn.loop.training import Made, Shop, trained
from loreloop.learn.loop.watching import StoppedByGuards, TrainingWatch
from loreloop.learn.plan import Moment
from loreloop.learn.rendering import renderer_of
from tests.loop.feeds import Feeds
from tests.loop.test_course import steps, verdicts
from tests.loop.test_guarded_cycle import Guarded
from tests.loop.test_whole_cycle import course_of, deploy, loaded
from tests.loop.world import Died, World

# The SDK leaves its own background tasks to the garbage collector, and complains of its next version.
pytestmark = pytest.mark.filterwarnings("ignore")


class Looked:
    """Looks at weights, and finds the n-th ones bad; 0: none."""

    def __init__(self, bad: int = 0) -> None:
        self.bad, self.paths = bad, list[str]()

    async def __call__(self, path: str) -> str:
        self.paths.append(path)
        return "golden right fell from 0.9 to 0.2" if len(self.paths) == self.bad else ""


def lines(folder: Path, *methods: str) -> Path:
    for method in methods:
        ask = [{"role": "user", "content": "what is 2?"}]
        told = {"sft": {"messages": [*ask, {"role": "assistant", "content": "two"}]}}
        told["kto"] = {"prompt": ask, "completion": [{"role": "assistant", "content": "two"}], "label": True}
        (folder / f"{method}.jsonl").write_text((json.dumps(told[method]) + "\n") * 4)
    return folder


def train(
    server: RunningServer, folder: Path, look: Looked, methods: tuple[str, ...] = ("sft",), epochs: int = 3
) -> Made | None:
    """By default twelve steps of each method, with a saved state behind every fourth and behind the tenth."""
    texts = server.data / "models" / "tiny"
    training = Training(methods=methods, rank=4, learning_rate=1e-3, epochs=epochs, batch_size=1)  # type: ignore[arg-type]
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
        shop = Shop(service, renderer_of(texts), texts, "tiny", training, look=look)
        return asyncio.run(trained(shop, folder, None, folder.name))


def n_steps(folder: Path, method: str = "sft") -> int:
    return len((folder / method / "metrics.jsonl").read_text().splitlines())


def sampled(server: RunningServer, path: str) -> int:
    """How many tokens weights give, which shows that they are there."""
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
        sampler = service.create_sampling_client(model_path=path).result()
        asked = sampler.sample(tinker.ModelInput.from_ints([1, 2]), 1, tinker.SamplingParams(max_tokens=3))
        return len(asked.result().sequences[0].tokens)


def test_an_alarm_stops_the_training_and_what_was_good_last_goes_on(server: RunningServer, tmp_path: Path) -> None:
    folder, look = lines(tmp_path, "sft", "kto"), Looked(bad=2)
    made = train(server, folder, look, ("sft", "kto"))
    assert made is not None
    assert made.path == look.paths[0] != look.paths[1]
    assert made.alarm == "The guards stopped the training at step 8 of 12: golden right fell from 0.9 to 0.2."
    assert (n_steps(folder), (folder / "kto").exists()) == (8, False)
    assert sampled(server, made.path) > 0
    # Whoever comes back to it, as after a death, trains no further.
    assert train(server, folder, look, ("sft", "kto")) == made
    assert (n_steps(folder), len(look.paths)) == (8, 2)


def test_a_training_of_which_nothing_was_good_has_no_candidate(server: RunningServer, tmp_path: Path) -> None:
    folder = lines(tmp_path, "sft")
    with pytest.raises(StoppedByGuards, match="stopped the training at step 4 of 12"):
        train(server, folder, Looked(bad=1))
    assert n_steps(folder) == 4


def test_what_a_method_before_has_made_is_good(server: RunningServer, tmp_path: Path) -> None:
    folder, look = lines(tmp_path, "sft", "kto"), Looked(bad=5)
    made = train(server, folder, look, ("sft", "kto"))
    assert made is not None
    assert "sft-step-000012" in made.path
    assert "at step 4 of 12" in made.alarm
    assert n_steps(folder, "kto") == 4


def test_without_an_alarm_the_training_comes_to_its_end(server: RunningServer, tmp_path: Path) -> None:
    folder, look = lines(tmp_path, "sft"), Looked()
    made = train(server, folder, look)
    assert made is not None
    assert (n_steps(folder), len(look.paths), made.alarm) == (12, 4, "")


def test_a_run_that_is_gone_on_with_by_another_plan_begins_anew(server: RunningServer, tmp_path: Path) -> None:
    folder = lines(tmp_path, "sft")
    with pytest.raises(StoppedByGuards):
        train(server, folder, Looked(bad=1))
    assert n_steps(folder) == 4
    made = train(server, folder, Looked(), epochs=2)
    assert made is not None
    assert (n_steps(folder), made.alarm) == (8, "")
    assert train(server, folder, Looked(), epochs=2) == made, "by the same plan nothing is done again"
    shorter = train(server, folder, Looked(), epochs=1)
    assert shorter is not None
    assert n_steps(folder) == 4
    assert sampled(server, shorter.path) > 0


@pytest.mark.parametrize("saved", [1, 4])
def test_a_death_between_a_saved_state_and_the_look_at_it_skips_no_look(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int
) -> None:
    folder, look = lines(tmp_path, "sft"), Looked(bad=saved)
    see = TrainingWatch.see

    async def dies(watch: TrainingWatch, clients: Clients, at: Moment) -> None:
        if len(look.paths) == saved - 1:
            raise Died
        await see(watch, clients, at)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingWatch, "see", dies)
        with pytest.raises(Died):
            train(server, folder, look)
    steps_done = n_steps(folder)
    if saved == 1:
        with pytest.raises(StoppedByGuards, match="at step 4 of 12"):
            train(server, folder, look)
    else:
        made = train(server, folder, look)
        assert made is not None
        assert "at step 12 of 12" in made.alarm, "the last state is looked at too, and no later step would"
    assert (len(look.paths), n_steps(folder)) == (saved, steps_done)


@pytest.mark.parametrize("others_like_it", [True, False])
def test_guards_see_a_fooled_reward_amid_its_training(tmp_path: Path, others_like_it: bool) -> None:
    world = Guarded(folder=tmp_path)
    world.clique(others_like_it)

    async def looks() -> list[str]:
        await world.learn_reward(world.feeds.turns, world.feeds.feedback)
        look = world.guards.watch("tiny", asked_again(world.feeds.turns[:12]))
        few = world.guards.watch("tiny", asked_again(world.feeds.turns[:9]))
        return [await look("tinker://one"), await few("tinker://one")]

    alarm, of_few = asyncio.run(looks())
    assert of_few == "", "a few prompts stop nobody"
    assert ("a second reward, which nothing optimises, fell" in alarm) is not others_like_it


def test_what_the_guards_have_stopped_is_a_decision_and_its_good_part_a_candidate(tmp_path: Path) -> None:
    world = World()
    world.corrected(5)
    course = world.course(tmp_path)

    async def stopped(*_: object) -> Made:
        return Made("tinker://good/sampler_weights/a", "tinker://good/weights/a", "The guards stopped the training.")

    course.work.__dict__["train"] = stopped
    steps(course)
    first, second = course.folder.decisions()
    assert (first.stage, first.verdict, first.candidate) == ("stopped", "stopped", "tinker://good/sampler_weights/a")
    assert first.sentence.startswith("The guards stopped the training.")
    assert (second.stage, second.verdict) == ("gate", "passed")
    assert world.deployed.canary == "tinker://good/sampler_weights/a"


def test_a_training_that_was_stopped_and_then_is_refused_has_both_decisions(tmp_path: Path, monkeypatch) -> None:
    world = World()
    world.corrected(5)
    course = world.course(tmp_path)
    made = Made("tinker://good/sampler_weights/a", "tinker://good/weights/a", "The guards stopped the training.")

    async def stopped(*_: object) -> Made:
        return made

    def dies(_: LoopFolder, state: State) -> None:
        if state.stage == "gate":
            raise Died
        save(course.folder, state)

    course.work.__dict__["train"], save = stopped, LoopFolder.save
    with monkeypatch.context() as patched:
        patched.setattr(LoopFolder, "save", dies)
        with pytest.raises(Died):
            steps(course)
    world.refuses = "its weights are gone"
    steps(world.course(tmp_path))
    first, second = course.folder.decisions()
    assert (first.verdict, second.verdict) == ("stopped", "void")
    assert "its weights are gone" in second.sentence


def test_a_cycle_whose_training_was_never_good_ends_with_the_last_good_revision(tmp_path: Path) -> None:
    world = World()
    world.corrected(5)
    course = world.course(tmp_path)

    async def stopped(*_: object) -> Made:
        raise StoppedByGuards("The guards stopped the training at step 10 of 60: golden right fell.")

    course.work.__dict__["train"] = stopped
    steps(course)
    (decision,) = course.folder.decisions()
    assert (decision.stage, decision.verdict) == ("training", "void")
    assert decision.sentence == "The guards stopped the training at step 10 of 60: golden right fell."
    assert (world.deployed.target, course.folder.load().champion.target) == ("tiny", "tiny")


@pytest.mark.parametrize("from_start", [False, True])
def test_a_loop_whose_reward_learns_has_its_trainings_watched_that_begin_with_the_champion(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_start: bool
) -> None:
    deploy(server)
    feeds, look, asked = Feeds(), Looked(bad=2), list[str]()
    for n in range(12):
        turn = feeds.turn(f"what is {n}?", "fox" if n % 2 else "the lazy dog", prompt=(1, 5), tokens=(7,))
        feeds.say(turn.id, "thumb", value=bool(n % 2), who=f"{n}")

    def watch(self: Guards, champion: str, prompts: list[object]) -> Looked:
        asked.append(f"{champion} {len(prompts)}")
        return look

    tell, told_of = LoopFolder.tell, list[str]()

    def heard(self: LoopFolder, sentence: str, **numbers: object) -> None:
        told_of.append(sentence)
        tell(self, sentence, **numbers)

    monkeypatch.setattr(Guards, "watch", watch)
    monkeypatch.setattr(LoopFolder, "tell", heard)
    plan = {"methods": ["kto"], "rank": 4, "batch_size": 4, "epochs": 4, "least_examples": 2}

    async def go() -> None:
        told = loaded(server, tmp_path, training=plan, reward={"kind": "linear"})
        async with course_of(server, feeds, told, monkeypatch) as course:
            course.folder.retrain(from_start)
            for _ in range(3):
                assert await course.step()

    asyncio.run(go())
    folder = LoopFolder(tmp_path / "loop.state")
    state = folder.load()
    assert state is not None
    assert state.candidate is not None
    assert (state.stage, state.from_start) == ("gate", from_start)
    assert any("No guards look at it before the gate" in one for one in told_of) == from_start
    if from_start:
        assert (asked, verdicts(folder.path)) == ([], [])
        return
    assert (asked, verdicts(folder.path)) == (["tiny 12"], ["stopped"])
    assert state.candidate.target == look.paths[0]
