"""`loreloop models import-adapter` and `export`: adapters that come from other tools, and that go to them.

Both work beside a running server, which finds what was imported in the data folder's database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loreloop.cli.models import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from loreloop.model.lora import AdapterView
    from loreloop.store.files import Files
    from loreloop.store.rows import CheckpointRow, KeyRow, RunRow


@click.command("import-adapter")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--base", required=True, help="The model that it was trained on: a name of `loreloop models list`.")
@click.option("--name", help="What its checkpoints are called.  [default: the folder's name]")
@click.option("--key", "owner", help="The key that shall own it, by id or name; needed where there are several.")
@DATA
def import_adapter(folder: str, base: str, name: str | None, owner: str | None, data_dir: str) -> None:
    """Make checkpoints of an adapter that peft has saved: one to sample from and deploy, one to train further.

    What it computes stays the same. What cannot be taken over is refused by the name of the setting.
    """
    from pathlib import Path

    from loreloop.cli.keys import transaction
    from loreloop.formats.adopt import open_adapter
    from loreloop.formats.catalog import Catalog
    from loreloop.protocol.paths import check_name

    # The name is checked first, because reading an adapter may take long.
    data, source = Path(data_dir).expanduser(), Path(folder)
    entry, checkpoint_name = Catalog(data).find(base), check_name(name or source.absolute().name)
    with transaction(data_dir) as connection:
        key = owner_named(connection, owner)
    # The adapter is read outside the transaction, in which a running server could not write.
    view = open_adapter(source, entry.folder)
    rows = made_checkpoints(data, key, entry.name, checkpoint_name, view)
    click.echo(f"{source} is imported for the key {key.name!r}, at rank {view.layout.rank}:")
    for row in rows:
        click.echo(f"  {row.path}")
    click.echo("Sample from and deploy the one under sampler_weights, train further from the one under weights.")


def made_checkpoints(data: Path, key: KeyRow, base_model: str, name: str, view: AdapterView) -> list[CheckpointRow]:
    """A run that has ended, with its checkpoints. Rows come after files, all at once; without them the files go."""
    import time
    import uuid

    from loreloop.cli.keys import transaction
    from loreloop.protocol.paths import model_id
    from loreloop.store import checkpoints, runs, sessions
    from loreloop.store.files import Files, delete
    from loreloop.store.rows import RunRow, SessionNew

    now, files, metadata = time.time(), Files(data), {"imported": name}
    session_id = str(uuid.uuid4())
    run = RunRow(
        id=model_id(session_id, 0),
        session_id=session_id,
        key_id=key.id,
        base_model=base_model,
        lora=view.layout.lora,
        created=now,
        last_request=now,
        user_metadata=metadata,
        live=False,
    )
    written = False
    try:
        rows = written_checkpoints(files, run, name, view)
        with transaction(str(data)) as connection:
            new = SessionNew(user_metadata=metadata, display_name=f"import of {name}")
            sessions.create(connection, key.id, new, now, session_id)
            # A run needs a session; this one has ended from the beginning, so no client can train in it.
            sessions.end(connection, key.id, session_id, "finished", "imported")
            runs.create(connection, run)
            for row in rows:
                checkpoints.add(connection, row)
        written = True
    finally:
        if not written:
            delete(files.run(run.id))
    return rows


def written_checkpoints(files: Files, run: RunRow, name: str, view: AdapterView) -> list[CheckpointRow]:
    """The files of both checkpoints, and the rows that they are to have."""
    import torch

    from loreloop.engine.training.model_state import ModelState, write_checkpoint, write_sampler
    from loreloop.parallel.adapter_share import AdapterShare
    from loreloop.protocol.paths import CheckpointKind, CheckpointPath
    from loreloop.store.rows import CheckpointRow

    # The master weights are fp32 whatever the adapter's file holds, as for models that were trained here.
    state = ModelState(AdapterShare(view.layout.spec, view.layout.lora), torch.float32, torch.device("cpu"))
    state.master.copy_(view.flat)
    rows = []
    for kind in (CheckpointKind.SAMPLER, CheckpointKind.TRAINING):
        folder = files.checkpoint(CheckpointPath(run.id, kind, name))
        if kind is CheckpointKind.TRAINING:
            saved = write_checkpoint(folder, state, run.base_model)
        else:
            saved = write_sampler(folder, state.share, view.flat, run.base_model)
        rows.append(
            CheckpointRow(
                run_id=run.id,
                kind=kind,
                name=name,
                key_id=run.key_id,
                folder=str(folder),
                created=run.created,
                size_bytes=saved.size_bytes,
                expires=None,
                user_metadata=run.user_metadata,
                sums_crc32=saved.sums_crc32 or None,
            )
        )
    return rows


def owner_named(connection: Connection, name: str | None) -> KeyRow:
    """The active key of this id or name that may train; without a name, the only one there is."""
    import time

    from loreloop.protocol.errors import BadRequest
    from loreloop.store import keys

    now = time.time()
    valid = [key for key in keys.list_all(connection) if key.revoked is None and (key.expires or now) >= now]
    # A key that may only ask could never use what it owns.
    active = [key for key in valid if {"train", "admin"} & {*key.scopes}]
    found = [key for key in active if name in (None, key.id, key.name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{key.id} ({key.name})" for key in active)
    if not active:
        raise BadRequest("A key that may train must own it, and there is none; `loreloop keys create` makes one.")
    raise BadRequest(
        f"Which key shall own it? Give --key with one of {known}."
        if name is None or found
        else f"No active key that may train is called {name!r}; there are {known}."
    )


@click.command("export")
@click.argument("model")
@click.argument("adapter")
@click.argument("target", type=click.Path())
@click.option(
    "--form",
    default="merged",
    show_default=True,
    type=click.Choice(["merged", "peft", "gguf"]),
    help="merged: a model folder with the adapter merged in; peft: a folder for peft; gguf: merged, as a GGUF file.",
)
@DATA
def export_model(model: str, adapter: str, target: str, form: str, data_dir: str) -> None:
    """Write MODEL with ADAPTER to TARGET, which must not exist yet.

    ADAPTER is a checkpoint as it is printed (tinker://…), or an adapter's folder, also one that peft has saved.
    """
    from pathlib import Path

    from loreloop.formats.catalog import Catalog
    from loreloop.formats.export import export

    entry = Catalog(Path(data_dir).expanduser()).find(model)
    export(entry.folder, adapter_folder(adapter, data_dir), Path(target), form, entry.name)
    click.echo(f"{target} is written.")


def adapter_folder(adapter: str, data_dir: str) -> Path:
    """Where an adapter lies: a folder, or what a checkpoint's path names, whoever owns it."""
    from pathlib import Path

    from loreloop.cli.keys import transaction
    from loreloop.protocol.errors import BadRequest
    from loreloop.protocol.paths import SCHEME, parse_path
    from loreloop.store import checkpoints

    if adapter.startswith(SCHEME):
        with transaction(data_dir) as connection:
            return Path(checkpoints.of_anyone(connection, parse_path(adapter)).folder)
    if not Path(adapter).is_dir():
        raise BadRequest(f"{adapter!r} is neither a folder nor a checkpoint (tinker://<run>/<kind>/<name>).")
    return Path(adapter)
