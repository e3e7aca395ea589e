"""The default model with eyes: LLaVA with a random CLIP tower of 196 tokens an image; `transformers` + `peft` on it.

What the tower sees means nothing here; only how long it takes counts.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from bench.baselines.peft_model import TARGETS

Ids = NDArray[np.int64]
PLACEHOLDER, SIDE, PATCH = 4, 224, 16
N_IMAGE = (SIDE // PATCH) ** 2
PROCESSOR = {
    "image_processor_type": "LlavaImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}


def make_seeing_model(text_folder: Path, folder: Path) -> Path:
    """Fills `folder` with the model in bf16."""
    text = AutoModelForCausalLM.from_pretrained(text_folder, dtype=torch.bfloat16)
    vision = CLIPVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
    )
    about = LlavaConfig(
        vision_config=vision, text_config=text.config, image_token_index=PLACEHOLDER, tie_word_embeddings=True
    )
    model = LlavaForConditionalGeneration(about).to(torch.bfloat16)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(text_folder / name, folder / name)
    return folder


def picture(seed: int) -> bytes:
    """A PNG of noise."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file, "png")
    return file.getvalue()


class SeeingBaseline:
    """`generate` and a step of cross-entropy on images; an image is seen once for each sequence."""

    def __init__(self, folder: Path, rank: int = 32) -> None:
        base = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        targets = rf".*language_model.*\.({'|'.join(TARGETS)})"
        self.model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=32, target_modules=targets))
        base.generation_config.eos_token_id = None
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)

    def generate(self, images: Sequence[bytes], prompts: Sequence[Ids], n_new: int) -> None:
        self.model.eval()
        tokens_BT = torch.from_numpy(np.stack([with_image(prompt) for prompt in prompts]))
        with torch.inference_mode():
            self.model.generate(
                input_ids=tokens_BT,
                attention_mask=torch.ones_like(tokens_BT),
                pixel_values=pixels(images),
                max_new_tokens=n_new,
                do_sample=True,
                pad_token_id=0,
            )

    def train(self, images: Sequence[bytes], sequences: Sequence[Ids], first: int, micro_batch: int) -> None:
        """Sequences of one length, scored from `first` on, an image before each."""
        self.model.train()
        for at in range(0, len(sequences), micro_batch):
            rows = slice(at, at + micro_batch)
            tokens_BT = torch.from_numpy(np.stack([with_image(tokens) for tokens in sequences[rows]]))
            n_scored = len(sequences[0]) - first
            logits = self.model(
                input_ids=tokens_BT[:, :-1], pixel_values=pixels(images[rows]), logits_to_keep=n_scored, use_cache=False
            ).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), tokens_BT[:, -n_scored:].flatten(), reduction="sum"
            )
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def with_image(tokens: Ids) -> Ids:
    return np.concatenate([np.full(N_IMAGE, PLACEHOLDER), tokens])


def pixels(images: Sequence[bytes]) -> torch.Tensor:
    arrays = [np.asarray(Image.open(io.BytesIO(data)), np.float32) / 127.5 - 1 for data in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(torch.bfloat16)
