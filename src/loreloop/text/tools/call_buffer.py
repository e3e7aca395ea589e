"""What of a reply's pieces may be told, since clients cannot take anything back.

A call that a grammar forces is told while it is written, any other when it is whole. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from loreloop.text.tools.tool_calls import Broken, CallArguments, CallBegins, CallCut, CallEnds, Content, Piece


class CallBuffer:
    """`at_once`: calls are by a grammar, and only the end of the text cuts one. Calls are numbered as they are told."""

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.begun: CallBegins | None = None
        self.held: list[str] = []  # arguments of a call that is not whole yet
        self.n_calls = 0

    def settle(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Which pieces can be passed to the client now, renumbered; calls that may still break stay here."""
        return [settled for piece in pieces for settled in self._settled(piece)]

    def _settled(self, piece: Piece) -> Iterator[Piece]:
        match piece:
            case CallBegins():
                self.begun, self.held = replace(piece, index=self.n_calls), []
                if self.at_once:
                    yield self.begun
            case CallArguments(_, text):
                if self.at_once:
                    yield CallArguments(self.n_calls, text)
                else:
                    self.held.append(text)
            # Numbers are given out here, so that calls that broke leave no gap in what a client counts.
            case CallEnds():
                if self.begun and not self.at_once:
                    yield from (self.begun, CallArguments(self.n_calls, "".join(self.held)))
                yield CallEnds(self.n_calls)
                self.begun, self.n_calls = None, self.n_calls + 1
            case Broken(text, n_told, cut) if self.begun and self.at_once:
                yield CallCut(self.n_calls)
                self.begun, self.n_calls = None, self.n_calls + 1
                if not cut and text[n_told:].strip():
                    yield Broken(text[n_told:])
            case Content() if self.begun and self.at_once:
                pass  # the white space before a call, which comes with its being broken
            case _:
                self.begun = None
                yield piece
