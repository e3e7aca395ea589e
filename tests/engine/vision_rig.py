"""Sequences of text and pictures, for our trainer and sampler, and the same model as transformers and peft have it."""

import io
import re
import warnings
from pathlib import Path

import msgspec
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from loreloop.engine.training.model_state import ModelState
from loreloop.formats.peft import named_tensors
from loreloop.formats.vision import load_rules
from loreloop.images.check import chunk_cut
from loreloop.images.files import ImageLimits
from loreloop.protocol.sampling import SampleOp
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import Chunk, Datum, ImageChunk, TextChunk
from tests.engine.sample_rig import sample_op
from tests.tiny_vision import IMAGE

PROCESSORS = {
    "llava": LlavaImageProcessorPil,
    "qwen3_vl": Qwen2VLImageProcessorPil,
    "qwen3_vl_moe": Qwen2VLImageProcessorPil,
}


def text(*ids: int) -> TextChunk:
    return TextChunk(np.asarray(ids, "<i4").tobytes())


def image(data: bytes, **fields) -> ImageChunk:
    return ImageChunk(data, "png", **fields)


def vision_datum(chunks: tuple[Chunk, ...], n_tokens: int, seed: int = 0, targets: np.ndarray | None = None) -> Datum:
    """Random weights at every position, and targets, unless they are given."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 512, n_tokens) if targets is None else targets
    inputs = {
        "target_tokens": tensor_of(targets),
        "weights": tensor_of(random.normal(size=n_tokens).astype(np.float32)),
    }
    return Datum(chunks, inputs)


def sample_of(chunks: tuple[Chunk, ...], **fields) -> SampleOp:
    return msgspec.structs.replace(sample_op([1], **fields), prompt=chunks)


class VisionReference:
    """The same folder with the same adapter, by transformers and peft, in fp32."""

    def __init__(self, folder: Path, state: ModelState | None = None) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.folder = folder
        self.family = self.model.config.model_type
        self.rules = load_rules(folder)
        self.processor = PROCESSORS[self.family].from_pretrained(folder)
        self.names = {}
        if state is not None:
            self._adapt(state)

    def _adapt(self, state: ModelState) -> None:
        own = dict(named_tensors(state.weights))
        targets = {re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", name) for name in own}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = LoraConfig(r=state.layout.rank, lora_alpha=32, target_modules=sorted(targets), bias="none")
            self.model = get_peft_model(self.model, config)
        self.names = {name.replace(".weight", ".default.weight"): name for name in own}
        parameters = dict(self.model.named_parameters())
        for name, mine in self.names.items():
            parameters[name].data.copy_(own[mine])

    def cuts(self, chunks: tuple[Chunk, ...]) -> list[int]:
        return [
            chunk_cut(chunk, self.rules, ImageLimits()).n_tokens if isinstance(chunk, ImageChunk) else len(chunk)
            for chunk in chunks
        ]

    def n_tokens(self, chunks: tuple[Chunk, ...]) -> int:
        return sum(self.cuts(chunks))

    def logits(self, chunks: tuple[Chunk, ...]) -> torch.Tensor:
        ids: list[int] = []
        pictures = []
        for chunk, n_tokens in zip(chunks, self.cuts(chunks), strict=True):
            if isinstance(chunk, ImageChunk):
                ids += [IMAGE] * n_tokens
                pictures.append(Image.open(io.BytesIO(chunk.data)))
            else:
                ids += np.frombuffer(chunk.tokens, "<i4").tolist()
        inputs = {"input_ids": torch.tensor([ids])}
        if pictures:
            inputs |= self.processor(pictures, return_tensors="pt")
        if self.family.startswith("qwen3_vl"):
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        return self.answer(inputs).logits[0]

    def answer(self, inputs):
        return self.model(**inputs)

    def logprobs(self, datum: Datum) -> torch.Tensor:
        targets = torch.tensor(datum.inputs["target_tokens"].numpy())
        return self.logits(datum.chunks).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        loss.backward()
        return {own: dict(self.model.named_parameters())[name].grad for name, own in self.names.items()}
