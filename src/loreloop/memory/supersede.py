"""Which passages a new statement makes out of date: "my gym is now in Bergen" goes for "my gym is in Oslo".

It goes by the surface. The new statement must say that something changed, both must come from the same speaker, and
the old sentence's content words must stand in the new one, all but names and numbers or most of them: what differs
is taken to be the value. A
sentence that says something else beside it survives. No passage of an assistant or a tool is touched.

What follows from an outdated statement goes with it ("because my gym is there I take tram 31 to Oslo"): a sentence of
the same speaker about the same thing that gives it as a reason, or that names the old value. What happened in the past
stays true, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loreloop.memory.importance import PAST
from loreloop.memory.state import Segment
from loreloop.memory.words import content_of, sentences, words_of

CHANGE = re.compile(
    r"\b(?:now|no longer|any ?more|changed|switched|replaced|renamed|moved|correction|update[ds]?)\b", re.IGNORECASE
)
DELETION = re.compile(r"\b(?:forget|delete|erase|disregard)\b", re.IGNORECASE)
REASON = re.compile(
    r"\b(?:because|therefore|hence|thus|that(?:['’]s| is) why|which is why|since (?:my|our))\b|, so\b", re.IGNORECASE
)
OWN = re.compile(r"\b(?:[Mm]y|[Oo]ur|I|[Ww]e)\b")
FRAME = """now longer anymore changed change switched switch replaced renamed moved correction update updated updates
forget delete erase disregard said told mentioned no not way btw note actually remember"""
FRAME_WORDS = frozenset(FRAME.split())  # say that something is told or changed, not what
SHARED_OF_CHANGED = 0.5  # of the old sentence's content words
SHARED_OF_DELETED = 0.75  # of the request's content words
FEWEST_SHARED = 2
LONGEST = 12  # content words of a sentence that states one fact
MOST_SENTENCES = 4  # of a turn that states a fact; in a longer one the words of a change are about other things


@dataclass(frozen=True)
class Claim:
    """A sentence of the new turn that replaces or takes back what was said before."""

    words: frozenset[str]
    deletes: bool
    marks: frozenset[str] = frozenset()

    @property
    def thing(self) -> frozenset[str]:
        """What it is about: its words but for the value."""
        return self.words - self.marks


def claims_of(segment: Segment) -> list[Claim]:
    """What the user's new turn replaces or takes back; nothing for another role, or for a turn of more than four
    sentences."""
    pieces = sentences(segment.text)
    # Only users say what holds of themselves; an assistant's "now" changes no fact of theirs.
    if segment.role != "user" or len(pieces) > MOST_SENTENCES:
        return []
    found = []
    for sentence in filter(states_a_fact, pieces):
        deletes = bool(DELETION.search(sentence))
        if deletes or CHANGE.search(sentence):
            found.append(Claim(content_of(sentence) - FRAME_WORDS, deletes, words_of(sentence).marks))
    return [claim for claim in found if claim.words]


def states_a_fact(sentence: str) -> bool:
    """Of the speaker, short, and no question."""
    short = len(content_of(sentence)) <= LONGEST
    return short and bool(OWN.search(sentence)) and not sentence.rstrip().endswith("?")


def outdated(segments: Sequence[Segment], new: Segment) -> dict[int, str]:
    """Positions of segments that hold outdated sentences, with the text that is left of them, perhaps ""."""
    claims = claims_of(new)
    speaker = speaker_of(new)
    if not claims:
        return {}
    spoken: dict[int, list[str]] = {}  # sentences of what the speaker said, where they share a word with a claim
    for position, segment in enumerate(segments):
        # A pin is the caller's word, which no heuristic overrules.
        if segment.pinned or segment.role != "user" or segment.id == new.id or speaker_of(segment) != speaker:
            continue
        content = words_of(segment.text).content
        # Most segments share no word with a claim, and need not be cut into sentences.
        if any(claim.words & content for claim in claims):
            spoken[position] = sentences(segment.text)
    return left_of(spoken, claims)


def left_of(spoken: dict[int, list[str]], claims: Sequence[Claim]) -> dict[int, str]:
    """For each position that loses a sentence, the text of the others. `spoken` has the speaker's sentences by
    position."""
    every = [piece for pieces in spoken.values() for piece in pieces]
    gone: set[str] = set()
    for claim in claims:
        direct = {piece for piece in every if goes(piece, claim)}
        # The old values are known only from the sentences that go directly, so those are found first.
        values = frozenset(mark for piece in direct for mark in words_of(piece).marks) - claim.words
        gone |= direct | {piece for piece in every if follows(piece, claim, values)}
    left = {}
    for position, pieces in spoken.items():
        kept = [piece for piece in pieces if piece not in gone]
        if len(kept) < len(pieces):
            left[position] = "".join(kept).strip()
    return left


def follows(sentence: str, claim: Claim, old_values: frozenset[str]) -> bool:
    """A condensed sentence has lost its "because", so the old value must be looked for too."""
    content = content_of(sentence) - FRAME_WORDS
    # A request to forget names one fact, and what was concluded from it was not asked to go.
    if claim.deletes or not claim.thing or not claim.thing <= content or len(content) > LONGEST:
        return False
    if PAST.search(sentence) or sentence.rstrip().endswith("?"):
        return False
    return bool(REASON.search(sentence)) or bool(content & old_values)


def goes(sentence: str, claim: Claim) -> bool:
    """A condensed sentence has lost its "my", so only its length is asked of an old one."""
    subject = content_of(sentence) - FRAME_WORDS
    shared = len(subject & claim.words)
    if not shared or len(subject) > LONGEST:
        return False
    frame = subject - words_of(sentence).marks
    if claim.deletes:
        return shared >= SHARED_OF_DELETED * len(claim.words)
    if frame and frame <= claim.words:
        return True
    if frame and not frame & claim.words:
        return False  # two facts may share a value
    return shared >= max(FEWEST_SHARED, SHARED_OF_CHANGED * len(subject))


def speaker_of(segment: Segment) -> str:
    """The head without the day."""
    return segment.head.split(" (")[0].rstrip(": ")
