"""A stop matcher whose text is the token ids with spaces between them."""

from __future__ import annotations

from loreloop.protocol.sampling import SamplingParams


class WordMatcher:
    def __init__(self, params: SamplingParams) -> None:
        self.strings, self.text = params.stop_strings, ""

    def push(self, token: int) -> bool:
        self.text += f"{token} "
        return any(f" {string} " in f" {self.text}" for string in self.strings)

    def flush(self) -> bool:
        return False
