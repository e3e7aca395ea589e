"""Which engine draws a sample, where a base model has several: the one that knows most of its prompt, if it is not
busier than the others by more than that is worth.

The choice is a pure function. What engines know is remembered here by digests of prefixes, not asked for: an engine may
have let go of a prefix meanwhile, which costs time and changes no result. Knows no connections and no requests in
flight.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from loreloop.protocol.sampling import SampleOp
from loreloop.protocol.training import Chunk, TextChunk

FINEST_TOKENS = 16  # between two prefixes of a prompt that are remembered
POINTS_AN_OCTAVE = 16  # and so many of them between a length and twice that length
SLACK_SAMPLES = 4  # a known prefix is worth so many samples more in hand than the idlest engine has
SLACK_TOKENS = 256  # and one more for so many tokens that need not be computed again
MOST_SLACK = 16
MOST_PREFIXES = 1 << 16  # remembered ones; some 10 MB
DIGEST_BYTES = 16
TOKEN_BYTES = 4


@dataclass(frozen=True)
class Candidate:
    """An engine that could take a sample: how many samples it has in hand, and how many tokens of the prompt it has
    computed before."""

    number: int
    n_samples: int
    n_known: int


@dataclass(frozen=True)
class Prefix:
    """The first `length` tokens of a prompt, of one revision, as a digest."""

    length: int
    digest: bytes


def choose(candidates: Sequence[Candidate]) -> int:
    """The number of the engine that is to draw, of at least one: among those that are not too busy for what they know,
    the one that knows most; among equals the idlest, then the one with the lowest number."""
    idlest = min(candidates, key=lambda one: (one.n_samples, -one.n_known, one.number))
    # Only what the idlest would have to compute, and another would not, is worth waiting for.
    fit = (one for one in candidates if one.n_samples <= idlest.n_samples + slack(one.n_known - idlest.n_known))
    return min(fit, key=lambda one: (-one.n_known, one.n_samples, one.number)).number


def slack(n_saved: int) -> int:
    """How many samples more than the idlest engine one may have that need not compute so many tokens of a prompt."""
    return min(MOST_SLACK, SLACK_SAMPLES + n_saved // SLACK_TOKENS) if n_saved > 0 else 0


def prefixes_of(op: SampleOp) -> tuple[Prefix, ...]:
    """Prefixes of a prompt by growing length, the whole prompt last. Two prompts share those that lie within what they
    have in common; a prompt and its continuation have a common one that is at most a sixteenth shorter than it."""
    # Keys and values depend on the adapter, so the same tokens under another one are another prefix.
    digest = hashlib.blake2b((op.revision.revision_id if op.revision else "").encode(), digest_size=DIGEST_BYTES)
    found: list[Prefix] = []
    length = 0
    for chunk in op.prompt:
        for piece in _pieces(chunk, length):
            digest.update(piece.data)
            length = piece.end
            # The state goes on from here, so that each byte of a prompt is read once.
            found.append(Prefix(length, digest.copy().digest()))
    return tuple(found)


@dataclass(frozen=True)
class _Piece:
    data: bytes
    end: int  # of its last token in the prompt


def _pieces(chunk: Chunk, start: int) -> list[_Piece]:
    """A chunk that begins at `start`, cut where prefixes are remembered. An image is one piece."""
    if not isinstance(chunk, TextChunk):
        # Its length goes along, so that no image can be taken for the ids of a text.
        return [_Piece(f"image {len(chunk.data)}:".encode() + chunk.data, start + len(chunk))]
    pieces, at, end = [], start, start + len(chunk)
    while at < end:
        until = min(end, _next_point(at))
        pieces.append(_Piece(chunk.tokens[(at - start) * TOKEN_BYTES : (until - start) * TOKEN_BYTES], until))
        at = until
    return pieces


def _next_point(at: int) -> int:
    """The next length behind `at` that is remembered: multiples of a step that doubles with each octave."""
    step = max(FINEST_TOKENS, (1 << at.bit_length()) // (2 * POINTS_AN_OCTAVE))
    return (at // step + 1) * step


class KnownPrefixes:
    """Which engines have computed which prefixes; the ones that were met last, at most `MOST_PREFIXES`."""

    def __init__(self, most: int = MOST_PREFIXES) -> None:
        self._most = most
        self._engines: OrderedDict[bytes, frozenset[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._engines)

    def n_known(self, prefixes: Sequence[Prefix], engine: int) -> int:
        """The length of the longest of these prefixes that an engine has computed, or 0."""
        for prefix in reversed(prefixes):
            if engine in self._engines.get(prefix.digest, ()):
                return prefix.length
        return 0

    def note(self, prefixes: Sequence[Prefix], engine: int) -> None:
        """An engine computes these now."""
        for prefix in prefixes:
            before = self._engines.pop(prefix.digest, frozenset())
            self._engines[prefix.digest] = before | {engine}
        while len(self._engines) > self._most:
            self._engines.popitem(last=False)

    def forget(self, engine: int) -> None:
        """An engine has died, and its pages with it."""
        for digest, engines in list(self._engines.items()):
            if engine in engines:
                rest = engines - {engine}
                if rest:
                    self._engines[digest] = rest
                else:
                    del self._engines[digest]
