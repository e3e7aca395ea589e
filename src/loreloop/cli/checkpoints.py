"""`loreloop checkpoints`: what was saved in a data folder, by all keys: seen, verified, deleted, taken elsewhere."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loreloop.cli.keys import key_id_of, transaction
from loreloop.cli.models import DATA
from loreloop.cli.operator import checked, running_server_of
from loreloop.cli.runs import KEY, NO_CHECKPOINTS, YES, bare, checkpoint_row, say_what_goes
from loreloop.cli.tables import JSON, LIMIT, Size, show
from loreloop.cli.who import note

if TYPE_CHECKING:
    from loreloop.store.rows import CheckpointRow


@click.group()
def checkpoints() -> None:
    """List, show, verify, accept, delete and export checkpoints."""


@checkpoints.command("list")
@click.option("--run", "run_id", metavar="RUN", help="Only those of this run.")
@KEY
@LIMIT
@DATA
@JSON
def list_checkpoints(run_id: str | None, key_name: str | None, limit: int, data_dir: str, as_json: bool) -> None:
    """Show checkpoints, the newest first."""
    from loreloop.store import overview

    run_id = bare(run_id) if run_id else None
    with transaction(data_dir) as connection:
        # An unknown run is an error, not an empty list.
        if run_id is not None:
            overview.find_run(connection, run_id)
        found = overview.list_checkpoints(connection, key_id_of(connection, key_name), run_id, limit)
    show([checkpoint_row(one) for one in found], as_json, empty=NO_CHECKPOINTS)


@checkpoints.command("show")
@click.argument("path")
@DATA
@JSON
def show_checkpoint(path: str, data_dir: str, as_json: bool) -> None:
    """Show one checkpoint, and the folder where its files are."""
    from loreloop.protocol.paths import parse_path
    from loreloop.store import overview

    with transaction(data_dir) as connection:
        one = overview.find_checkpoint(connection, parse_path(path))
    row = checkpoint_row(one) | {"metadata": one.row.user_metadata, "folder": one.row.folder}
    if as_json:
        show([row], as_json)
        return
    from loreloop.cli.tables import cell

    for name, value in row.items():
        if value is not None:
            click.echo(f"{name:12} {cell(value)}")


@checkpoints.command("rm")
@click.argument("path")
@YES
@DATA
@JSON
def remove_checkpoint(path: str, yes: bool, data_dir: str, as_json: bool) -> None:
    """Delete a checkpoint. Refused where a deployment answers with it."""
    from loreloop.protocol.paths import parse_path
    from loreloop.store import checkpoints as rows
    from loreloop.store import overview
    from loreloop.store.files import destroy

    parsed = parse_path(path)
    with transaction(data_dir) as connection:
        row = overview.find_checkpoint(connection, parsed).row
        # Checked before the question, so that nobody confirms what is then refused.
        rows.check_not_deployed(connection, parsed)
    say_what_goes([path], row.size_bytes, yes=yes)
    with running_server_of(data_dir) as client:
        if client is not None:
            checked(client.delete(f"/loop/v1/checkpoints/{parsed.run_id}/{parsed.checkpoint_id}"))
        else:
            with transaction(data_dir) as connection:
                rows.remove(connection, row.key_id, parsed)
                note(connection, "checkpoint_delete", row.key_id, tinker_path=str(row.path))
            # A transaction of its own: no file may go before its row has gone for good.
            with transaction(data_dir) as connection:
                left = rows.take_left_files(connection)
            for each in left:
                destroy(each)
    show([{"deleted": path, "size": Size(row.size_bytes)}], as_json)


@checkpoints.command("verify")
@click.argument("path", required=False)
@DATA
@JSON
def verify_checkpoints(path: str | None, data_dir: str, as_json: bool) -> None:
    """Compare the files of PATH (tinker://…), or of all checkpoints, with the checksums noted when they were saved.

    Exit code 1 where one is damaged or gone.
    """
    import sys

    from loreloop.protocol.paths import parse_path
    from loreloop.store import overview

    with transaction(data_dir) as connection:
        if path is None:
            found = overview.list_checkpoints(connection, None, None, None)
        else:
            found = [overview.find_checkpoint(connection, parse_path(path))]
    rows = [{"path": str(one.row.path), **state_of(one.row)} for one in found]
    show(rows, as_json, empty=NO_CHECKPOINTS)
    if any(row["state"] in ("damaged", "gone") for row in rows):
        sys.exit(1)


def state_of(row: CheckpointRow) -> dict[str, str | None]:
    """Reads all files; "unchecked" is one that another tool or an older version has saved, without checksums."""
    from loreloop.protocol.checksums import SUMS_FILE, check_all_files, sum_of
    from loreloop.protocol.errors import Gone
    from loreloop.store.checkpoints import folder_of

    folder = Path(row.folder)
    if not folder.is_dir():
        return {"state": "gone", "what": f"there is no folder {folder}"}
    # The list of checksums has one of its own in the database: who changes both files is found out by it.
    if not row.sums_crc32 and not (folder / SUMS_FILE).exists():
        return {"state": "unchecked", "what": "no checksums were noted when it was saved"}
    try:
        check_all_files(folder_of(row))
        if row.sums_crc32 not in (None, sum_of(folder / SUMS_FILE).crc32):
            return {"state": "damaged", "what": f"{folder / SUMS_FILE} is not the list that was written"}
    except Gone as error:
        return {"state": "damaged", "what": error.message}
    return {"state": "ok", "what": None}


@checkpoints.command("accept")
@click.argument("path")
@DATA
@JSON
def accept_checkpoint(path: str, data_dir: str, as_json: bool) -> None:
    """Accept the files of PATH (tinker://…) as they are now, changed on purpose: note their checksums anew.

    Refused while a server runs on the data folder, since it may have loaded the files as they were; after a server that
    was killed, since the next one would write them anew; and where a file of weights is damaged or holds NaN.
    """
    from safetensors import SafetensorError

    from loreloop.config import Config
    from loreloop.formats.tensor_file import check_finite
    from loreloop.host.server_plan import ServerPlan
    from loreloop.host.supervisor import lock_data
    from loreloop.protocol.checksums import renew_sums
    from loreloop.protocol.errors import BadRequest, Gone
    from loreloop.protocol.paths import parse_path
    from loreloop.store import checkpoints as rows
    from loreloop.store import journal, overview

    parsed = parse_path(path)
    # The run folder is looked for first, since the lock would make it where there is no data folder.
    run_folder = ServerPlan(Config(data_dir=data_dir), {}).run_folder
    lock = lock_data(run_folder) if run_folder.is_dir() else nullcontext()
    with lock, transaction(data_dir) as connection:
        saved = overview.find_checkpoint(connection, parsed).row
        journal.check_settled(connection, saved)
        folder = Path(saved.folder)
        if not folder.is_dir():
            raise Gone(f"The files of {path} are gone: there is no folder {folder}.")
        # NaN in a weight would make every answer NaN, so such files are never accepted.
        for file in sorted(folder.glob("*.safetensors")):
            try:
                check_finite(file)
            except SafetensorError as error:
                raise BadRequest(f"{file} is not taken: {error}.") from None
        found = renew_sums(folder)
        rows.set_sum(connection, parsed, found.n_bytes, found.crc32)
    show([{"accepted": path, "size": Size(found.n_bytes)}], as_json)


@checkpoints.command("export")
@click.argument("path")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--form",
    default="peft",
    show_default=True,
    type=click.Choice(["peft", "merged", "gguf"]),
    help="peft: a folder for peft; merged: a model folder with the adapter merged in; gguf: merged, as a GGUF file.",
)
@click.option("--base", metavar="MODEL", help="The base model's name in the data folder, if it has another name now.")
@DATA
def export_checkpoint(path: str, target: Path, form: str, base: str | None, data_dir: str) -> None:
    """Write the checkpoint PATH (tinker://…) to TARGET, which must not exist yet."""
    from loreloop.formats.catalog import Catalog
    from loreloop.formats.export import export
    from loreloop.protocol.errors import Gone
    from loreloop.protocol.paths import parse_path
    from loreloop.store import overview

    with transaction(data_dir) as connection:
        one = overview.find_checkpoint(connection, parse_path(path))
    if not Path(one.row.folder).is_dir():
        raise Gone(f"The files of {path} are gone: {one.row.folder} is no folder any more.")
    data = Path(data_dir).expanduser()
    # An adapter without its base is no model; the base may bear another name by now.
    entry = Catalog(data).find(base or base_of(data, one.base_model))
    export(entry.folder, Path(one.row.folder), target, form, entry.name)
    # The export makes the target appear at once, so a broken one leaves nothing behind.
    click.echo(f"{target} is written.")


def base_of(data: Path, name: str) -> str:
    """The model that a run's base name means: the last server's aliases are in its plan, other names are models'."""
    from loreloop.config import Config
    from loreloop.host.server_plan import ServerPlan, read_plan

    file = ServerPlan(Config(data_dir=str(data)), {}).file
    return read_plan(str(file)).config.aliases.get(name, name) if file.exists() else name
