"""Tells the server where the loop stands, for its pages: nothing of the loop depends on it."""

from __future__ import annotations

import contextlib
import math

from loreloop.learn.loop.cycle import Course
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.errors import LoreloopError
from loreloop.protocol.loop_rest import LONGEST_SENTENCE, LoopStanding, ToldDecision

MOST_DECISIONS = 20


def standing_of(folder: LoopFolder) -> LoopStanding | None:
    """What `loreloop loop status` says, with the last decisions; None for a loop that has not begun."""
    state = folder.load()
    if state is None:
        return None
    why = folder.why()
    decisions = tuple(
        ToldDecision(
            at=one.at,
            cycle=one.cycle,
            stage=one.stage,
            verdict=one.verdict,
            sentence=one.sentence[:LONGEST_SENTENCE],
        )
        # Those of single persons name them, and are no matter of the deployment's own.
        for one in folder.decisions()
        if one.person is None
    )
    return LoopStanding(
        stage=state.stage,
        cycle=state.cycle,
        champion=state.champion.target,
        candidate=state.candidate.target if state.candidate else None,
        paused=folder.paused,
        sentence=str(why["sentence"])[:LONGEST_SENTENCE],
        numbers={
            name: float(value)
            for name, value in why["numbers"].items()
            if isinstance(value, int | float) and math.isfinite(value)
        },
        decisions=decisions[-MOST_DECISIONS:],
    )


def tell_server(course: Course) -> None:
    """Where what there is to tell has changed."""
    standing = standing_of(course.folder)
    if standing is None or standing == course.shown:
        return
    # One that is away, or of an older version, hears it another time or never.
    with contextlib.suppress(LoreloopError):
        course.server.stand(standing)
        course.shown = standing
