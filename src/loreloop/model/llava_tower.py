"""LLaVA's tower: transformers' CLIP or SigLIP and two linear maps.

Legend: C colours, H rows, W columns of pixels, N tokens of an image, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loreloop.model.families.llava import feature_strategy
from loreloop.model.tower import ImageFeatures, Tower


def llava_tower(config: Mapping[str, Any]) -> Tower:
    """transformers' tower and projector, with weights that are not yet filled in."""
    # Imported here, since transformers takes seconds to load and only models with a tower need it.
    from transformers import AutoModel, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    whole = LlavaConfig.from_dict(dict(config))
    tower = AutoModel.from_config(whole.vision_config, attn_implementation="sdpa")
    return LlavaTower(tower, LlavaMultiModalProjector(whole), config)


class LlavaTower:
    """One of the tower's hidden states, or several side by side, through the projector."""

    def __init__(self, tower: nn.Module, projector: nn.Module, config: Mapping[str, Any]) -> None:
        self.parts = nn.ModuleDict({"tower": tower, "projector": projector})
        layers = config.get("vision_feature_layer", -2)
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.first = int(feature_strategy(config) == "default")  # without the class token

    def __call__(self, pixels_CHW: Tensor) -> ImageFeatures:
        states = self.parts["tower"](pixels_CHW[None], output_hidden_states=True).hidden_states
        # Several layers stand side by side in the width that the projector was trained for.
        chosen_ND = torch.cat([states[layer][0, self.first :] for layer in self.layers], dim=-1)
        return ImageFeatures(self.parts["projector"](chosen_ND))
