"""`tinker://<run>/<kind>/<name>`: the names of checkpoints, parsed and printed; ids as file names.

Knows the grammar only, not which checkpoints exist.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from loreloop.protocol.errors import BadRequest

SCHEME = "tinker://"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CheckpointKind(StrEnum):
    """The middle part of a path; its value is the spelling on the wire."""

    TRAINING = "weights"
    SAMPLER = "sampler_weights"
    EXTERNAL = "external_weights"


class CheckpointPath(msgspec.Struct, frozen=True):
    """A checkpoint's full name; `str()` of it is the `tinker://` path that `parse_path` reads."""

    run_id: str
    kind: CheckpointKind
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.run_id}/{self.kind.value}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """The name within the run, `<kind>/<name>`, by which REST routes address the checkpoint."""
        return f"{self.kind.value}/{self.name}"


def parse_path(text: str) -> CheckpointPath:
    """`tinker://…` as a value; BadRequest says which part is wrong."""
    parts = text.removeprefix(SCHEME).split("/")
    # The name is a folder's name later, so a path with more parts is refused rather than joined.
    if not text.startswith(SCHEME) or len(parts) != 3 or not parts[0]:
        raise BadRequest(f"{text!r} is no checkpoint path; write tinker://<run id>/<weights|sampler_weights>/<name>.")
    run_id, kind, name = parts
    if kind not in set(CheckpointKind):
        raise BadRequest(f"{text!r} names the kind {kind!r}; it must be one of {', '.join(CheckpointKind)}.")
    return CheckpointPath(run_id, CheckpointKind(kind), check_name(name))


def check_name(name: str) -> str:
    """A checkpoint name that is one safe path component, or BadRequest."""
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"The checkpoint name {name!r} cannot be used: write 1 to 128 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit (no slashes)."
        )
    return name


def model_id(session_id: str, model_seq_id: int) -> str:
    """The id of a training run; the SDK computes the same string on its side."""
    return f"{session_id}:train:{model_seq_id}"


def sampling_session_id(session_id: str, seq_id: int) -> str:
    """The id of a sampler; like `model_id`, the SDK computes the same string on its side."""
    return f"{session_id}:sample:{seq_id}"


def request_id(owner_id: str, seq_id: int) -> str:
    """The id of one operation: a repeated POST of the same sequence id gets the same one."""
    return f"{owner_id}:{seq_id}"


def owner_of(request_id: str) -> str:
    """The run or sampler that an operation's id was made of."""
    # From the right, because the owner's own id has colons in it.
    return request_id.rpartition(":")[0]


def file_name(identifier: str) -> str:
    """An id as the name of a file or folder."""
    # Ids are made here or are UUIDs, so that two different ones do not meet in one name.
    return identifier.replace(":", "_").replace("/", "_")
