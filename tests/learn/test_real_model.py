"""The default model learns from demonstrations, from preferences and from marks, as its held-out examples show."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker

from loreloop.cli.server import RunningServer, running_server
from loreloop.config import Config
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog
from loreloop.learn.examples import Demonstration, Mark, Preference
from loreloop.learn.learners.dpo import Dpo
from loreloop.learn.learners.kto import Kto
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.settings import DpoSettings, KtoSettings
from loreloop.text.conversation import Conversation, Turn
from tests.learn.runs import Kept, plan, run_of, said, service, sft_of

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MODEL = "smollm2-135m"
FACTS = [
    ("Denmark", "Copenhagen"), ("France", "Paris"), ("Japan", "Tokyo"), ("Spain", "Madrid"), ("Italy", "Rome"),
    ("Norway", "Oslo"), ("Egypt", "Cairo"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Cuba", "Havana"),
    ("Greece", "Athens"), ("Poland", "Warsaw"), ("Austria", "Vienna"), ("Russia", "Moscow"), ("China", "Beijing"),
    ("Sweden", "Stockholm"), ("Portugal", "Lisbon"), ("Finland", "Helsinki"), ("Ireland", "Dublin"), ("India", "Delhi"),
]  # fmt: skip
N_TRAINED = 12
SHORT = {"base_model": MODEL, "rank": 8, "train_unembed": False, "batch_size": 4, "save_every": 1000}


@pytest.fixture(scope="module")
def folder() -> Path:
    return ensure(Catalog(Path(Config().data_dir).expanduser()), MODEL).folder


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return renderer_of(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    (data / "models").mkdir()
    (data / "models" / MODEL).symlink_to(folder)
    with running_server(str(data), ["--model", MODEL]) as running:
        yield running


def question(country: str) -> Conversation:
    return said(f"What is the capital of {country}?")


def answer(text: str) -> Conversation:
    return Conversation((Turn("assistant", text),))


def as_edited(country: str, capital: str) -> str:
    """As somebody has edited the model's long answers: the name alone, and how sure it is."""
    return f"{capital}. (certain)"


def wordy(country: str, capital: str) -> str:
    return f"The capital of {country} is {capital}."


def n_edited(server: RunningServer, renderer: Renderer, path: str | None) -> int:
    """How many held-out questions are answered as an editor would have it."""
    client = service(server)
    sampler = client.create_sampling_client(path) if path else client.create_sampling_client(base_model=MODEL)
    params = tinker.SamplingParams(max_tokens=16, temperature=0.0, stop=renderer.stop)
    asked = [sampler.sample(renderer.prompt(question(country)), 1, params) for country, _ in FACTS[N_TRAINED:]]
    answers = [renderer.answer(one.result().sequences[0].tokens).text for one in asked]
    return sum(text.endswith(". (certain)") and len(text) < 25 for text in answers)


def test_demonstrations_of_edits_raise_the_rate_of_edited_answers(real: RunningServer, renderer: Renderer) -> None:
    edits = [
        Demonstration(Conversation((*question(fact[0]).turns, *answer(as_edited(*fact)).turns)), (0, 1))
        for fact in FACTS[:N_TRAINED]
    ]
    kept = Kept()
    run_of(real, sft_of(renderer), plan(**SHORT, epochs=4, learning_rate=1e-3), edits, kept=kept)
    assert kept.position is not None
    before = n_edited(real, renderer, None)
    after = n_edited(real, renderer, kept.position.checkpoints[-1].path)
    assert before == 0
    assert after >= 6  # of 8


async def dpo(renderer: Renderer, made: Plan, clients: Any) -> Dpo:
    return await Dpo.of(made, clients, renderer, DpoSettings())


async def kto(marks: list[Mark], renderer: Renderer, made: Plan, clients: Any) -> Kto:
    return await Kto.of(made, clients, renderer, KtoSettings(), marks)


PAIRS = [Preference(question(fact[0]), answer(as_edited(*fact)), answer(wordy(*fact))) for fact in FACTS]
MARKS = [
    Mark(question(fact[0]), answer((as_edited, wordy)[number % 2](*fact)), number % 2 == 0)
    for number, fact in enumerate(FACTS)
]


@pytest.mark.parametrize(
    ("kind", "data"), [(dpo, PAIRS), (functools.partial(kto, MARKS[:N_TRAINED]), MARKS)], ids=["dpo", "kto"]
)
def test_preferences_raise_the_margin_of_what_was_held_out(
    real: RunningServer, renderer: Renderer, kind: Any, data: list[Any]
) -> None:
    made = plan(**SHORT, epochs=3, learning_rate=3e-4)
    ran = run_of(real, functools.partial(kind, renderer), made, data[:N_TRAINED], held_out=data[N_TRAINED:])
    first, last = ran.records[2].metrics, ran.records[-1].metrics
    assert ran.records[0].metrics["train_loss"] > last["train_loss"]
    assert last["valid_margin"] > max(0.1, first["valid_margin"])
