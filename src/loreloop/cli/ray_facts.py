"""What the processes of an engine on several hosts say of themselves when they meet, and what each is told to do."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loreloop.engine.precision import Wanted
    from loreloop.host.lifeline import Address


@dataclass(frozen=True)
class Question:
    """What a process is asked when ranks meet: whether it has the checkpoint `folder`, whether it sees `mark`, a file
    that the server has just written to its data folder, and what these settings come to on its host."""

    folder: str
    mark: str
    device: str
    precision: Wanted


@dataclass(frozen=True)
class Facts:
    """What a process says of itself when ranks meet. `traits` (versions, and on and in what it computes) and
    `fingerprint` are the same on all, or they do not work together; `sees_data` is whether the server's data folder
    lies on its host too."""

    host: str
    address: str
    traits: dict[str, str]
    fingerprint: str
    sees_data: bool


@dataclass(frozen=True)
class Orders:
    """What a rank is to do: `plan` is the server's, as it is written; at `store_port` is the first process's store."""

    plan: bytes
    base_model: str
    replica: int  # 0 is the engine that trains
    rank: int
    lifeline: Address
    store_port: int
    interface: str


def facts_of(asked: Question, address: str) -> Facts:
    """Of this process, at this address of its host. BadRequest where the checkpoint is not there."""
    import platform

    import torch

    from loreloop import __version__
    from loreloop.engine import processor
    from loreloop.engine.precision import chosen_device, chosen_precision
    from loreloop.formats.fingerprint import fingerprint

    device = chosen_device(asked.device)
    return Facts(
        host=socket.gethostname(),
        address=address,
        traits={
            "loreloop": __version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "instructions": processor.instructions(),
            # By `auto` each host would choose for itself.
            "device": device.type,
            "precision": chosen_precision(asked.precision, device),
        },
        fingerprint=fingerprint(Path(asked.folder)),
        sees_data=Path(asked.mark).exists(),
    )


def check_alike(mine: Facts, others: Sequence[Facts], folder: str, run_folder: Path) -> None:
    """BadRequest where a host has other versions or another checkpoint than this one, computes on another device or in
    another precision, or has not the data folder."""
    from loreloop.protocol.errors import BadRequest

    for other in others:
        who = f"{other.host} ({other.address})"
        for what, here in mine.traits.items():
            # What ranks compute alike must come out alike, to the bit.
            if (there := other.traits.get(what)) != here:
                raise BadRequest(f"Hosts of one mesh must be alike: {who} has {what} {there}, and this host {here}.")
        if other.fingerprint != mine.fingerprint:
            raise BadRequest(
                f"{who} has another model in {folder} than this host: their fingerprints are {other.fingerprint} and "
                f"{mine.fingerprint}. Copy the folder there."
            )
        if not other.sees_data:
            raise BadRequest(
                f"{who} does not see the data folder {run_folder.parent}; checkpoints are read there by every rank. "
                "Put it on storage that all hosts share, at the same path."
            )
