"""Which family reads which `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loreloop.model.families.deepseek_v3 import DeepseekV3
from loreloop.model.families.family import Family
from loreloop.model.families.gemma import Gemma2, Gemma3
from loreloop.model.families.glm4_moe import Glm4Moe
from loreloop.model.families.gpt_oss import GptOss
from loreloop.model.families.granite import Granite
from loreloop.model.families.llama import Llama
from loreloop.model.families.llava import Llava
from loreloop.model.families.mistral import Ministral3, Mistral
from loreloop.model.families.mixtral import Mixtral
from loreloop.model.families.nearest import refusal
from loreloop.model.families.olmo import Olmo
from loreloop.model.families.phi3 import Phi3
from loreloop.model.families.qwen2 import Qwen2
from loreloop.model.families.qwen3 import Qwen3
from loreloop.model.families.qwen3_moe import Qwen3Moe
from loreloop.model.families.qwen3_vl import Qwen3VL
from loreloop.model.families.qwen3_vl_moe import Qwen3VLMoe
from loreloop.model.families.smollm3 import SmolLM3
from loreloop.protocol.errors import BadRequest

FAMILIES: Mapping[str, Family] = {
    "deepseek_v3": DeepseekV3(),
    "gemma2": Gemma2(),
    "gemma3": Gemma3(),
    "gemma3_text": Gemma3(),
    "glm4_moe": Glm4Moe(),
    "gpt_oss": GptOss(),
    "granite": Granite(),
    "kimi_k2": DeepseekV3(),
    "llama": Llama(),
    "llava": Llava(),
    "ministral": Mistral(),
    "ministral3": Ministral3(),
    "mistral": Mistral(),
    "mixtral": Mixtral(),
    "olmo2": Olmo(),
    "olmo3": Olmo(),
    "phi3": Phi3(),
    "qwen2": Qwen2(),
    "qwen3": Qwen3(),
    "qwen3_moe": Qwen3Moe(),
    "qwen3_vl": Qwen3VL(),
    "qwen3_vl_moe": Qwen3VLMoe(),
    "smollm3": SmolLM3(),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a published configuration, or BadRequest with the nearest one and those that are known."""
    # As a string, so that a configuration without a type, or with a list there, is refused like an unknown one.
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise BadRequest(refusal(config, FAMILIES))
    return FAMILIES[model_type]
