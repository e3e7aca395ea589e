"""A sampling client that answers out of its head, for tests of who is asked what and when."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tinker

from loreloop.learn.rewards.reward import Answer
from loreloop.text.conversation import Conversation

STOP = 2


@dataclass
class FakeSampler:
    """Each answer is `length(prompt)` tokens, the last a stop token; a seeded rng says how long a request takes.

    `fails` says of the n-th request whether it raises or, with "cancel", is cancelled.
    """

    length: Callable[[tinker.ModelInput], int] = lambda prompt: 4
    fails: Callable[[int], str | None] = lambda number: None
    seed: int = 0
    n_open: int = 0
    most_open: int = 0
    tokens_open: int = 0
    most_tokens_open: int = 0
    asked: list[tuple[list[int], int, tinker.SamplingParams]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    async def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams
    ) -> tinker.SampleResponse:
        number = len(self.asked)
        self.asked.append((prompt.to_ints(), num_samples, sampling_params))
        tokens = num_samples * (prompt.length + sampling_params.max_tokens)
        self.n_open, self.tokens_open = self.n_open + num_samples, self.tokens_open + tokens
        self.most_open = max(self.most_open, self.n_open)
        self.most_tokens_open = max(self.most_tokens_open, self.tokens_open)
        try:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0)
            if (failure := self.fails(number)) == "cancel":
                raise asyncio.CancelledError
            if failure:
                raise tinker.TinkerError(failure)
        finally:
            self.n_open, self.tokens_open = self.n_open - num_samples, self.tokens_open - tokens
        return tinker.SampleResponse(sequences=[self._sequence(prompt, sampling_params) for _ in range(num_samples)])

    def _sequence(self, prompt: tinker.ModelInput, params: tinker.SamplingParams) -> tinker.SampledSequence:
        said = self.length(prompt)
        n = min(said, params.max_tokens)
        tokens = [100 + i for i in range(n)]
        if n == said:
            tokens[-1] = STOP
        return tinker.SampledSequence(
            stop_reason="stop" if n == said else "length",
            sequence_id="made-up",
            tokens_np=np.array(tokens, np.int32),
            logprobs_np=np.full(n, -0.5, np.float32),
        )


class PlainWords:
    """A conversation as the numbers in its texts; what is shown in between is 9 and the turns' own numbers."""

    stop = [STOP]  # noqa: RUF012

    async def prompt(self, conversation: Conversation) -> tinker.ModelInput:
        return tinker.ModelInput.from_ints([n for turn in conversation.turns for n in numbers(turn.content)])

    def answer(self, tokens, to, *, ended=None) -> Answer:
        return Answer(" ".join(map(str, tokens)), n_tokens=len(tokens), ended=bool(ended))

    def behind(self, conversation, turns, *, ended) -> list[int]:
        return [9, *([] if ended else [STOP]), *(n for turn in turns for n in numbers(turn.content))]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]
