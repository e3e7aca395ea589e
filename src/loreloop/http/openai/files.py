"""OpenAI's files: uploaded, listed, given out and deleted, each by its own key.

A file for fine-tuning is read once as it comes in, so that a mistake in it is told with its line and field at once.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from loreloop.host import children
from loreloop.http.addresses import limit_of
from loreloop.http.bodies import answer
from loreloop.http.multipart import Form, read_form
from loreloop.http.services import TRAIN, Services, caller, now, services
from loreloop.learn.jobs.contents import LARGE_BYTES, WRONG, Contents, contents_of
from loreloop.protocol.errors import BadRequest, Gone, LoreloopError, ServerError, TooLarge
from loreloop.store import uploads
from loreloop.store.job_rows import FileRow
from loreloop.store.rows import KeyRow

FINE_TUNE = "fine-tune"
PURPOSES = (FINE_TUNE, "user_data", "evals")
MAX_PAGE = 10_000
SHORTEST_SECONDS, LONGEST_SECONDS = 3600, 2_592_000  # of an expiry, as OpenAI has it
LONGEST_NAME = 255


async def upload(request: Request) -> Response:
    """Takes a file in, whole and checked, or not at all."""
    key, served = caller(request, TRAIN), services(request)
    files, room = served.dispatcher.files, Room(served, key.id)
    arriving = files.arriving_upload()
    try:
        form = await read_form(request, arriving, served.config.limits.file_mib << 20, room.take)
        check_purpose(form)
        contents = await looked_into(served, arriving, form) if form.fields["purpose"] == FINE_TUNE else None
        row = row_of(form, key, contents)
        # The body lies in its place before the row names it; a kill between the two leaves a body for the sweeper.
        await asyncio.to_thread(files.put_upload, arriving, row.id)
        # The row counts for itself from here on, and is refused where it does not fit; counted twice for a moment, it
        # would turn another upload away that has room.
        room.give_back()
        made = await _noted(served, row)
    finally:
        room.give_back()
        arriving.unlink(missing_ok=True)
    return answer(as_json(made))


async def _noted(served: Services, row: FileRow) -> FileRow:
    """Writes the row of a file whose body lies in its place."""
    try:
        return await served.store.write(uploads.add, row, served.config.limits.files_mib << 20)
    except LoreloopError:
        # Only where it is certain that no row comes: whoever leaves while it is being written may still get one.
        served.dispatcher.files.upload(row.id).unlink(missing_ok=True)
        raise


class Room:
    """A key's room for files. What is coming in takes its part already, so that many uploads at once fill no disk."""

    def __init__(self, served: Services, key_id: str) -> None:
        self.served, self.key_id, self.n_taken = served, key_id, 0

    def take(self, n_bytes: int) -> None:
        """Makes room for so many bytes more. TooLarge where the key has none left."""
        most, arriving = self.served.config.limits.files_mib << 20, self.served.arriving
        n_kept = self.served.store.read(uploads.bytes_of, self.key_id)
        if n_kept + arriving[self.key_id] + n_bytes > most:
            raise TooLarge(
                f"The files of this key have {n_kept} bytes, and those that are coming in {arriving[self.key_id]}; it "
                f"may have {most} in all. Delete some, or upload them one after the other."
            )
        self.n_taken += n_bytes
        arriving[self.key_id] += n_bytes

    def give_back(self) -> None:
        """The upload is over: what it has brought is a file by now, or gone."""
        self.served.arriving[self.key_id] -= self.n_taken
        self.n_taken = 0


def check_purpose(form: Form) -> None:
    """BadRequest where files of this purpose are not kept here."""
    purpose = form.fields.get("purpose", "")
    if purpose not in PURPOSES:
        raise BadRequest(f"The purpose {purpose[:40]!r} is not served; files here have one of {', '.join(PURPOSES)}.")


async def looked_into(served: Services, file: Path, form: Form) -> Contents:
    """What a file for fine-tuning holds. BadRequest says which line and field cannot be used."""
    if form.n_bytes <= LARGE_BYTES:
        return await asyncio.to_thread(contents_of, file)
    async with served.reading:
        return await _read_apart(file)


async def _read_apart(file: Path) -> Contents:
    command = children.python(contents_of.__module__, str(file))
    process = await asyncio.create_subprocess_exec(
        *command, env=children.environment(), stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
    )
    try:
        told, _ = await process.communicate()
    finally:
        # Whoever leaves amid an upload leaves nothing running behind.
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == WRONG:
        raise BadRequest(told.decode())
    if process.returncode:
        raise ServerError(f"The process that reads uploaded files ended with {process.returncode}; see the log.")
    return msgspec.json.decode(told, type=Contents)


def row_of(form: Form, key: KeyRow, contents: Contents | None) -> FileRow:
    """The row of a file that has come in."""
    return FileRow(
        id=uploads.new_id(),
        key_id=key.id,
        name=_name_of(form),
        purpose=form.fields["purpose"],
        n_bytes=form.n_bytes,
        created=now(),
        expires=expiry_of(form),
        contents=msgspec.to_builtins(contents) if contents is not None else None,
    )


def _name_of(form: Form) -> str:
    """What the client calls its file, without folders of whatever system, and without what would command a terminal."""
    name = (form.filename or "").replace("\\", "/").rpartition("/")[2]
    name = "".join(letter if letter.isprintable() else "?" for letter in name)[:LONGEST_NAME]
    return name if name.strip(". ") else "file"


def expiry_of(form: Form) -> float | None:
    """When the form's file expires, in seconds since the epoch; None for never."""
    anchor, seconds = form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    n_seconds = int(seconds) if seconds and seconds.isdecimal() and len(seconds) < 10 else 0
    if anchor != "created_at" or not SHORTEST_SECONDS <= n_seconds <= LONGEST_SECONDS:
        raise BadRequest(
            f"expires_after is {anchor!r}, {seconds!r}; the anchor is created_at, and the seconds lie from "
            f"{SHORTEST_SECONDS} to {LONGEST_SECONDS}."
        )
    return now() + n_seconds


async def list_files(request: Request) -> Response:
    """The key's files by pages."""
    key, query, limit = caller(request, TRAIN), request.query_params, limit_of(request, MAX_PAGE, MAX_PAGE)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest(f"order is {order[:20]!r}; it must be asc or desc.")
    # One more than the page holds, which tells whether there are more.
    found = services(request).store.read(
        uploads.list_page,
        key.id,
        limit + 1,
        after=query.get("after", ""),
        purpose=query.get("purpose", ""),
        ascending=order == "asc",
    )
    return answer(page([as_json(row) for row in found], limit))


async def retrieve(request: Request) -> Response:
    """What is known of a file."""
    return answer(as_json(_file(request)))


async def content(request: Request) -> Response:
    """A file's body as it was uploaded."""
    row = _file(request)
    path = body_of(services(request), row)
    return FileResponse(path, media_type="application/octet-stream", filename=row.name)


async def delete(request: Request) -> Response:
    """Deletes a file. Conflict while a job that is not finished needs it."""
    key, served, file_id = caller(request, TRAIN), services(request), request.path_params["file_id"]
    await served.store.write(uploads.remove, served.dispatcher.files, key.id, file_id)
    await served.dispatcher.delete_left_files()
    return answer({"id": file_id, "object": "file", "deleted": True})


def body_of(served: Services, row: FileRow) -> Path:
    """Where a file's body lies; Gone where it does not."""
    path = served.dispatcher.files.upload(row.id)
    if not path.is_file():
        raise Gone(f"The body of the file {row.id} is gone from the data folder; upload it anew.")
    return path


def page(entries: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list; `entries` hold one more than it where there are more."""
    data = entries[:limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": len(entries) > limit} | ends


def as_json(row: FileRow) -> dict[str, Any]:
    """A file as OpenAI's clients read it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.n_bytes,
        "created_at": int(row.created),
        "expires_at": int(row.expires) if row.expires is not None else None,
        "filename": row.name,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def _file(request: Request) -> FileRow:
    key = caller(request, TRAIN)
    return services(request).store.read(uploads.get, key.id, request.path_params["file_id"])


ROUTES = [
    Route("/files", upload, methods=["POST"]),
    Route("/files", list_files, methods=["GET"]),
    Route("/files/{file_id}", retrieve, methods=["GET"]),
    Route("/files/{file_id}", delete, methods=["DELETE"]),
    Route("/files/{file_id}/content", content, methods=["GET"]),
]
