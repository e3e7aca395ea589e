"""What a loop makes of a deployment that somebody else has moved: by hand, or before it began. Pure functions.

Whoever moves the deployment is heeded: the loop goes on from what answers users now.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from loreloop.learn.loop.door import Deployed
from loreloop.learn.loop.state import Revision, State, Verdict
from loreloop.protocol.errors import Conflict


@dataclass(frozen=True)
class Adopted:
    """The state as somebody's change wants it, with the decision that is written down for it."""

    state: State
    stage: str
    verdict: Verdict
    sentence: str


def adopted(state: State, now: Deployed, start: str | None, decided: Verdict | None) -> Adopted | None:
    """What somebody has changed; None where the deployment stands as it should. `decided` is the loop's own verdict on
    its canary, by which it may have moved the deployment before it died. Conflict as for `state_of`."""
    ours, candidate = state.champion.target, state.candidate
    # What was decided stays decided, so that a change behind it is a decision of its own.
    key = "canary" if decided is None else f"adopted-{now.version}"
    if candidate is not None and now.target == candidate.target:
        by_hand = Adopted(promoted(state), key, "promoted", "Somebody promoted the candidate by hand.")
        return None if decided == "promoted" else by_hand
    if state.stage == "canary" and candidate is not None and now.target == ours and now.canary != candidate.target:
        what = (
            "Somebody rolled the candidate back by hand."
            if now.canary is None
            else f"Somebody put {now.canary} in the candidate's place as a canary by hand."
        )
        by_hand = Adopted(ended(state), key, "rolled_back", what)
        return None if decided == "rolled_back" else by_hand
    if now.target == ours:
        return None
    stage, before = f"adopted-{now.version}", state.previous
    if before is not None and now.target == before.target:
        found = replace(ended(state), champion=before, previous=state.champion)
        return Adopted(found, stage, "adopted", "Somebody rolled the champion back by hand.")
    champion = Revision(target=now.target, state=state_of(now.target, start))
    found = replace(ended(state), champion=champion, previous=state.champion)
    return Adopted(found, stage, "adopted", f"Somebody deployed {now.target}.")


def promoted(state: State) -> State:
    """The state behind a promotion."""
    assert state.candidate is not None, "there is nothing else to promote"
    return replace(state, stage="idle", champion=state.candidate, previous=state.champion, candidate=None)


def ended(state: State) -> State:
    """The state behind a cycle that promoted nothing."""
    return replace(state, stage="idle", candidate=None)


def state_of(target: str, start: str | None) -> str | None:
    """The training state behind a deployed target: none for a bare base; `start` where it is of the same run. Conflict
    where the target's state is not known."""
    if not target.startswith("tinker://"):
        return None
    if start is not None and _run_of(start) == _run_of(target):
        return start
    raise Conflict(
        f"The deployment answers with {target}, which this loop has not made: name the saved weights that it was made "
        "of (tinker://RUN/weights/NAME, of the same run) as `start` in loop.toml, or deploy the base model."
    )


def _run_of(path: str) -> str:
    return path.removeprefix("tinker://").split("/")[0]
