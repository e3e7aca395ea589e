"""Tells a model's answer from its thoughts in a growing text, for what counts in the answer only: stop strings.

The engine and whoever shows the text both read it through this, so that they find the same end. Knows no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from loreloop.protocol.sampling import Thoughts

THINK = ("<think>", "</think>")


def closed(prompt: str) -> str:
    """A prompt that begins a thought, with that thought ended: an answer held to a form has no room for one."""
    return f"{prompt}\n{THINK[1]}\n\n"


@dataclass(frozen=True)
class Part:
    """`answer`: stop strings are looked for in it. A thought, its markers and the white space behind it are none."""

    text: str
    answer: bool


class AnswerParts:
    """`opened`: the prompt has begun a thought. How the text was cut makes no difference to what the parts say."""

    def __init__(self, *, opened: bool) -> None:
        self.thinking = opened
        self.held = ""  # what may begin a marker
        self.last = ""  # the answer's last character so far
        self.joins = False  # the answer goes on behind a thought as if that were not there
        self.fresh = False  # behind a thought, where white space is dropped

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now; what may be the beginning of a marker is held back."""
        found: list[Part] = []
        self.held += text
        while (position := self.held.find(THINK[self.thinking])) >= 0:
            marker = THINK[self.thinking]
            found += self._parts(self.held[:position])
            found.append(Part(marker, False))
            self.held = self.held[position + len(marker) :]
            if self.thinking:
                # White space behind a thought is dropped only where the answer begins or a space stood before the
                # thought already.
                self.fresh = not self.joins
            else:
                self.joins = bool(self.last) and not self.last.isspace()
            self.thinking = not self.thinking
        # The longest possible beginning of the next marker stays back, since its rest may be in the next piece.
        keep = overlap(self.held, THINK[self.thinking])
        settled, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return found + self._parts(settled)

    def flush(self) -> list[Part]:
        """The rest, when no text follows."""
        held, self.held = self.held, ""
        return self._parts(held)

    def _parts(self, text: str) -> list[Part]:
        if not text or self.thinking:
            return [Part(text, False)] if text else []
        answer = text.lstrip() if self.fresh else text
        dropped = text[: len(text) - len(answer)]
        self.fresh = self.fresh and not answer
        self.last = text[-1] if answer else self.last
        return [part for part in (Part(dropped, False), Part(answer, True)) if part.text]


def parts_of(thoughts: Thoughts) -> AnswerParts | None:
    """None for a text that is all answer."""
    return None if thoughts == "none" else AnswerParts(opened=thoughts == "opened")


def overlap(text: str, string: str) -> int:
    """How many last characters of `text` begin `string`."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)
