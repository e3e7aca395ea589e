"""Log-probabilities in OpenAI's two shapes: of chat (a list of entries) and of completions (parallel lists).

They are of the temperature-scaled, unfiltered distribution; `filtered_logprob(s)` beside them are of the one that was
drawn from. A token that holds a part of a character only is named by its bytes. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from loreloop.protocol.link import Token
from loreloop.protocol.sampling import SampledSequence, TopK
from loreloop.protocol.token_ids import Logprobs, unpack_ids, unpack_logprobs
from loreloop.text.tokenizer import Detokenizer, TextTokenizer


@dataclass(frozen=True)
class Scored:
    """One token with what is known of it; `logprob` None: nothing is (a prompt's first token)."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    filtered_logprob: float | None = None


def scored_token(token: Token) -> Scored:
    """A token of a stream with what is known of it."""
    return Scored(token.token, token.logprob, tops(token.topk, 1)[0], token.filtered_logprob)


def scored_sequence(sequence: SampledSequence) -> list[Scored]:
    """The tokens of a finished sample, each with what is known of it."""
    tokens = unpack_ids(sequence.tokens).tolist()
    logprobs = unpack_logprobs(sequence.logprobs).tolist()
    filtered: Sequence[float | None] = [None] * len(tokens)
    if sequence.filtered_logprobs is not None:
        filtered = unpack_logprobs(sequence.filtered_logprobs).tolist()
    return [Scored(*entry) for entry in zip(tokens, logprobs, tops(sequence.topk, len(tokens)), filtered, strict=True)]


def scored_prompt(tokens: Sequence[int], logprobs: Logprobs | None, topk: TopK | None) -> list[Scored]:
    """The tokens of a prompt, each with its log-probability given those before it; the first has none."""
    values = unpack_logprobs(logprobs).tolist() if logprobs else [float("nan")] * len(tokens)
    # The engine marks what it cannot know with NaN, which JSON has no word for.
    known = [None if value != value else value for value in values]
    return [
        Scored(token, value, top if value is not None else ())
        for token, value, top in zip(tokens, known, tops(topk, len(tokens)), strict=True)
    ]


def tops(topk: TopK | None, n_tokens: int) -> list[tuple[tuple[int, float], ...]]:
    """For each of `n_tokens` tokens its likeliest alternatives as pairs of id and log-probability, in nats; empty where
    none were asked for."""
    if topk is None or topk.k == 0:
        return [()] * n_tokens
    ids = unpack_ids(topk.token_ids).reshape(-1, topk.k).tolist()
    values = unpack_logprobs(topk.logprobs).reshape(-1, topk.k).tolist()
    # Rows may be missing at the beginning only: a prompt's first token has no alternatives.
    missing: list[tuple[tuple[int, float], ...]] = [()] * (n_tokens - len(ids))
    return missing + [tuple(zip(*row, strict=True)) for row in zip(ids, values, strict=True)]


def chat_logprobs(scored: Sequence[Scored], tokenizer: TextTokenizer) -> dict[str, Any]:
    """Log-probabilities of a chat's answer in OpenAI's form: one entry a token."""
    return {"content": [_entry(one, tokenizer) for one in scored], "refusal": None}


def _entry(one: Scored, tokenizer: TextTokenizer) -> dict[str, Any]:
    entry: dict[str, Any] = _named(one.token, one.logprob, tokenizer)
    entry["top_logprobs"] = [_named(token, logprob, tokenizer) for token, logprob in one.top]
    if one.filtered_logprob is not None:
        entry["filtered_logprob"] = one.filtered_logprob
    return entry


def _named(token: int, logprob: float | None, tokenizer: TextTokenizer) -> dict[str, Any]:
    # A token may be a part of a character, so the bytes say exactly what it stands for.
    data = list(tokenizer.bytes.of(token))
    return {"token": name_of(token, tokenizer), "logprob": logprob, "bytes": data}


def name_of(token: int, tokenizer: TextTokenizer) -> str:
    """Its text; as OpenAI's completions have it, `bytes:\\xe2\\x98` where that is none. Vocabularies have gaps, too."""
    if not (data := tokenizer.bytes.of(token)):
        return f"token_id:{token}"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Places:
    """Where in a text its tokens begin, told in their order; inside a character, where that begins."""

    def __init__(self, tokenizer: TextTokenizer, hidden: Collection[int] = (), first: int = 0) -> None:
        self.detokenizer, self.hidden, self.position = Detokenizer(tokenizer), hidden, first

    def of(self, scored: Sequence[Scored], added: Collection[int] = ()) -> list[int]:
        """Of the tokens numbered in `added` the text shows nothing."""
        return [self._place(one.token, shown=number not in added) for number, one in enumerate(scored)]

    def _place(self, token: int, *, shown: bool) -> int:
        # A token begins where the text stood before it, even if it shows nothing itself.
        position = self.position
        self.position += len(self.detokenizer.push(token)) if shown and token not in self.hidden else 0
        return position


def text_logprobs(scored: Sequence[Scored], offsets: Sequence[int], tokenizer: TextTokenizer) -> dict[str, Any]:
    """`offsets` are where the tokens' texts begin."""
    found: dict[str, Any] = {
        "tokens": [name_of(one.token, tokenizer) for one in scored],
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": [_by_name(one.top, tokenizer) or None for one in scored],
        "text_offset": list(offsets),
    }
    # The field is ours, so it is left out where it was not asked for.
    if any(one.filtered_logprob is not None for one in scored):
        found["filtered_logprobs"] = [one.filtered_logprob for one in scored]
    return found


def _by_name(top: Sequence[tuple[int, float]], tokenizer: TextTokenizer) -> dict[str, float]:
    """Of tokens with the same bytes only the likeliest, which comes first, has their name."""
    named: dict[str, float] = {}
    for token, logprob in top:
        name = name_of(token, tokenizer)
        # The map is by name in OpenAI's form, and two tokens may spell the same bytes.
        named[f"token_id:{token}" if name in named else name] = logprob
    return named
