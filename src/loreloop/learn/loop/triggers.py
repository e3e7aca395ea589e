"""When a cycle begins: by a count of statements, at a time of the night, or since somebody asks. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from loreloop.learn.loop.config import Triggers


@dataclass(frozen=True)
class Moment:
    """What is known when it is asked: the time in seconds since the epoch, the statements since the last cycle, the
    date of the last nightly cycle, and whether somebody has asked for one."""

    now: float
    n_said: int
    night: str
    asked: bool = False


def due(triggers: Triggers, moment: Moment) -> str | None:
    """Why a cycle begins now; None where it does not."""
    if moment.asked:
        return "asked"
    if triggers.feedback and moment.n_said >= triggers.feedback:
        return "feedback"
    is_night = _is_past(triggers, moment.now) and moment.night != today(moment.now)
    return "nightly" if is_night and moment.n_said else None


def first_night(triggers: Triggers, now: float) -> str:
    """The night of a loop that begins now: behind the hour it waits for the next one."""
    return today(now) if _is_past(triggers, now) else ""


def today(now: float) -> str:
    """The date on this machine."""
    return datetime.fromtimestamp(now).strftime("%Y-%m-%d")


def _is_past(triggers: Triggers, now: float) -> bool:
    clock = datetime.fromtimestamp(now).strftime("%H:%M")
    return triggers.nightly is not None and clock >= triggers.nightly
