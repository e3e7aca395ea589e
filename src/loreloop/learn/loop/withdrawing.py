"""Whether a cycle may still learn what it has collected: whose words were deleted or taken back since.

Asked right before lines are trained on, when they were, and before a candidate that knows them answers everybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from loreloop.learn.loop.collecting import newest_of
from loreloop.learn.loop.cycle_files import Data
from loreloop.learn.loop.server import Feeds


def withdrawn(data: Data, server: Feeds, unknown: Sequence[str] = ()) -> str:
    """What has been taken back of a cycle's data, in words; "" for nothing. `unknown` are turns that the server does
    not have any more."""
    # A candidate that was made elsewhere has no data of ours.
    if not data.turns:
        return ""
    if gone := data.persons & server.deleted_persons():
        return f"{len(gone)} persons whose words it was to learn were deleted"
    if unknown:
        return f"{len(unknown)} turns are gone, or nothing may be learned from them any more"
    used = {*data.turns}
    # A turn whose marks change stands in the feed anew, so what was read before need not be read again.
    since = newest_of(turn for turn in server.turns(data.turns_seen) if turn.id in used)
    if taken := [turn for turn in since.values() if turn.side or not turn.consent]:
        return f"of {len(taken)} turns that it was to learn, the consent was taken back"
    return ""
