"""OpenAI's answer shapes: from sampled tokens to text, choices, log-probabilities and usage.

Pure; knows no request and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loreloop.protocol.sampling import SampledSequence, SampleOp, SampleResult, StopReason
from loreloop.protocol.training import text_length
from loreloop.text.stops import StopTrimmer
from loreloop.text.tokenizer import Detokenizer, TextTokenizer


@dataclass(frozen=True)
class Shape:
    """`object` is OpenAI's name of the answer; a stream's pieces are chunks of it."""

    object: str
    model: str
    top_logprobs: int
    logprobs: bool
    stop_strings: tuple[str, ...]

    @property
    def is_chat(self) -> bool:
        return self.object == "chat.completion"

    @property
    def id_prefix(self) -> str:
        return "chatcmpl" if self.is_chat else "cmpl"


class GrowingText:
    """The visible text of one sample: no special tokens, nothing from a stop string on."""

    def __init__(self, tokenizer: TextTokenizer, stop_tokens: tuple[int, ...], stop_strings: tuple[str, ...]) -> None:
        self.detokenizer = Detokenizer(tokenizer, skip_special=True)
        self.trimmer = StopTrimmer(stop_strings)
        self.stop_tokens = stop_tokens

    def push(self, token: int) -> str:
        return "" if token in self.stop_tokens else self.trimmer.push(self.detokenizer.push(token))

    def flush(self) -> str:
        return self.trimmer.push(self.detokenizer.flush()) + self.trimmer.flush()


def text_of(tokenizer: TextTokenizer, op: SampleOp, shape: Shape) -> GrowingText:
    return GrowingText(tokenizer, op.params.stop_tokens, shape.stop_strings)


@dataclass(frozen=True)
class Answer:
    """Makes the bodies of one request's answer."""

    op: SampleOp
    shape: Shape
    created: int

    def whole(self, result: SampleResult, tokenizer: TextTokenizer) -> dict[str, Any]:
        choices = [self._choice(index, s, tokenizer) for index, s in enumerate(result.sequences)]
        return self._frame(self.shape.object) | {"choices": choices, "usage": self._usage(result)}

    def piece(self, index: int, text: str, finish: StopReason | None) -> dict[str, Any]:
        """One event of a stream."""
        said: dict[str, Any] = (
            {"delta": {"role": "assistant", "content": text}} if self.shape.is_chat else {"text": text}
        )
        choice = {"index": index, "finish_reason": finish, "logprobs": None} | said
        return self._frame(self._piece_object) | {"choices": [choice]}

    def usage_piece(self, result: SampleResult) -> dict[str, Any]:
        return self._frame(self._piece_object) | {"choices": [], "usage": self._usage(result)}

    @property
    def _piece_object(self) -> str:
        return "chat.completion.chunk" if self.shape.is_chat else self.shape.object

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.op.request_id, "object": kind, "created": self.created, "model": self.shape.model}

    def _choice(self, index: int, sequence: SampledSequence, tokenizer: TextTokenizer) -> dict[str, Any]:
        growing = text_of(tokenizer, self.op, self.shape)
        tokens = np.frombuffer(sequence.tokens, "<i4").tolist()
        text = "".join(growing.push(token) for token in tokens) + growing.flush()
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self.shape.is_chat else {"text": text}
        )
        logprobs = self._logprobs(sequence, tokens, tokenizer) if self.shape.logprobs else None
        return {"index": index, "finish_reason": sequence.stop_reason, "logprobs": logprobs} | said

    def _logprobs(self, sequence: SampledSequence, tokens: list[int], tokenizer: TextTokenizer) -> dict[str, Any]:
        logprobs = np.frombuffer(sequence.logprobs, "<f4").tolist()
        pieces = [tokenizer.decode([token]) for token in tokens]
        tops = self._tops(sequence, len(tokens), tokenizer)
        if self.shape.is_chat:
            content = [
                {"token": piece, "logprob": logprob, "bytes": list(piece.encode()), "top_logprobs": top}
                for piece, logprob, top in zip(pieces, logprobs, tops, strict=True)
            ]
            return {"content": content}
        offsets = np.cumsum([0, *(len(piece) for piece in pieces)])[:-1].tolist()
        top_maps = [{entry["token"]: entry["logprob"] for entry in top} for top in tops]
        return {"tokens": pieces, "token_logprobs": logprobs, "top_logprobs": top_maps, "text_offset": offsets}

    def _tops(self, sequence: SampledSequence, n_tokens: int, tokenizer: TextTokenizer) -> list[list[dict[str, Any]]]:
        if sequence.topk is None:
            return [[] for _ in range(n_tokens)]
        ids = np.frombuffer(sequence.topk.token_ids, "<i4").reshape(n_tokens, -1).tolist()
        values = np.frombuffer(sequence.topk.logprobs, "<f4").reshape(n_tokens, -1).tolist()
        tops: list[list[dict[str, Any]]] = []
        for row_ids, row_values in zip(ids, values, strict=True):
            pieces = [tokenizer.decode([token]) for token in row_ids]
            tops.append(
                [
                    {"token": piece, "logprob": value, "bytes": list(piece.encode())}
                    for piece, value in zip(pieces, row_values, strict=True)
                ]
            )
        return tops

    def _usage(self, result: SampleResult) -> dict[str, Any]:
        n_prompt = text_length(self.op.prompt)
        n_drawn = sum(len(sequence.tokens) // 4 for sequence in result.sequences)
        details = {"cached_tokens": result.cache_hit_tokens}
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_drawn,
            "total_tokens": n_prompt + n_drawn,
            "prompt_tokens_details": details,
        }
