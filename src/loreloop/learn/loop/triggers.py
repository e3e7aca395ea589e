"""When a cycle begins: by a count of statements, at a time of the night, or since somebody asks. Pure functions.

A night is known by the date on which its hour came. A clock may stand wrong, or be set back; a machine may sleep over
an hour, and a summer's hour may not come at all. So a night is not met at its minute: it is the newest whose hour has
come, and new where it was not noted yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from loreloop.learn.loop.config import Triggers

ONE_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Moment:
    """What is known when it is asked: the time in seconds since the epoch, the statements since the last cycle, the
    night that was noted last, and whether somebody has asked for a cycle."""

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
    is_new = night_of(triggers, moment.now, moment.night) != moment.night
    return "nightly" if is_new and moment.n_said else None


def night_of(triggers: Triggers, now: float, noted: str) -> str:
    """The night to be noted now (YYYY-MM-DD): the newest whose hour has come, where it is newer than what was noted.
    However many nights were missed, they are one. For a loop that begins, with nothing `noted`, that night is over."""
    if triggers.nightly is None:
        return noted
    clock = datetime.fromtimestamp(now, ZoneInfo(triggers.zone) if triggers.zone is not None else None)
    # By what the clock shows: an hour that comes twice is past at once, and one that is skipped is past behind it.
    newest = clock.date() if clock.strftime("%H:%M") >= triggers.nightly else clock.date() - ONE_DAY
    if noted <= newest.isoformat():
        return newest.isoformat()
    # Set back by less than a day, a clock has the same night before it once more. What lies further ahead was noted by
    # a clock that stood wrong, and would keep the loop waiting until that day.
    return noted if noted <= (newest + ONE_DAY).isoformat() else newest.isoformat()
