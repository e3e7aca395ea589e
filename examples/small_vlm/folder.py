"""The finished model as a folder: LLaVA's published layout, readable by `transformers` and by the server.

The language model's tensors and configuration are written as they came; only tower and projector are new. The
tokenizer's `<empty_output>` (unused here) becomes `<image>`, so that the vocabulary keeps its size and the embedding
stays tied.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from examples.small_vlm import tower, views
from examples.small_vlm.drawings import SIDE

IMAGE, SPARE = "<image>", "<empty_output>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] in ('image', 'image_url') %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_language_model(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval().requires_grad_(False)


def read_tokenizer(base: Path) -> Tokenizer:
    """The base's tokenizer with `<image>` in place of a token that no text of ours has."""
    file = (base / "tokenizer.json").read_text()
    return Tokenizer.from_str(file.replace(json.dumps(SPARE), json.dumps(IMAGE)))


def save(seeing: tower.Tower, language: PreTrainedModel, base: Path, folder: Path) -> None:
    tokenizer = read_tokenizer(base)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", _config(json.loads((base / "config.json").read_text()), tokenizer))
    save_file(_tensors(seeing, language), folder / "model.safetensors", {"format": "pt"})
    end = tokenizer.token_to_id("<|im_end|>")
    _write(folder / "generation_config.json", {"eos_token_id": end, "pad_token_id": end})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings |= {"chat_template": CHAT_TEMPLATE, "image_token": IMAGE, "processor_class": "LlavaProcessor"}
    _write(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write_processor(folder)


def _tensors(seeing: tower.Tower, language: PreTrainedModel) -> dict[str, torch.Tensor]:
    """bf16, by their published names; the unembedding is the embedding and is not written again."""
    named = {f"language_model.model.{name}": tensor for name, tensor in language.model.state_dict().items()}
    for name, tensor in seeing.state_dict().items():
        named[f"vision_tower.{name[7:]}" if name.startswith("vision.") else f"multi_modal_projector.{name}"] = tensor
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in named.items() if "_ids" not in name}


def _config(text: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "bfloat16",
        "image_token_index": tokenizer.token_to_id(IMAGE),
        "image_seq_length": (SIDE // tower.PATCH) ** 2,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "eos_token_id": text["eos_token_id"],
        "text_config": text,
        "vision_config": {"model_type": "clip_vision_model", **tower.VISION},
    }


def _write_processor(folder: Path) -> None:
    image = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": views.MEAN.flatten().tolist(),
        "image_std": views.STD.flatten().tolist(),
    }
    _write(folder / "preprocessor_config.json", image)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": tower.PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the tower's class token, which the language model does not get
        "image_token": IMAGE,
    }
    _write(folder / "processor_config.json", processor)


def _write(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(json.dumps(settings, indent=2) + "\n")
