"""Tinker routes by which weights leave the server: saved for others' tools, and downloaded by signed addresses.

A download carries no key, as the SDK fetches it with none: its address names one file of one checkpoint, holds for an
hour, and is signed with a secret of the data folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import tarfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from loreloop.http.addresses import checkpoint_path
from loreloop.http.audited import note_read
from loreloop.http.bodies import answer, decode
from loreloop.http.services import INFER, caller, now, services
from loreloop.http.tinker.sharing import readable
from loreloop.http.tinker.submission import Accepted, accept, live_run
from loreloop.http.tinker.training import check_free, new_checkpoint
from loreloop.protocol import paths, rest
from loreloop.protocol.checksums import check_files
from loreloop.protocol.errors import BadRequest, FilesGone, Forbidden, NotFound
from loreloop.protocol.paths import CheckpointKind, CheckpointPath, check_name
from loreloop.protocol.training import AGE_SUFFIX, SaveExternal
from loreloop.store import checkpoints
from loreloop.store.rows import AddCheckpoint, KeyRow

LIFETIME_SECONDS = 3600
FILES = ("adapter_config.json", "adapter_model.safetensors")  # of an adapter; encrypted ones have a suffix
ARCHIVE = "archive.tar"
COMPLETE = "checkpoint_complete"  # an empty file, by which older clients see that an archive is whole
CHUNK_BYTES = 1 << 20


async def save_weights_external(request: Request) -> Response:
    """Accepts an operation that saves the adapter for other tools, encrypted where recipients are named."""

    async def build(key: KeyRow, raw: bytes) -> Accepted:
        body = decode(raw, rest.SaveExternalBody)
        run = live_run(request, key, body.model_id)
        path = CheckpointPath(run.id, CheckpointKind.EXTERNAL, check_name(body.path))
        # The id follows from the run and the sequence id, so a repeated request has the same one.
        request_id = paths.request_id(run.id, body.seq_id)
        check_free(request, path, request_id)
        row = new_checkpoint(request, key, path, None)
        op = SaveExternal(run.id, body.seq_id, request_id, row.folder, body.age_encryption_recipients or ())
        return Accepted(op, (AddCheckpoint(row, body.ttl_seconds),), {"path": str(path)})

    return await accept(request, build)


async def external_weights_urls(request: Request) -> Response:
    """Signed addresses of the files of a checkpoint that was saved for others, by file name, with their expiry."""
    key, path = caller(request, INFER), checkpoint_path(request)
    if path.kind is not CheckpointKind.EXTERNAL:
        raise BadRequest(f"{path} is not saved for others; ask for its archive, or save_weights_external first.")
    row = readable(request, key, path)
    folder = checkpoints.folder_of(row)
    await note_read(request, key, row, "download")
    expires = int(now()) + LIFETIME_SECONDS
    urls = {file: signed_url(request, path, file, expires) for file in saved_files(folder)}
    return answer({"urls": urls, "expires": datetime.fromtimestamp(expires, UTC).isoformat()})


async def archive_url(request: Request) -> Response:
    """A redirect to the checkpoint's adapter as a tar file, from a checkpoint of any kind."""
    key, path = caller(request, INFER), checkpoint_path(request)
    services(request).store.read(checkpoints.get, key.id, path)
    expires = int(now()) + LIFETIME_SECONDS
    moment = format_datetime(datetime.fromtimestamp(expires, UTC), usegmt=True)
    return Response(
        status_code=302, headers={"location": signed_url(request, path, ARCHIVE, expires), "expires": moment}
    )


async def download(request: Request) -> Response:
    """The file that a signed address names. Forbidden where the signature or the time is wrong, Gone where the file is
    not what was saved."""
    path, file = checkpoint_path(request), request.path_params["file"]
    expires = request.query_params.get("expires", "")
    wanted = signature(request, path, file, expires)
    # A comparison in constant time: one that stops at the first wrong letter would tell how much of a guess was right.
    if not hmac.compare_digest(wanted.encode(), request.query_params.get("signature", "").encode()):
        raise Forbidden("The signature of this address is not one of this server; ask for a new address.")
    # The signature covers the expiry, so it is looked at only after that was found to be ours.
    if not expires.isdecimal() or int(expires) < now():
        raise Forbidden("This address has expired; ask for a new one.")
    folder = checkpoints.folder_of(services(request).store.read(checkpoints.of_anyone, path))
    names = saved_files(folder)
    if file != ARCHIVE and file not in names:
        raise NotFound(f"{path} has no file {file!r}.")
    # The files are compared with their checksums before the first byte leaves: a damaged adapter must not look like a
    # good one elsewhere.
    await asyncio.to_thread(check_files, folder, names if file == ARCHIVE else (file,))
    if file == ARCHIVE:
        length = {"content-length": str(archive_bytes(folder, names))}
        return StreamingResponse(archive(folder, names), media_type="application/x-tar", headers=length)
    return FileResponse(folder / file, media_type="application/octet-stream")


def signed_url(request: Request, path: CheckpointPath, file: str, expires: int) -> str:
    """The address at which one file of a checkpoint can be fetched until `expires`, in seconds since the epoch."""
    place = quote(f"{path.run_id}/{path.checkpoint_id}/{file}", safe="/:")
    signed = signature(request, path, file, str(expires))
    return f"{request.base_url}api/v1/downloads/{place}?expires={expires}&signature={signed}"


def signature(request: Request, path: CheckpointPath, file: str, expires: str) -> str:
    """The HMAC-SHA256, in hexadecimal digits, of one file's address and its expiry under the data folder's secret."""
    return hmac.new(services(request).secret, f"download {path} {file} {expires}".encode(), hashlib.sha256).hexdigest()


def saved_files(folder: Path) -> tuple[str, ...]:
    """The adapter's files; what else lies beside them, an optimizer's state for instance, does not leave. Gone where
    not all of them are there."""
    for names in (FILES, tuple(f"{name}{AGE_SUFFIX}" for name in FILES)):
        if all((folder / name).is_file() for name in names):
            return names
    raise FilesGone(f"{folder} does not hold {' and '.join(FILES)} any more. {checkpoints.ADVICE}")


def archive(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    """The files as a tar archive, piece by piece."""
    for name in names:
        with (folder / name).open("rb") as file:
            n_bytes = (folder / name).stat().st_size
            yield _head(name, n_bytes)
            while piece := file.read(CHUNK_BYTES):
                yield piece
            # A tar file consists of blocks of 512 bytes, and two empty blocks end it.
            yield b"\0" * (-n_bytes % tarfile.BLOCKSIZE)
    yield _head(COMPLETE, 0) + b"\0" * (2 * tarfile.BLOCKSIZE)


def archive_bytes(folder: Path, names: Sequence[str]) -> int:
    """The length of the archive in bytes, which has to be known before its first byte is sent."""
    sizes = [(folder / name).stat().st_size for name in names]
    # One head for every file, one for the empty mark, and two empty blocks at the end.
    return sum(size + -size % tarfile.BLOCKSIZE for size in sizes) + (len(sizes) + 3) * tarfile.BLOCKSIZE


def _head(name: str, n_bytes: int) -> bytes:
    about = tarfile.TarInfo(name)
    about.size, about.mode = n_bytes, 0o644
    return about.tobuf(tarfile.USTAR_FORMAT)


OF_CHECKPOINT = "/training_runs/{run_id}/checkpoints/{kind}/{name}"
ROUTES = [
    Route("/save_weights_external", save_weights_external, methods=["POST"]),
    Route(f"{OF_CHECKPOINT}/external_weights_urls", external_weights_urls, methods=["GET"]),
    Route(f"{OF_CHECKPOINT}/archive", archive_url, methods=["GET"]),
    Route("/downloads/{run_id}/{kind}/{name}/{file}", download, methods=["GET"]),
]
