"""A model's tokenizer, read from its folder without any model library.

Encoding adds no special tokens unless it is asked to: chat templates write those that a prompt needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loreloop.text.token_bytes import TokenBytes
from loreloop.text.tokenizer_files import read_tokenizer

MOST_TOKENS_OF_A_CHARACTER = 8  # after so many the bytes are taken to be invalid
PIECE = 1 << 16  # characters of a long text that are counted at a time
INCOMPLETE = "\ufffd"  # what a decoder shows for bytes that do not form a character yet


@dataclass(frozen=True)
class Encoded:
    """Token ids, and at which places stand those that the tokenizer itself put around the text."""

    ids: list[int]
    added: frozenset[int] = frozenset()


class TextTokenizer:
    """`settings` are those of tokenizer_config.json; `named` are the texts of special tokens by their names.

    BadRequest where a file of the folder's is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        files = read_tokenizer(folder)
        self.tokenizer, self.settings, self.named = files.tokenizer, files.settings, files.named
        self.bytes = TokenBytes(self.tokenizer)
        added = self.tokenizer.get_added_tokens_decoder()
        self.added = {token.content: number for number, token in added.items()}  # tokens beside the vocabulary
        self.specials: dict[int, str] = {number: token.content for number, token in added.items() if token.special}

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The id of what the folder calls the end of a sequence, or none."""
        end = self.tokenizer.token_to_id(self.named["eos_token"]) if "eos_token" in self.named else None
        return () if end is None else (end,)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; `special` lets the tokenizer add what it puts around every text."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def count(self, text: str) -> int:
        """How many tokens `encode` gives."""
        (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return len(encoding)

    def encode_within(self, text: str, most: int, *, special: bool = False) -> Encoded | None:
        """Like `encode`, or None where there are over `most` tokens. Time and memory grow with `most`, not with the
        text, and other threads go on meanwhile: for batches the library lets them."""
        # No token is longer than this, so the text has more tokens than `most` without being tokenized.
        if len(text) > most * self.longest:
            return None
        counted = 0
        for start in range(0, len(text) if len(text) > PIECE else 0, PIECE):
            # A cut may take a token apart, into no more than its bytes.
            counted += len(self._encode_one(text[start : start + PIECE], special=False).ids) - self.longest
            if counted > most:
                return None
        encoded = self._encode_one(text, special=special)
        return encoded if len(encoded.ids) <= most else None

    def _encode_one(self, text: str, *, special: bool) -> Encoded:
        (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=special)
        added = (
            frozenset(position for position, mask in enumerate(encoding.special_tokens_mask) if mask)
            if special
            else frozenset()
        )
        return Encoded(list(encoding.ids), added)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token, or somewhat more."""
        return max(len(token.encode()) for token in self.tokenizer.get_vocab())

    def decode(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """The tokens' text; bytes that form no character show as U+FFFD. `skip_special` leaves special tokens out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special))


class Detokenizer:
    """Turns tokens into text as they come; a character waits until all its bytes are there.

    Only a short tail is decoded again for each token: some tokenizers write a token differently at the beginning of a
    text, so the tail begins with the tokens decoded before.
    """

    def __init__(self, tokenizer: TextTokenizer, *, skip_special: bool = False) -> None:
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.tail: list[int] = []
        self.n_shown = 0  # how many tokens of the tail are in `shown` text already

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps empty."""
        self.tail.append(token)
        before = self._decode(self.tail[: self.n_shown])
        whole = self._decode(self.tail)
        # A text that becomes shorter has had a replacement character in it, which the next bytes may turn into a real
        # one.
        unfinished = whole.endswith(INCOMPLETE) or len(whole) < len(before)
        if unfinished and len(self.tail) - self.n_shown < MOST_TOKENS_OF_A_CHARACTER:
            return ""
        self.tail, self.n_shown = self.tail[self.n_shown :], len(self.tail) - self.n_shown
        return whole[len(before) :]

    def flush(self) -> str:
        """What is left when no token follows: bytes that never became a character."""
        before = self._decode(self.tail[: self.n_shown])
        whole = self._decode(self.tail)
        self.tail, self.n_shown = [], 0
        return whole[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special=self.skip_special) if tokens else ""
