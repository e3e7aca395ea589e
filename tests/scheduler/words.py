"""A stop matcher whose text is the token ids with spaces between them."""

from __future__ import annotations


class WordMatcher:
    def __init__(self, strings: tuple[str, ...]) -> None:
        self.strings, self.text = strings, ""

    def push(self, token: int) -> bool:
        self.text += f"{token} "
        return any(f" {string} " in f" {self.text}" for string in self.strings)
