"""Makes tiny random vision models in the published format, and small pictures in bytes."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipVisionConfig,
)

from tests.tiny import make_tokenizer

IMAGE, VIDEO, VISION_START, VISION_END = 3, 4, 5, 6  # ids right behind the specials of the tiny tokenizer
IMAGE_TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
# Images go before the text of a message in both; what matters here is the placeholder and the parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_vision_model(folder: Path, family: str = "qwen3_vl", *, seed: int = 0, **vision) -> Path:
    """A folder as `make_tiny_model`'s, with preprocessor_config.json. `vision` goes to the tower's configuration."""
    torch.manual_seed(seed)
    model = _llava(**vision) if family == "llava" else _qwen3_vl(family, **vision)
    for name, parameter in model.named_parameters():
        parameter.data += (0.1 if "language_model" in name else 0.2) * torch.randn_like(parameter)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    make_tokenizer(folder, 512, IMAGE_TOKENS, CHAT_TEMPLATE)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family.removesuffix("_moe")]))
    return folder


PROCESSORS = {
    "llava": {
        "image_processor_type": "LlavaImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
    },
    "qwen3_vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 32 * 32, "longest_edge": 128 * 128},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


def _llava(*, tower: str = "clip", **settings) -> LlavaForConditionalGeneration:
    sizes = VISION | {"image_size": 28, "patch_size": 14, "initializer_range": 0.2}
    vision = SiglipVisionConfig(**sizes) if tower == "siglip" else CLIPVisionConfig(**sizes, projection_dim=16)
    text = LlamaConfig(**TEXT, eos_token_id=2)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=4, **settings)
    )


MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "mlp_only_layers": [1]}


def _qwen3_vl(family: str, **settings) -> Qwen3VLForConditionalGeneration | Qwen3VLMoeForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.2,
    }
    moe = family == "qwen3_vl_moe"
    config = (Qwen3VLMoeConfig if moe else Qwen3VLConfig)(
        text_config=TEXT | {"head_dim": 32, "rope_parameters": rope} | (MOE if moe else {}),
        vision_config=vision | settings,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )
    return (Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration)(config)


def picture(width: int = 40, height: int = 30, *, seed: int = 0, format: str = "png", mode: str = "RGB") -> bytes:
    """A file of coloured noise over a gradient."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 200, height * width).reshape(height, width, 1)
    pixels = (slope + random.integers(0, 56, (height, width, 3))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()
