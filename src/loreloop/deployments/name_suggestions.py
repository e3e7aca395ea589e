"""What an unknown name may have meant: a refusal that lists a few names which come near, if any does.

Near is a name of which more letters are right than wrong, or a part of one. Looks at a bounded number of candidates,
however many names there are, and however long the unknown one is.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from loreloop.protocol.errors import NotFound
from loreloop.store.rows import CheckpointRow

REACH = 32  # names looked at on each side of the unknown one in the alphabet
N_SHOWN = 3
SHORTEST_PART = 3  # letters of what counts as a name's part
LONGEST = 200  # characters of the unknown name that count


def around(ordered: Sequence[str], name: str) -> Sequence[str]:
    """The neighbours of `name` among names in alphabetical order."""
    index = bisect.bisect_left(ordered, name)
    return ordered[max(0, index - REACH) : index + REACH]


def saved(rows: Iterable[CheckpointRow]) -> dict[str, str]:
    """Paths of checkpoints by what they may be asked as: the whole path, or its last part alone."""
    paths = {str(row.path): row.name for row in rows}
    return {name: path for path, name in paths.items()} | {path: path for path in paths}


def refusal(sentence: str, name: str, candidates: Iterable[str], paths: dict[str, str] | None = None) -> NotFound:
    """`sentence`, and which of the candidates come nearest to `name`; `paths` are shown in place of their spellings."""
    shown = dict.fromkeys(candidates) | (paths or {})
    # Capital letters are the commonest slip, and must not count as a wrong letter.
    distances = {spelled: distance(name[:LONGEST].lower(), spelled[:LONGEST].lower()) for spelled in shown}
    near = sorted((s for s in shown if _is_near(name, s, distances[s])), key=lambda s: distances[s])[:N_SHOWN]
    suggestions = " or ".join(repr(match) for match in dict.fromkeys(shown[spelled] or spelled for spelled in near))
    return NotFound(sentence + (f" Did you mean {suggestions}?" if suggestions else ""))


def _is_near(name: str, other: str, steps: int) -> bool:
    name, other = name.lower(), other.lower()
    short, long = sorted((name, other), key=len)
    is_part = len(short) >= SHORTEST_PART and short in long
    return is_part or 2 * steps < len(long)


def distance(one: str, other: str) -> int:
    """Levenshtein's: the least number of letters put in, taken out or exchanged that makes one name of the other."""
    row = list(range(len(other) + 1))
    # One row of the table is enough: `before` holds the entry up and to the left, which was just overwritten.
    for i, letter in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != against))
    return row[-1]


def not_served(name: str, served: Sequence[str]) -> str:
    """The sentence for a name that is not served, with the first eight names that are."""
    more = f" and {len(served) - 8:,} more" if len(served) > 8 else ""
    return f"The model {name[:LONGEST]!r} is not served here. Served: {', '.join(served[:8])}{more}."
