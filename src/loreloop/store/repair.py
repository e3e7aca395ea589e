"""Checkpoints whose files and rows do not belong to each other: found, adopted where the files are good, else named.

While no server runs. Reads no tensors: whether files are what was saved, their checksums tell.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy import Connection, delete, select

from loreloop.protocol.checksums import SUMS_FILE, check_all_files, read_sums, sum_of
from loreloop.protocol.errors import FilesGone, LoreloopError, NotFound
from loreloop.protocol.paths import CheckpointKind, CheckpointPath, check_name, file_name
from loreloop.protocol.training import LoraSpec
from loreloop.store import checkpoints, runs, sessions
from loreloop.store.files import Files
from loreloop.store.rows import CheckpointRow, RunRow, SessionNew
from loreloop.store.schema import CHECKPOINTS, LEFT_FILES, SESSIONS

ADAPTER_CONFIG = "adapter_config.json"


class Stray(msgspec.Struct, frozen=True):
    """A folder of a checkpoint that no row names. `damage` says why it cannot be adopted, where it cannot."""

    path: CheckpointPath
    folder: Path
    n_bytes: int
    damage: str | None = None


class _Own(msgspec.Struct):
    """What a folder of ours says of its adapter beside peft's own settings."""

    seed: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    experts: str = "shared_outer"


class _Adapter(msgspec.Struct):
    r: int
    base_model_name_or_path: str
    loreloop: _Own | None = None


def strays(connection: Connection, folder: Path) -> list[Stray]:
    """Folders below `checkpoints/` that no row names, and that the sweeper is not about to take, in their order."""
    known: set[tuple[str, ...]] = {
        (file_name(row.run_id), row.kind, row.name) for row in connection.execute(select(CHECKPOINTS))
    }
    known |= {Path(path).parts[-3:] for path in connection.scalars(select(LEFT_FILES.c.path))}
    found = sorted(Files(folder).checkpoints.glob("*/*/*"))
    return [
        _stray(each)
        for each in found
        if each.is_dir()
        and not each.name.startswith(".")
        and each.parts[-3:] not in known
        and each.parts[-2] in set(CheckpointKind)
    ]


def _stray(folder: Path) -> Stray:
    run, kind, name = folder.parts[-3:]
    # Runs are named `<session>:train:<number>`, and as a folder with other letters between.
    path = CheckpointPath(run.replace("_", ":"), CheckpointKind(kind), name)
    n_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.name != SUMS_FILE and file.is_file())
    try:
        check_name(name)
        _adapter_of(folder)
        if not read_sums(folder):
            return Stray(
                path, folder, n_bytes, f"{folder / SUMS_FILE} is missing, so nothing tells whether it is whole"
            )
        check_all_files(folder)
    # Whatever is wrong with one folder must not keep the others from being repaired.
    except LoreloopError as error:
        return Stray(path, folder, n_bytes, error.message)
    return Stray(path, folder, n_bytes)


def without_files(connection: Connection) -> list[CheckpointRow]:
    """Checkpoints that have a row and no folder."""
    rows = connection.execute(select(CHECKPOINTS.c.run_id, CHECKPOINTS.c.kind, CHECKPOINTS.c.name)).all()
    paths = [CheckpointPath(row.run_id, CheckpointKind(row.kind), row.name) for row in rows]
    found = [checkpoints.of_anyone(connection, path) for path in paths]
    return [row for row in found if not Path(row.folder).is_dir()]


def adopt(connection: Connection, stray: Stray, key_id: str, now: float) -> CheckpointRow:
    """Makes a good folder a checkpoint of a key again, under the path that it had. Its run, where it is gone as well,
    is made anew, without a state to train on."""
    adapter, own = _adapter_of(stray.folder)
    try:
        key_id = runs.of_anyone(connection, stray.path.run_id).key_id
    except NotFound:
        _make_run(connection, stray.path.run_id, key_id, adapter, own, now)
    row = CheckpointRow(
        run_id=stray.path.run_id,
        kind=stray.path.kind,
        name=stray.path.name,
        key_id=key_id,
        folder=str(stray.folder),
        created=stray.folder.stat().st_mtime,
        size_bytes=stray.n_bytes,
        expires=None,
        user_metadata=None,
        sums_crc32=sum_of(stray.folder / SUMS_FILE).crc32,
    )
    checkpoints.add(connection, row)
    return row


def forget(connection: Connection, row: CheckpointRow) -> None:
    """Takes the row of a checkpoint away whose files are gone."""
    of_path = (CHECKPOINTS.c.run_id == row.run_id) & (CHECKPOINTS.c.kind == row.kind.value)
    connection.execute(delete(CHECKPOINTS).where(of_path, CHECKPOINTS.c.name == row.name))


def _make_run(connection: Connection, run_id: str, key_id: str, adapter: _Adapter, own: _Own, now: float) -> None:
    session_id = run_id.partition(":")[0]
    if connection.execute(select(SESSIONS.c.id).where(SESSIONS.c.id == session_id)).first() is None:
        sessions.create_ended(connection, key_id, SessionNew(display_name="adopted by repair"), now, session_id)
    lora = LoraSpec(
        rank=adapter.r,
        seed=own.seed,
        train_attn=own.train_attn,
        train_mlp=own.train_mlp,
        train_unembed=own.train_unembed,
        experts="per_expert" if own.experts == "per_expert" else "shared_outer",
    )
    run = RunRow(
        id=run_id,
        session_id=session_id,
        key_id=key_id,
        base_model=adapter.base_model_name_or_path,
        lora=lora,
        created=now,
        last_request=now,
        user_metadata=None,
        live=False,
    )
    runs.create(connection, run)


def _adapter_of(folder: Path) -> tuple[_Adapter, _Own]:
    """FilesGone where the folder does not say what its adapter is."""
    file = folder / ADAPTER_CONFIG
    try:
        adapter = msgspec.json.decode(file.read_bytes(), type=_Adapter)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FilesGone(f"{file} cannot be read ({error}), so nothing tells what the weights beside it are.") from None
    # What was saved for others has peft's settings alone; how it began is not needed to hand it out.
    return adapter, adapter.loreloop or _Own(seed=0, train_attn=True, train_mlp=True, train_unembed=True)
