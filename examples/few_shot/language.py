"""A vision-language model that learns the task with LoRA through the SDK and answers with the class name.

Talks to any server of the protocol. The prompt's ids come from the model's own processor, which says how many tokens
an image is; the server gets the image itself in their place.

T tokens.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinker
from PIL import Image
from transformers import AutoProcessor

from examples.few_shot.task import Labelled, Task


@dataclass(frozen=True)
class Wording:
    """What is asked and answered; `{name}` stands for the class."""

    question: str = "What is the name of the subject in this photo?"
    answer: str = "{name}"


@dataclass(frozen=True)
class Tuning:
    rank: int = 32
    learning_rate: float = 5e-4
    falling: bool = True  # to zero over the run; False: constant
    max_tokens: int = 24  # of an answer


class LanguageMethod:
    """`model` as the server calls it, `processor` a folder or hub id with its processor's files."""

    def __init__(self, service: tinker.ServiceClient, model: str, processor: str, *, wording: Wording, tuning: Tuning):
        self.service, self.model, self.wording, self.tuning = service, model, wording, tuning
        self.prompts = Prompts(processor, wording)

    def untuned(self, task: Task) -> float:
        return self._share_right(self.service.create_sampling_client(base_model=self.model).result(), task)

    def tuned(self, task: Task, seed: int) -> float:
        client = self.service.create_lora_training_client(self.model, rank=self.tuning.rank, seed=seed).result()
        data = [self.prompts.datum(labelled) for labelled in task.shown]
        for step, batch in enumerate(task.batches):
            share_left = 1 - step / len(task.batches) if self.tuning.falling else 1.0
            passed = client.forward_backward([data[k] for k in batch], "cross_entropy")
            stepped = client.optim_step(tinker.AdamParams(learning_rate=self.tuning.learning_rate * share_left))
            passed.result()
            stepped.result()
        return self._share_right(client.save_weights_and_get_sampling_client().result(), task)

    def _share_right(self, sampler: tinker.SamplingClient, task: Task) -> float:
        greedy = tinker.SamplingParams(temperature=0.0, max_tokens=self.tuning.max_tokens, stop=self.prompts.stop)
        asked = [sampler.sample(self.prompts.prompt(one), 1, greedy) for one in task.exam]
        said = [self.prompts.text(future.result().sequences[0].tokens) for future in asked]
        wanted = [self.wording.answer.format(name=one.name) for one in task.exam]
        return sum(a == b.strip().lower() for a, b in zip(said, wanted, strict=True)) / len(wanted)


class Prompts:
    """Labelled images as the protocol's values."""

    def __init__(self, processor: str, wording: Wording) -> None:
        self.wording = wording
        self.processor: Any = AutoProcessor.from_pretrained(processor)
        self.tokenizer: Any = self.processor.tokenizer
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": wording.question}]}]
        self.chat: str = self.processor.apply_chat_template(asked, add_generation_prompt=True)
        self.image_id: int = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        self.stop: list[int] = [self.tokenizer.eos_token_id]
        self.ids_of_size: dict[tuple[int, int], list[int]] = {}

    def prompt(self, one: Labelled) -> tinker.ModelInput:
        ids = self._prompt_ids(one)
        first, n_image = ids.index(self.image_id), ids.count(self.image_id)
        return tinker.ModelInput(
            chunks=[
                tinker.EncodedTextChunk(tokens=ids[:first]),
                tinker.types.ImageChunk(data=one.png, format="png", expected_tokens=n_image),
                tinker.EncodedTextChunk(tokens=ids[first + n_image :]),
            ]
        )

    def datum(self, one: Labelled) -> tinker.Datum:
        """Only the answer and the end of the turn carry weight."""
        n_prompt = len(self._prompt_ids(one))
        answer = self.tokenizer.encode(self.wording.answer.format(name=one.name), add_special_tokens=False)
        chunks = [*self.prompt(one).chunks, tinker.EncodedTextChunk(tokens=answer)]
        targets_T = np.array([0] * (n_prompt - 1) + answer + self.stop, dtype=np.int64)
        weights_T = np.array([0] * (n_prompt - 1) + [1] * (len(answer) + 1), dtype=np.float32)
        return tinker.Datum(
            model_input=tinker.ModelInput(chunks=chunks),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(targets_T),
                "weights": tinker.TensorData.from_numpy(weights_T),
            },
        )

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip().lower()

    def _prompt_ids(self, one: Labelled) -> list[int]:
        """The chat with a token a piece of image; images of one size have equally many."""
        with Image.open(io.BytesIO(one.png)) as image:
            if image.size not in self.ids_of_size:
                made = self.processor(images=image, text=self.chat)
                self.ids_of_size[image.size] = [int(token) for token in made["input_ids"][0]]
            return self.ids_of_size[image.size]
