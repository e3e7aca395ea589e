"""What several verbs of `loreloop memory` read: a tokenizer that counts, and published conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from loreloop.memory.condense import CountTokens
    from loreloop.memory.evaluation.cases import Conversation

FAULTS = click.option(
    "--faults",
    type=click.Path(exists=True, path_type=Path),
    help="A file of wrong labels of LoCoMo, which are then corrected.",
)
ONLY = click.option("--only", multiple=True, help="Use this conversation, by its name. Repeatable.")
BUDGETS = click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=float,
    help="What a memory may keep: a share up to 1, or tokens. Repeatable.",
)


def counter(data_dir: str, model: str) -> CountTokens:
    """Counts tokens as a model's tokenizer does; equal texts once."""
    from functools import lru_cache

    from loreloop.formats.adding import ensure
    from loreloop.formats.catalog import Catalog
    from loreloop.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(ensure(Catalog(Path(data_dir).expanduser()), model).folder)

    # The memory counts the same lines again and again while it divides its budget.
    @lru_cache(maxsize=1 << 16)
    def count(text: str) -> int:
        return tokenizer.count(text)

    return count


def chosen(file: Path, form: str, faults: Path | None, only: tuple[str, ...]) -> list[Conversation]:
    """The conversations of a published file, all or those named in `only`; BadRequest where it holds none of a name."""
    from loreloop.memory.evaluation import published
    from loreloop.protocol.errors import BadRequest

    loaded = published.load(file, form, faults)  # type: ignore[arg-type]
    # A misspelled name would otherwise evaluate nothing, and look like a result.
    unknown = set(only) - {conversation.name for conversation in loaded}
    if unknown:
        names = ", ".join(conversation.name for conversation in loaded)
        raise BadRequest(f"{file} holds no conversation {', '.join(sorted(unknown))}; it has {names}.")
    return [conversation for conversation in loaded if not only or conversation.name in only]
