"""A form with one file, as `multipart/form-data`: its body goes to disk as it comes, within a bound.

The grammar is the library's; here stands what is taken from it. Knows no route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from loreloop.protocol.errors import BadRequest, TooLarge

MAX_FIELDS, MAX_FIELD_BYTES, MAX_HEADER_BYTES = 32, 64 << 10, 8 << 10
MAX_BESIDE_BYTES = 4 << 20  # of a form without its file: more than all fields with their headers
WRITE_BYTES = 1 << 20  # are written at once, in a thread


@dataclass
class Form:
    """The fields of a form that are no files, by name; `filename` is what the client calls its file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    n_bytes: int = 0


class _Parts:
    """What the parser tells, gathered: fields whole, the bytes of the file until somebody writes them."""

    def __init__(self) -> None:
        self.form = Form()
        self.to_write = bytearray()
        self.header_name, self.header_value = bytearray(), bytearray()
        self.headers: dict[str, bytes] = {}
        self.name, self.is_file, self.value = "", False, bytearray()
        self.n_parts = 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self.begin,
            "on_header_field": lambda data, start, end: self._grow(self.header_name, data[start:end], MAX_HEADER_BYTES),
            "on_header_value": lambda data, start, end: self._grow(
                self.header_value, data[start:end], MAX_HEADER_BYTES
            ),
            "on_header_end": self.end_header,
            "on_headers_finished": self.end_headers,
            "on_part_data": lambda data, start, end: self.data(data[start:end]),
            "on_part_end": self.end,
        }

    def begin(self) -> None:
        self.headers, self.value = {}, bytearray()
        # Parts are counted and not names, since one name may come again and again.
        self.n_parts += 1
        if self.n_parts > MAX_FIELDS:
            raise BadRequest(f"The form has over {MAX_FIELDS} fields; send one file and its purpose.")

    def end_header(self) -> None:
        self.headers[self.header_name.decode("latin-1").lower()] = bytes(self.header_value)
        self.header_name, self.header_value = bytearray(), bytearray()

    def end_headers(self) -> None:
        _, options = parse_options_header(self.headers.get("content-disposition", b""))
        self.name = options.get(b"name", b"").decode("utf-8", "replace")
        self.is_file = self.name == "file"
        if self.is_file:
            if self.form.filename is not None:
                raise BadRequest("The form holds two files; send them one by one.")
            self.form.filename = options.get(b"filename", b"file").decode("utf-8", "replace")

    def data(self, part: bytes) -> None:
        if self.is_file:
            self.to_write += part
            self.form.n_bytes += len(part)
        else:
            self._grow(self.value, part, MAX_FIELD_BYTES)

    def end(self) -> None:
        if not self.is_file:
            self.form.fields[self.name] = self.value.decode("utf-8", "replace")

    def _grow(self, held: bytearray, part: bytes, most: int) -> None:
        if len(held) + len(part) > most:
            raise BadRequest(f"A field of the form has over {most} bytes; only the file may be long.")
        held += part


async def read_form(request: Request, target: Path, most_bytes: int, takes: Callable[[int], None]) -> Form:
    """Reads the form, and writes its file to `target`. `takes` is told of bytes before they are written, and may refuse
    them. TooLarge where the file is over `most_bytes`, BadRequest where the body is no such form."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise BadRequest("A file is uploaded as multipart/form-data, with the fields `file` and `purpose`.")
    parts, n_bytes = _Parts(), 0
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        with target.open("wb") as file:
            async for chunk in request.stream():
                n_bytes += len(chunk)
                parser.write(chunk)
                # The bounds are looked at with every chunk, so that no disk is filled before the file is refused.
                _check_size(parts.form, n_bytes, most_bytes)
                if len(parts.to_write) >= WRITE_BYTES:
                    await _written(file, parts, takes)
            parser.finalize()
            await _written(file, parts, takes)
    except FormParserError as error:
        raise BadRequest(f"The form cannot be read: {error}.") from None
    if parts.form.filename is None:
        raise BadRequest("The form has no field `file`.")
    return parts.form


def _check_size(form: Form, n_bytes: int, most_bytes: int) -> None:
    """Of a form of which `n_bytes` have come. TooLarge also for one that goes on without end beside its file."""
    if form.n_bytes > most_bytes:
        raise TooLarge(f"The file is over {most_bytes >> 20} MiB; split it, or raise limits.file_mib on the server.")
    if n_bytes - form.n_bytes > MAX_BESIDE_BYTES:
        raise TooLarge(f"The form has over {MAX_BESIDE_BYTES >> 20} MiB beside its file; send the file alone.")


async def _written(file: Any, parts: _Parts, takes: Callable[[int], None]) -> None:
    takes(len(parts.to_write))
    # In a thread, so that a slow disk holds up this upload alone.
    await asyncio.to_thread(file.write, bytes(parts.to_write))
    parts.to_write.clear()
