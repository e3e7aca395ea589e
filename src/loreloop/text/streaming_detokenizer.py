"""The visible text of one sample, token by token: no special tokens, nothing from a stop string on.

Knows no API and no engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loreloop.text.answers import AnswerParts
from loreloop.text.stops import StopTrimmer
from loreloop.text.tokenizer import Detokenizer, TextTokenizer


class StreamingDetokenizer:
    """`shown` are the special tokens that are part of the text all the same: the markers of a tool call, say.
    `parts` tell in which of it stop strings count, where not in all."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        stop_tokens: Collection[int],
        stop_strings: Sequence[str],
        shown: Collection[str] = (),
        parts: AnswerParts | None = None,
    ) -> None:
        self.detokenizer = Detokenizer(tokenizer)
        self.trimmer = StopTrimmer(stop_strings, parts)
        self.hidden = {*stop_tokens, *(token for token, text in tokenizer.specials.items() if text not in shown)}

    def push(self, token: int) -> str:
        """The text that can be shown for certain after this token, perhaps empty."""
        return "" if token in self.hidden else self.trimmer.push(self.detokenizer.push(token))

    def flush(self) -> str:
        """The rest of the text, when no token follows."""
        return self.trimmer.push(self.detokenizer.flush()) + self.trimmer.flush()
