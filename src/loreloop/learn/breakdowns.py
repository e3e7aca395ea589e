"""Why a run that had good examples cannot go on, each kind by its own name, so that nobody looks for it in the data.

Knows neither learners nor jobs, which have codes for them.
"""

from __future__ import annotations

from loreloop.protocol.errors import BadRequest


class Breakdown(BadRequest):
    """A run breaks off; what it has saved is whole."""


class LossDiverged(Breakdown):
    """A loss is no finite number."""


class NothingSampled(Breakdown):
    """Not one answer of a step came back from the server."""


class StepUngraded(Breakdown):
    """Not one answer of a step could be graded, though answers of earlier steps may have been: a judge is out, say."""


class NothingGraded(Breakdown):
    """A grader has given no reward to any answer at all."""
