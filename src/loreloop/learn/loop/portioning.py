"""How much one cycle learns: of more corrections than it has time for, which are its own and which wait for the next.

Knows no training; how many there is time for is what its plan says.
"""

from __future__ import annotations

from dataclasses import replace

from loreloop.learn.loop.collecting import Rules
from loreloop.learn.loop.config import Training
from loreloop.learn.loop.cycle_files import heard_in
from loreloop.learn.loop.state import LoopFolder, State
from loreloop.learn.loop.training import most_corrections


def portioned(rules: Rules, training: Training, folder: LoopFolder, state: State) -> Rules:
    """The rules of what may be learned, with what the state's cycle has time for. One that begins where the loop began
    learns everything at once, however long that takes: nothing that was learned before is in it."""
    most = most_corrections(training)
    if most is None or state.from_start:
        return rules
    decisions = folder.decisions()
    # A cycle that ended since words of it were taken back has tried nothing of what is left of them; and a death may
    # have left this one's own folder.
    untried = {one.cycle for one in decisions if one.key.endswith(":void") and one.person is None} | {state.cycle}
    promoted = {one.cycle for one in decisions if one.verdict == "promoted" and one.person is None}
    promoted -= {one.cycle for one in decisions if one.verdict == "rolled_back"}
    return replace(
        rules,
        most_corrections=most,
        tried=heard_in(folder.path, lambda cycle: cycle not in untried),
        holds=heard_in(folder.path, lambda cycle: cycle in promoted),
    )


def told_of_cycle(state: State, training: Training) -> str:
    """What is said of a cycle that begins to train."""
    what = f"Cycle {state.cycle} trains a candidate."
    if not state.left:
        return what
    return f"{what} It learns {most_corrections(training)} corrections; {state.left} more wait for the next one."


def told_of_wait(n_said: int, left: int, wanted: int) -> str:
    """What is said of a loop that waits for statements."""
    more = f", and {left} corrections for which it had no time" if left else ""
    return f"{n_said} statements since the last cycle{more}; " + (
        f"{wanted} begin one." if wanted else "no number begins one."
    )
