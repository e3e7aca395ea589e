"""An adapter that learns, over the Tinker SDK: asks it, has it imitate answers, reinforces what it tried.

The only file of the room that knows the SDK. It knows nothing of memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tinker

from loreloop.memory.learned import YES, log_odds
from loreloop.memory.learning.groups import SampledAnswer, Tried
from loreloop.memory.learning.lessons import END, Example

BATCH = 64  # questions of one forward pass


class Codec(Protocol):
    """The tokenizer as the pupil needs it; no special tokens are added."""

    def encode(self, text: str) -> list[int]:
        """The text's token ids."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that these token ids stand for."""


class Pupil:
    """A Learner over a training client of the Tinker SDK. A sampling client is made of the newest weights when one is
    needed, and kept until the next step."""

    def __init__(self, client: tinker.TrainingClient, codec: Codec) -> None:
        self.client, self.codec = client, codec
        self.sampling: tinker.SamplingClient | None = None

    @property
    def sampler(self) -> tinker.SamplingClient:
        """Of the weights as they are now."""
        if self.sampling is None:
            self.sampling = self.client.save_weights_and_get_sampling_client().result()
        return self.sampling

    def odds(self, questions: Sequence[str]) -> list[float]:
        """The log-odds that each is answered with yes."""
        answer = self.codec.encode(YES)
        ones = np.ones(len(answer), np.float32)
        data = [datum(self.codec.encode(question), answer, weights=ones) for question in questions]
        futures = [self.client.forward(data[n : n + BATCH], "cross_entropy") for n in range(0, len(data), BATCH)]
        outputs = [output for future in futures for output in future.result().loss_fn_outputs]
        return [log_odds(float(output["logprobs"].to_numpy()[-len(answer) :].sum())) for output in outputs]

    def answers(
        self, prompts: Sequence[str], n: int, most: Sequence[int], temperature: float = 1.0
    ) -> list[list[SampledAnswer]]:
        """`n` answers to each prompt, of at most so many tokens each; a line's end ends one."""
        # All requests are sent before the first answer is waited for, so that the server can batch them.
        futures = []
        for prompt, tokens in zip(prompts, most, strict=True):
            params = tinker.SamplingParams(max_tokens=tokens, temperature=temperature, stop=self.codec.encode(END))
            ids = tinker.ModelInput.from_ints(self.codec.encode(prompt))
            futures.append(self.sampler.sample(prompt=ids, num_samples=n, sampling_params=params))
        return [[self._answer(sequence) for sequence in future.result().sequences] for future in futures]

    def _answer(self, sequence: tinker.SampledSequence) -> SampledAnswer:
        text = self.codec.decode(sequence.tokens).removesuffix(END)
        return SampledAnswer(
            text, tuple(sequence.tokens), tuple(sequence.logprobs or ()), sequence.stop_reason == "stop"
        )

    def imitate(self, examples: Sequence[Example], learning_rate: float) -> float:
        """One step of cross entropy on the answers; gives the mean loss of their tokens."""
        data, n_tokens = [], 0
        for example in examples:
            prompt, answer = self.codec.encode(example.prompt), self.codec.encode(example.answer)
            n_tokens += len(answer)
            data.append(datum(prompt, answer, weights=np.ones(len(answer), np.float32)))
        return self._step(data, "cross_entropy", learning_rate) / n_tokens

    def reinforce(self, tried: Sequence[Tried], learning_rate: float) -> None:
        """One step of the policy gradient, weighted by the ratio of the probabilities now to those when sampled."""
        data = []
        for one in tried:
            logprobs = np.array(one.answer.logprobs, np.float32)
            advantages = np.full(len(logprobs), one.advantage, np.float32)
            prompt = self.codec.encode(one.prompt)
            data.append(datum(prompt, one.answer.tokens, logprobs=logprobs, advantages=advantages))
        if data:
            self._step(data, "importance_sampling", learning_rate)

    def _step(self, data: list[tinker.Datum], loss: tinker.types.LossFnType, learning_rate: float) -> float:
        passed = self.client.forward_backward(data, loss)
        # Both requests are under way before either is waited for: the server keeps their order.
        stepped = self.client.optim_step(tinker.AdamParams(learning_rate=learning_rate, beta2=0.95, eps=1e-8))
        total = passed.result().metrics["loss:sum"]
        stepped.result()
        self.sampling = None
        return total

    def save(self, name: str) -> str:
        """The tinker:// path of the weights for sampling."""
        return self.client.save_weights_for_sampler(name).result().path


def datum(prompt: Sequence[int], answer: Sequence[int], **values: np.ndarray) -> tinker.Datum:
    """The answer behind the prompt; `values` hold one number for each of its tokens, the prompt's have zeros."""
    tokens = [*prompt, *answer]
    # Each position predicts the next token, so the answer's values begin one place before it.
    before = np.zeros(len(prompt) - 1, np.float32)
    inputs = {name: tinker.TensorData.from_numpy(np.concatenate([before, value])) for name, value in values.items()}
    inputs["target_tokens"] = tinker.TensorData.from_numpy(np.array(tokens[1:], np.int64))
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
