"""What a file for fine-tuning holds, found out at its upload: how many examples, of which forms, with images or not.

A mistake is told with its line and field. Runs as a process of its own too (`python -m`), since a large file would take
the interpreter from everybody else. Knows neither tokens nor models.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from loreloop.learn.examples import Demonstration, Mark, Preference, Task
from loreloop.learn.files import BadLine, demonstrations, has_pictures, marks, preferences, tasks
from loreloop.protocol.errors import BadRequest

Form = Literal["demonstrations", "preferences", "marks", "tasks"]
READERS: Mapping[Form, Callable[[Any], Iterator[Any]]] = {
    "demonstrations": demonstrations,
    "preferences": preferences,
    "marks": marks,
    "tasks": tasks,
}
LONGEST_LINE = 64 << 20  # bytes
LARGE_BYTES = 4 << 20  # what is smaller is read within moments
WRONG = 3  # exit code of the process for a file that cannot be used


class Contents(msgspec.Struct, frozen=True):
    """What is in a file. Conversations that end with a user's words after answers may be both imitated and gone on
    from, so there may be two forms."""

    n_examples: int
    forms: tuple[Form, ...]
    has_images: bool


def contents_of(file: Path) -> Contents:
    """What a file holds. BadRequest where it is empty, or says which line and field cannot be used."""
    candidates = _candidates(file)
    found: dict[Form, Contents] = {}
    first_error: BadRequest | None = None
    for form in candidates:
        try:
            found[form] = _read_as(file, form)
        except BadRequest as error:
            # Of two forms that a file may have, the first is what its first line looks like.
            first_error = first_error or error
    if isinstance(first_error, BadLine) and not found:
        first_error = _mixed(file, first_error.line, candidates) or first_error
    if not found:
        raise first_error or BadRequest("The file is empty; it holds one JSON object a line.")
    first = next(iter(found.values()))
    return msgspec.structs.replace(first, forms=tuple(found))


def _candidates(file: Path) -> tuple[Form, ...]:
    """By the fields of the first line; whatever is wrong with it is told by the reader."""
    with file.open("rb") as lines:
        line = next((line for line in _bounded(lines) if line.strip()), None)
    if line is None:
        raise BadRequest("The file is empty; it holds one JSON object a line.")
    return _forms_of(line)


def _forms_of(line: bytes) -> tuple[Form, ...]:
    """The forms that a line may have by its fields; that of demonstrations, where nothing can be told."""
    try:
        first = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ("demonstrations",)
    if not isinstance(first, dict):
        return ("demonstrations",)
    if not first.keys().isdisjoint(("input", "preferred_output", "non_preferred_output", "chosen", "rejected")):
        return ("preferences",)
    if not first.keys().isdisjoint(("completion", "label")) and "messages" not in first:
        return ("marks",)
    messages = first.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    ends_open = isinstance(last, dict) and last.get("role") in ("user", "tool")
    return ("tasks", "demonstrations") if ends_open else ("demonstrations",)


def _mixed(file: Path, number: int, forms: tuple[Form, ...]) -> BadRequest | None:
    """What to say where a line that cannot be read is one of another form than the first; None where it is not."""
    with file.open("rb") as lines:
        line = next(itertools.islice(_bounded(lines), number - 1, None))
    others = _forms_of(line)
    if set(others) & set(forms) or not _is_readable(line, others[0]):
        return None
    return BadRequest(f"Line {number}: is one of {others[0]}, and the first line one of {forms[0]}; send two files.")


def _is_readable(line: bytes, form: Form) -> bool:
    try:
        return bool([*READERS[form]([line])])
    except BadRequest:
        return False


def _read_as(file: Path, form: Form) -> Contents:
    n_examples, images = 0, False
    with file.open("rb") as lines:
        for example in READERS[form](_bounded(lines)):
            n_examples += 1
            images = images or _shows(example)
    return Contents(n_examples, (form,), images)


def _bounded(lines: Any) -> Iterator[bytes]:
    for number in itertools.count(1):
        line = lines.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise BadRequest(f"Line {number} is longer than {LONGEST_LINE >> 20} MiB; one example a line is meant.")
        yield line


def _shows(example: Demonstration | Preference | Mark | Task) -> bool:
    match example:
        case Demonstration():
            return has_pictures(example.conversation)
        case Preference():
            return has_pictures(example.prompt, example.chosen, example.rejected)
        case Mark():
            return has_pictures(example.prompt, example.answer)
    return has_pictures(example.prompt)


def main(file: str) -> int:
    """Prints what a file holds, as JSON, or what is wrong with it; the exit code tells which of the two."""
    try:
        sys.stdout.buffer.write(msgspec.json.encode(contents_of(Path(file))))
    except BadRequest as error:
        sys.stdout.write(error.message)
        return WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
