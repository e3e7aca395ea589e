"""How much one cycle learns: of more corrections than it has time for, which are its own and which wait for the next.

Knows no training; how many there is time for is what its plan says.
"""

from __future__ import annotations

from dataclasses import replace

from loreloop.learn.loop.collecting import Collected, Rules
from loreloop.learn.loop.config import Training
from loreloop.learn.loop.cycle_files import data_of, heard_in
from loreloop.learn.loop.state import LoopFolder, State
from loreloop.learn.loop.training import most_corrections


def portioned(rules: Rules, training: Training, folder: LoopFolder, state: State) -> Rules:
    """The rules of what may be learned, with what the state's cycle has time for. One that begins where the loop began
    learns everything at once, however long that takes: nothing that was learned before is in it."""
    if state.from_start:
        return replace(rules, tried={})
    # A cycle that ended since words of it were taken back has tried nothing of what is left of them; and a death may
    # have left this one's own folder.
    void = (one.cycle for one in folder.decisions() if one.key.endswith(":void") and one.person is None)
    untried = {*void, state.cycle}
    held, first = held_by_champion(folder, state)
    return replace(
        rules,
        most_corrections=most_corrections(training),
        tried=heard_in(folder.path, lambda cycle: cycle >= first and cycle not in untried),
        holds=heard_in(folder.path, lambda cycle: cycle in held),
    )


def held_by_champion(folder: LoopFolder, state: State) -> tuple[frozenset[int], int]:
    """The cycles that the champion has come from, one behind another, and the first that counts as a try: what was
    learned before weights that began anew is in nothing that answers. Champions that somebody has rolled back or
    replaced by hand are not among them."""
    promoted = {one.candidate: one for one in folder.decisions() if one.verdict == "promoted" and one.person is None}
    found: set[int] = set()
    target: str | None = state.champion.target
    while (one := promoted.get(target)) is not None and one.cycle not in found:
        found.add(one.cycle)
        place = folder.cycle(one.cycle)
        data = data_of(place) if (place / "data.json").exists() else None
        if data is not None and data.from_start:
            return frozenset(found), one.cycle
        # Weights that were made elsewhere have not begun with the champion before them.
        target = one.champion if data is not None and data.used else None
    return frozenset(found), 0


def told_of_cycle(number: int, found: Collected) -> str:
    """What is said of a cycle that begins to train."""
    what = f"Cycle {number} trains a candidate."
    if not found.left:
        return what
    return f"{what} It learns {found.n_corrections} corrections; {found.left} more wait for the next one."


def told_of_wait(n_said: int, left: int, wanted: int) -> str:
    """What is said of a loop that waits for statements."""
    more = f", and {left} corrections for which it had no time" if left else ""
    return f"{n_said} statements since the last cycle{more}; " + (
        f"{wanted} begin one." if wanted else "no number begins one."
    )
