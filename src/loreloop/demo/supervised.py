"""Stage (a): a few supervised steps on real chats that hold no arithmetic.

The chats are the cookbook's own example conversations. Only the assistant's last words carry weight.

Legend: T tokens of a conversation.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import tinker

Message = dict[str, str]
ARITHMETIC = re.compile(r"\d|\b(sum|plus|minus|times|multipl|divid|equation|percent|math|calculat|square root)", re.I)


def chats_without_arithmetic() -> list[list[Message]]:
    """Conversations whose text has neither digits nor words of arithmetic."""
    lines = (files("tinker_cookbook") / "example_data" / "conversations.jsonl").read_text().splitlines()
    # The package brings the conversations along, so the demo needs no download.
    chats = [json.loads(line)["messages"] for line in lines]
    return [chat for chat in chats if not any(ARITHMETIC.search(message["content"]) for message in chat)]


def chat_datum(tokenizer: Any, chat: list[Message], max_tokens: int = 256) -> tinker.Datum:
    """One chat as a datum: weight 1 where the target belongs to the last message (the assistant's), else 0."""
    prompt = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
    tokens_T = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)
    n_prompt = len(tokenizer.encode(prompt, add_special_tokens=False))
    # The end is cut, and not the beginning, so that positions stay those of the prompt.
    tokens_T = tokens_T[:max_tokens]
    weights_T = np.arange(1, len(tokens_T)) >= n_prompt
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens_T[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(tokens_T[1:], dtype=np.int64)),
            "weights": tinker.TensorData.from_numpy(weights_T.astype(np.float32)),
        },
    )


def train(
    client: tinker.TrainingClient, tokenizer: Any, steps: int, batch: int, progress: Callable[[float], None]
) -> Iterator[float]:
    """Runs the steps; yields the mean loss per assistant token of each."""
    data = [chat_datum(tokenizer, chat) for chat in chats_without_arithmetic()]
    rng = random.Random(0)
    for _ in range(steps):
        chosen = rng.sample(data, batch)
        passed = client.forward_backward(chosen, "cross_entropy")
        stepped = client.optim_step(tinker.AdamParams(learning_rate=1e-4, eps=1e-8))
        # The loss is a sum over tokens, so it is divided by the number of those that carry weight.
        n_spoken = sum(float(datum.loss_fn_inputs["weights"].to_numpy().sum()) for datum in chosen)
        loss = passed.result().metrics["loss:sum"] / n_spoken
        stepped.result()
        progress(loss)
        yield loss
