"""The default model learns within minutes which lines of conversations that it has not seen are worth keeping."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import RunningServer, running_server
from loreloop.config import Config
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog
from loreloop.memory.learned import YES
from loreloop.memory.learning import course, lessons
from loreloop.memory.learning.pupil import Pupil
from loreloop.text.tokenizer import TextTokenizer

# The SDK leaves its own background tasks to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HELD_OUT = 40  # lines that the lessons do not have


@pytest.fixture(scope="module")
def models() -> Path:
    """The user's models, so that the default one is kept from one run to the next."""
    catalog = Catalog(Config().data_path)
    ensure(catalog, "smollm2-135m")
    return catalog.folder


@pytest.fixture(scope="module")
def default_server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    (data / "models").symlink_to(models)
    with running_server(str(data), ["--model", "smollm2-135m"]) as server:
        yield server


def test_lessons_part_facts_from_talk_in_conversations_not_seen(default_server: RunningServer, models: Path) -> None:
    service = tinker.ServiceClient(base_url=default_server.url, api_key=default_server.key)
    client = service.create_lora_training_client("smollm2-135m", rank=16, seed=1, train_unembed=False).result()
    pupil = Pupil(client, TextTokenizer(models / "smollm2-135m"))
    plan = course.HEAD
    examples = [example for seed in range(4) for example in lessons.of_the_head(seed)]
    taught = list(lessons.batches(random.Random(0).sample(examples, len(examples)), plan.batch))[: plan.steps]
    losses = [pupil.imitate(batch, plan.lesson_rate) for batch in taught]
    assert losses[-1] < 0.2 * losses[0]
    seen = {example.prompt for example in examples}
    others = [example for seed in (50, 51) for example in lessons.of_the_head(seed, 100) if example.prompt not in seen]
    examples = random.Random(1).sample(others, HELD_OUT)
    odds = pupil.odds([example.prompt for example in examples])
    right = sum((value > 0) == (example.answer == YES) for value, example in zip(odds, examples, strict=True))
    assert right >= 0.9 * HELD_OUT
