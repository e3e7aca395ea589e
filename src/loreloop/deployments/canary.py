"""A deployment's canary: how its share is written, and who gets it."""

from __future__ import annotations

import hashlib
import random
import re
import secrets
from typing import NamedTuple

from loreloop.protocol.errors import BadRequest
from loreloop.store.rows import Arm, Deployment

ISSUED = "ep_"
_ISSUED_ID = re.compile(r"ep_[0-9a-f]{32}")


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


def arm_for(deployment: Deployment, user: str | None, episode_id: str | None = None) -> Arm:
    """Whose turn it is: for a `user`, and for an episode, always the same arm, and the canary for good as long as its
    share only grows."""
    split = deployment.split
    if split.canary is None:
        return split.main
    return split.canary if _place(deployment.name, user, episode_id) < split.canary_percent else split.main


def new_episode_id(deployment_name: str, user: str | None) -> str:
    """An id for an episode that begins. It holds the place in 0 … 100 by which its arm is chosen, so that an agent
    which passes back the id alone stays with the arm that its user had, after a restart too."""
    place = _place(deployment_name, user, None) / 100
    return f"{ISSUED}{min(int(place * 2**32), 2**32 - 1):08x}{secrets.token_hex(12)}"


def _place(deployment_name: str, user: str | None, episode_id: str | None) -> float:
    """By an id that was issued here, else by the user, else by an id that a client has chosen; else at random."""
    if episode_id and _ISSUED_ID.fullmatch(episode_id):
        return int(episode_id[len(ISSUED) :][:8], 16) / 2**32 * 100
    # Not by the version: a user must not hop to and fro with every change of the share.
    if by := user or episode_id:
        return _at_percent(f"{deployment_name}\0{by}")
    return random.uniform(0, 100)


def _at_percent(text: str) -> float:
    """A place in 0 … 100 that depends on the text alone, in every process."""
    # Python's own hash differs from process to process, and a user would change sides with every restart.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64 * 100
