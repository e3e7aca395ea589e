"""`loreloop memory show`, `forget` and `resize`: look into the memories of a data folder, and change them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.models import DATA
from loreloop.cli.tables import JSON

if TYPE_CHECKING:
    from loreloop.memory.file_store import FileStore
    from loreloop.memory.state import MemoryState, Segment
    from loreloop.protocol.memories import Saved

BAR = 80  # cells
SHOWN = 60  # characters of a segment in a table


@click.command()
@click.argument("id", required=False)
@click.option("--svg", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the picture to this file.")
@JSON
@DATA
def show(id: str | None, file: Path | None, as_json: bool, data_dir: str) -> None:
    """Show what the memory ID keeps: a bar of its budget, one of the conversation's turns, and a table of its segments.
    Without ID, list the memories.
    """
    from loreloop.cli import tables
    from loreloop.memory import picture
    from loreloop.memory.persistence import from_json

    if id is None:
        tables.show(listed(data_dir), as_json, empty="There are no memories; `loreloop memory chat ID` begins one.")
        return
    # Showing reads the file alone; no tokenizer or model is needed for it.
    state = from_json(saved_memory(data_dir, id).data)
    if file is not None:
        file.write_text(picture.svg(state))
    if not as_json:
        click.echo(bar(state))
        click.echo(f"{state.tokens} of {state.budget} tokens; {state.n_turns} turns seen.\n")
    tables.show([row(segment, as_json) for segment in state.segments], as_json, empty="Nothing is kept.")


@click.command()
@click.argument("id")
@click.option("--turn", type=int, help="The number of a turn, as `show` gives it.")
@click.option("--pattern", default="", help="Words that stand together in what is to be removed.")
@JSON
@DATA
def forget(id: str, turn: int | None, pattern: str, as_json: bool, data_dir: str) -> None:
    """Remove a turn, or all that a pattern is about, from the memory ID, and show what was removed.

    What was made from the turn, such as a shortened text, is removed too.
    """
    from loreloop.cli import tables
    from loreloop.memory.importance import SurfaceImportance
    from loreloop.memory.memory import Memory, Parts
    from loreloop.memory.persistence import from_json, to_json
    from loreloop.memory.refill import ExtractiveRefill

    saved = saved_memory(data_dir, id)
    # Forgetting counts no tokens: what is left of the memory has its counts already.
    memory = Memory(from_json(saved.data), Parts(len, SurfaceImportance(), ExtractiveRefill(len)))
    gone = memory.forget(turn=turn, pattern=pattern)
    # Where nothing was found, nothing is written, and a running conversation keeps its revision.
    if gone.segments:
        store_of(data_dir).save(id, to_json(memory.state), after=saved.revision)
    rows = [row(segment, as_json) for segment in gone.segments]
    tables.show(rows, as_json, empty="Nothing of it stands in the memory; nothing was changed.")


@click.command()
@click.argument("id")
@click.option(
    "--budget", required=True, type=click.IntRange(min=1), help="Tokens that the memory may have from now on."
)
@click.option(
    "--tokenizer", default="smollm2-135m", show_default=True, help="The model whose tokenizer counts the tokens."
)
@DATA
def resize(id: str, budget: int, tokenizer: str, data_dir: str) -> None:
    """Give the memory ID another budget. With a smaller one, what is worth least is dropped at once, for good."""
    from loreloop.cli.memory_inputs import counter
    from loreloop.memory.importance import SurfaceImportance
    from loreloop.memory.memory import Memory, Parts
    from loreloop.memory.persistence import from_json, to_json
    from loreloop.memory.refill import ExtractiveRefill

    saved = saved_memory(data_dir, id)
    count = counter(data_dir, tokenizer)
    memory = Memory(from_json(saved.data), Parts(count, SurfaceImportance(), ExtractiveRefill(count)))
    before = memory.state
    memory.resize(budget)
    store_of(data_dir).save(id, to_json(memory.state), after=saved.revision)
    click.echo(
        f"{id}: {before.tokens} of {before.budget} tokens in {len(before.segments)} segments were kept, now "
        f"{memory.state.tokens} of {budget} in {len(memory.state.segments)}."
    )


def listed(data_dir: str) -> list[dict[str, Any]]:
    """A row for each memory of a data folder."""
    from loreloop.memory.persistence import from_json

    folder = folder_of(data_dir)
    rows = []
    for id in store_of(data_dir).ids() if folder.is_dir() else ():
        state = from_json(saved_memory(data_dir, id).data)
        rows.append({"id": id, "tokens": state.tokens, "budget": state.budget, "turns": state.n_turns})
    return rows


def store_of(data_dir: str) -> FileStore:
    """The store of the data folder's memories; the folder is made, for its owner alone, where there is none."""
    from loreloop.memory.file_store import FileStore
    from loreloop.protocol.folders import make_private

    folder = folder_of(data_dir)
    make_private(folder.parent)  # the data folder
    return FileStore(folder)


def folder_of(data_dir: str) -> Path:
    """Where a data folder keeps its memories."""
    return Path(data_dir).expanduser() / "memories"


def saved_memory(data_dir: str, id: str) -> Saved:
    """Raises NotFound without making the folder."""
    from loreloop.protocol.errors import NotFound

    # `store_of` would make the folder, and a question for a memory must not.
    folder = folder_of(data_dir)
    saved = store_of(data_dir).load(id) if folder.is_dir() else None
    if saved is None:
        raise NotFound(f"There is no memory {id!r} in {folder}; `loreloop memory chat {id}` begins one.")
    return saved


def bar(state: MemoryState) -> str:
    """Two lines of cells, each with a legend below: the memory in proportion to its budget in tokens, and the turns of
    the conversation, the oldest first."""
    from loreloop.memory import picture

    lines = []
    for unit, runs, numbers, kinds in (
        ("tokens", picture.runs(state, BAR), picture.tokens_by_kind(state), picture.KINDS),
        ("turns", picture.turn_runs(state, BAR), picture.turns_by_fate(state), picture.FATES),
    ):
        lines.append("".join(click.style(run.kind.sign * run.cells, fg=run.kind.colour) for run in runs))
        lines.append(
            f"{unit}:   " + "   ".join(f"{click.style(k.sign, fg=k.colour)} {k.name} {numbers[k.name]}" for k in kinds)
        )
    return "\n".join(lines)


def row(segment: Segment, exact: bool) -> dict[str, Any]:
    """A segment as a row; `exact` leaves its text whole and its turns as numbers, for programs."""
    from loreloop.memory import picture

    text = segment.head + segment.text
    # A remembered text may hold control characters, which must not reach the terminal.
    short = picture.printable(text)
    short = short if len(short) <= SHOWN else short[: SHOWN - 1] + "…"
    return {
        "turns": list(segment.turns) if exact else ", ".join(map(str, segment.turns)),
        "kind": picture.kind_of(segment).name,
        "tokens": segment.tokens,
        "rewrites": segment.rewrites,
        "text": text if exact else short,
    }
