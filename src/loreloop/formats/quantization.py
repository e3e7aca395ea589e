"""What a published configuration says of how its weights are quantised, and whether that is read. Knows no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loreloop.model.attention_spec import as_settings
from loreloop.protocol.errors import BadRequest

GROUP = 32  # inputs that have a scale in common, as in `kernels/packed_products.py`
BLOCK = 128  # rows and columns of a block that have one
WANTED = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}


def check_quantization(config: Mapping[str, Any]) -> None:
    """BadRequest where a configuration says that weights are quantised otherwise."""
    about = as_settings("quantization_config", config.get("quantization_config") or {})
    if not about or is_float8(about) or is_mxfp4(about):
        return
    kind = (about.get("quant_method"), about.get("format"))
    if kind != ("compressed-tensors", "pack-quantized"):
        raise BadRequest(
            f"The weights are quantised by {kind[0]!r} in the format {kind[1]!r}; of quantised checkpoints "
            "compressed-tensors' pack-quantized ones are read, MXFP4, and 8-bit floats (e4m3) in blocks of 128 × 128. "
            "Dequantise it first."
        )
    for name, value in as_settings("config_groups", about.get("config_groups", {})).items():
        group = as_settings(name, value)
        weights = as_settings("weights", group.get("weights") or {})
        # Every setting is compared, since weights read by wrong settings are numbers too, only other ones.
        other = {key: weights.get(key) for key, value in WANTED.items() if weights.get(key) != value}
        if other or group.get("input_activations"):
            raise BadRequest(
                f"The weights of {name} are quantised with {other or 'quantised activations'}; what is read are 4-bit "
                f"symmetric integers with a scale for {GROUP} values, and activations as they are."
            )


def is_float8(about: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` describes what is read here."""
    blocks = (about.get("quant_method"), about.get("fmt", "e4m3"), about.get("weight_block_size"))
    return blocks == ("fp8", "e4m3", [BLOCK, BLOCK])


def is_mxfp4(about: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` describes what is read here."""
    return about.get("quant_method") == "mxfp4"
