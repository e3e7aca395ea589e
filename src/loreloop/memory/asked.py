"""A model behind an OpenAI-style text completion, as the memory asks it: for a verdict, or for a refill.

How a body is posted is passed in. A trained adapter is asked by its tinker:// path, like any model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from loreloop.memory.generative import Sampler
from loreloop.memory.learned import YES, Verdict, log_odds
from loreloop.protocol.errors import BadRequest

Post = Callable[[Mapping[str, Any]], Any]  # the body of a text completion, to the answer's JSON
CACHED = 4096  # verdicts; people say the same line again


def verdict_over(post: Post, model: str) -> Verdict:
    """Reads the log-probability of the prompt's own last word: nothing is generated."""

    @lru_cache(maxsize=CACHED)
    def verdict(question: str) -> float:
        # With `echo` and no new tokens a completion server scores the prompt itself, in one forward pass.
        body = {"model": model, "prompt": question + YES, "max_tokens": 0, "echo": True, "logprobs": 0}
        match post(body):
            case {"choices": [{"logprobs": {"token_logprobs": list(logprobs), "text_offset": list(offsets)}}]}:
                # The answer's tokens are found by their offsets, since how many tokens the question has is not known
                # here.
                answer = [logprob for logprob, offset in zip(logprobs, offsets, strict=True) if offset >= len(question)]
                return log_odds(sum(answer))
        raise BadRequest(
            f"{model} was asked for the log-probabilities of a prompt (echo, max_tokens 0), and the server gave none. "
            "A learned head needs a server that does, as `loreloop serve` does."
        )

    return verdict


def sampler_over(post: Post, model: str) -> Sampler:
    """One line, greedily; the space at a prompt's end belongs to the answer's first token."""

    def sample(prompt: str, most: int) -> str:
        # A refill is one line of the memory, so a line break ends it.
        body = {"model": model, "prompt": prompt.rstrip(), "max_tokens": most, "temperature": 0, "stop": "\n"}
        match post(body):
            case {"choices": [{"text": str(text)}]}:
                return text
        raise BadRequest(f"{model} was asked for a completion, and the server's answer holds no text.")

    return sample
