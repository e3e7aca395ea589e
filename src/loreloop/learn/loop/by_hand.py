"""What a person does to a loop beside its own course: look at it, promote, roll back.

A change goes to the deployment alone, which is what answers users; the loop finds it at its next step and writes it
down. So it works at once, whether the loop runs, waits or is down.
"""

from __future__ import annotations

from typing import Any

import msgspec

from loreloop.learn.loop.adopting import state_of
from loreloop.learn.loop.server import Server
from loreloop.learn.loop.state import LoopFolder, Revision, State
from loreloop.protocol.errors import Conflict


def status_of(folder: LoopFolder) -> dict[str, Any]:
    """Where a loop stands, in plain values: stage, revisions, why nothing was promoted yet, and the last decision."""
    state = begun(folder)
    decisions = folder.decisions()
    return {
        "stage": state.stage,
        "paused": folder.paused,
        "cycle": state.cycle,
        "champion": state.champion.target,
        "previous": state.previous.target if state.previous else None,
        "candidate": state.candidate.target if state.candidate else None,
        "why": folder.why()["sentence"],
        "numbers": folder.why()["numbers"],
        "last_decision": msgspec.to_builtins(decisions[-1]) if decisions else None,
    }


def propose(folder: LoopFolder, target: str, weights: str) -> None:
    """Has the loop try weights that were made elsewhere: `target` for sampling, and the saved state `weights` from
    which training would go on. Conflict where the two are not of one run, or something is proposed already."""
    begun(folder)
    state_of(target, weights)
    if folder.proposed() is not None:
        raise Conflict("Weights are proposed already; the loop tries them when it has nothing else in hand.")
    folder.propose(Revision(target=target, state=weights))


def retrain(folder: LoopFolder) -> None:
    """Has the next cycle begin at once, where the loop began: its candidate knows nothing of persons who were deleted
    since, whatever the champion has learned from them. Conflict where the loop has not begun."""
    begun(folder)
    folder.retrain(True)


def promote(folder: LoopFolder, server: Server) -> str:
    """Has the candidate answer everybody; gives its path. Conflict where there is none that users meet."""
    state = begun(folder)
    if state.candidate is None or state.stage != "canary":
        raise Conflict(
            f"The loop is at its stage {state.stage!r}, and users meet no candidate; see `loreloop loop status`."
        )
    server.deploy(state.candidate.target)
    return state.candidate.target


def roll_back(folder: LoopFolder, server: Server) -> str:
    """Has the champion answer everybody again where a candidate is being tried, and otherwise the champion before it;
    gives the path. Conflict where there is nothing to go back to."""
    state = begun(folder)
    if state.stage == "canary":
        server.deploy(state.champion.target)
        return state.champion.target
    if state.previous is None:
        raise Conflict("This loop has promoted nothing yet, so that there is nothing to go back to.")
    server.deploy(state.previous.target)
    return state.previous.target


def begun(folder: LoopFolder) -> State:
    """The loop's state; Conflict where it has not begun."""
    state = folder.load()
    if state is None:
        raise Conflict(f"No loop has begun in {folder.path}; `loreloop loop run` begins it.")
    return state
