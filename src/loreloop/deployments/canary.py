"""A deployment's canary: how its share is written, and who gets it."""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

from loreloop.protocol.errors import BadRequest
from loreloop.store.rows import Arm, Deployment


class Share(NamedTuple):
    """A canary's target with its share of the users, in percent."""

    target: str
    percent: float


def parse_share(text: str) -> Share:
    """`TARGET=5%`, or BadRequest."""
    target, _, share = text.rpartition("=")
    try:
        percent = float(share.removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not target or not 0 < percent < 100:
        raise BadRequest(f"The canary {text!r} is not understood; write TARGET=5%, with a share between 0 and 100%.")
    return Share(target, percent)


def arm_for(deployment: Deployment, user: str | None) -> Arm:
    """Whose turn it is: for a `user` always the same arm, and the canary for good as long as its share only grows."""
    split = deployment.split
    if split.canary is None:
        return split.main
    # Not by the version: a user must not hop to and fro with every change of the share.
    at_percent = _at_percent(f"{deployment.name}\0{user}") if user else random.uniform(0, 100)
    return split.canary if at_percent < split.canary_percent else split.main


def _at_percent(text: str) -> float:
    """A place in 0 … 100 that depends on the text alone, in every process."""
    # Python's own hash differs from process to process, and a user would change sides with every restart.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64 * 100
