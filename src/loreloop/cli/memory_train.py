"""`loreloop memory train`: the memory's adapters are trained on a running server, over the Tinker API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loreloop.cli.chat import SERVER_KEY, SERVER_URL
from loreloop.cli.models import DATA

if TYPE_CHECKING:
    from loreloop.text.tokenizer import TextTokenizer


@click.command()
@click.argument("part", type=click.Choice(["head", "refill"]))
@click.option(
    "--model", default="smollm2-135m", show_default=True, help="The base model; its tokenizer counts the tokens."
)
@click.option("--rank", default=16, show_default=True, type=click.IntRange(min=1), help="The adapter's rank.")
@click.option("--seed", default=1, show_default=True, help="Seed of the adapter's first weights.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write all that was measured to this file."
)
@SERVER_URL
@SERVER_KEY
@DATA
def train(*, part: str, model: str, rank: int, seed: int, out: Path | None, url: str, key: str, data_dir: str) -> None:
    """Train an adapter that judges what to remember (head) or shortens it (refill), on made-up conversations.

    It learns from examples first, then from rewards over whole conversations, with exams between. The adapter's path is
    printed last.
    """
    import warnings

    import msgspec

    from loreloop.cli.memory_inputs import counter
    from loreloop.memory.learning import course
    from loreloop.protocol.errors import BadRequest

    try:
        import tinker

        from loreloop.memory.learning.pupil import Pupil
    except ImportError:
        raise BadRequest("Training needs the Tinker SDK: pip install 'loreloop[demo]'.") from None

    codec, count = tokenizer_of(data_dir, model), counter(data_dir, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what the SDK's next version will change
        with tinker.ServiceClient(base_url=url, api_key=key) as service:
            # The head over the vocabulary stays frozen, which keeps the adapter small.
            client = service.create_lora_training_client(model, rank=rank, seed=seed, train_unembed=False).result()
            plan = course.HEAD if part == "head" else course.REFILL
            lessons = course.Course(Pupil(client, codec), count, plan, lambda line: click.echo(line, err=True))
            record = lessons.head() if part == "head" else lessons.refill()
    # Written only at the end: a training that breaks off leaves no file that looks complete.
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    click.echo(record.path)


def tokenizer_of(data_dir: str, model: str) -> TextTokenizer:
    """The tokenizer of a model of the data folder, which is fetched where it is not there yet."""
    from loreloop.formats.adding import ensure
    from loreloop.formats.catalog import Catalog
    from loreloop.text.tokenizer import TextTokenizer

    return TextTokenizer(ensure(Catalog(Path(data_dir).expanduser()), model).folder)
