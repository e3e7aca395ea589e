"""Stop strings: noticed in a growing text, and cut out of a finished or streamed one.

Works across token borders. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from loreloop.text.tokenizer import Detokenizer, TextTokenizer


class StopMatcher:
    """Says with which token the first stop string was completed."""

    def __init__(self, tokenizer: TextTokenizer, strings: Sequence[str]) -> None:
        self.detokenizer = Detokenizer(tokenizer)
        self.strings = tuple(strings)
        self.longest = max((len(string) for string in strings), default=0)
        self.tail = ""

    def push(self, token: int) -> bool:
        new = self.detokenizer.push(token)
        text = self.tail + new
        self.tail = text[-(self.longest - 1) :] if self.longest > 1 else ""
        return any(string in text for string in self.strings)


class StopTrimmer:
    """Passes a streamed text on up to the first stop string, never the beginning of one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.held = ""
        self.found: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """What of the text so far is safe to show now."""
        if self.found is not None:
            return ""
        self.held += text
        found = [(at, string) for string in self.strings if (at := self.held.find(string)) >= 0]
        if found:
            at, self.found = min(found)
            return self.held[:at]
        keep = max((_overlap(self.held, string) for string in self.strings), default=0)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def flush(self) -> str:
        """The rest, when the text ends without a stop string."""
        shown, self.held = "" if self.found is not None else self.held, ""
        return shown


def _overlap(text: str, string: str) -> int:
    """How many last characters of `text` begin `string`."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)
