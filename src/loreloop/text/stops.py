"""Stop strings: noticed in a growing text, and cut out of a finished or streamed one.

Works across token borders; where a model thinks, in its answer only. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from loreloop.text.answers import AnswerParts, Part, overlap
from loreloop.text.tokenizer import Detokenizer, TextTokenizer


class StopMatcher:
    """Says with which token the first stop string was completed. `parts` tell an answer from thoughts."""

    def __init__(self, tokenizer: TextTokenizer, strings: Sequence[str], parts: AnswerParts | None = None) -> None:
        self.detokenizer = Detokenizer(tokenizer)
        self.parts = parts
        self.strings = tuple(strings)
        self.longest = max((len(string) for string in strings), default=0)
        self.tail = ""

    def push(self, token: int) -> bool:
        """Whether this token completed a stop string."""
        return self._any(self.detokenizer.push(token))

    def flush(self) -> bool:
        """Whether a stop string stands in what might have gone on, as a marker of a thought, when no token follows."""
        rest = self.parts.flush if self.parts else list[Part]
        return self._any(self.detokenizer.flush()) or any(map(self._found, rest()))

    def _any(self, text: str) -> bool:
        return any(map(self._found, self.parts.push(text) if self.parts else [Part(text, True)]))

    def _found(self, part: Part) -> bool:
        text = self.tail + part.text if part.answer else ""
        # As many characters as may begin the longest string; a whole one has been found by now.
        self.tail = text[-(self.longest - 1) :] if self.longest > 1 else ""
        return any(string in text for string in self.strings)


class StopTrimmer:
    """Passes a streamed text on up to the first stop string, never the beginning of one."""

    def __init__(self, strings: Sequence[str], parts: AnswerParts | None = None) -> None:
        self.strings, self.parts = tuple(strings), parts
        self.held = ""
        self.found: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """What of the text so far is safe to show now."""
        return self._shown(self.parts.push(text) if self.parts else [Part(text, True)])

    def flush(self) -> str:
        """The rest, when the text ends without a stop string."""
        shown = self._shown(self.parts.flush()) if self.parts else ""
        rest, self.held = "" if self.found is not None else self.held, ""
        return shown + rest

    def _shown(self, parts: Sequence[Part]) -> str:
        return "".join(self._of_answer(part.text) if part.answer else self._of_thought(part.text) for part in parts)

    def _of_thought(self, text: str) -> str:
        if self.found is not None:
            return ""
        shown, self.held = self.held + text, ""
        return shown

    def _of_answer(self, text: str) -> str:
        if self.found is not None:
            return ""
        self.held += text
        found = [(position, string) for string in self.strings if (position := self.held.find(string)) >= 0]
        if found:
            position, self.found = min(found)
            return self.held[:position]
        # What may begin a stop string is not shown, since it could not be taken back.
        keep = max((overlap(self.held, string) for string in self.strings), default=0)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown
