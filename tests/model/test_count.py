"""Adapter sizes from configurations alone equal the published ones."""

import json
import subprocess
import sys
import time

import pytest

from loreloop.formats.configuration import spec_of
from loreloop.model.count import AdapterCount, count_adapter
from loreloop.model.lora import LoraLayout
from loreloop.protocol.training import LoraSpec

COMMON = {"rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "rope_theta": 1e6}
QWEN = COMMON | {"vocab_size": 151936, "head_dim": 128, "num_attention_heads": 32}
SMALL_QWEN = QWEN | {"model_type": "qwen3", "num_hidden_layers": 36, "num_key_value_heads": 8}
QWEN_MOE = QWEN | {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "num_key_value_heads": 4}
QWEN_30B = QWEN_MOE | {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
}
QWEN_235B = QWEN_MOE | {
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
}
DEEPSEEK = COMMON | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
KIMI = DEEPSEEK | {
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "first_k_dense_replace": 1,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
}


def vision(text):
    """The text part inside the configuration of a model with a tower, which has no adapters."""
    tower = {"deepstack_visual_indexes": [8, 16, 24], "out_hidden_size": text["hidden_size"]}
    model_type = text["model_type"].replace("qwen3", "qwen3_vl")
    return {"model_type": model_type, "text_config": text, "vision_config": tower}


PUBLISHED = {
    "Qwen3-4B": (SMALL_QWEN | {"hidden_size": 2560, "intermediate_size": 9728}, (1_327_104, 737_280, 154_496)),
    "Qwen3-8B": (SMALL_QWEN | {"hidden_size": 4096, "intermediate_size": 12288}, (1_769_472, 958_464, 156_032)),
    "Qwen3-30B-A3B": (QWEN_30B, (14_450_688, 835_584, 153_984)),
    "Qwen3-VL-30B-A3B": (vision(QWEN_30B), (14_450_688, 835_584, 153_984)),
    "Qwen3-235B-A22B": (QWEN_235B, (56_598_528, 3_176_448, 156_032)),
    "Qwen3-VL-235B-A22B": (vision(QWEN_235B), (56_598_528, 3_176_448, 156_032)),
    "Kimi-K2-Thinking": (KIMI, (144_583_680, 1_940_288, 171_008)),
    "DeepSeek-V3.1": (DEEPSEEK, (94_307_328, 2_440_000, 136_448)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_equal_the_published_ones(name):
    config, counts = PUBLISHED[name]
    spec = spec_of(config, name)
    assert count_adapter(spec) == AdapterCount(*counts)
    assert count_adapter(spec, 32).total == 32 * sum(counts)


def test_the_two_forms_of_an_adapter_of_kimi():
    spec = spec_of(KIMI, "Kimi")
    assert round(count_adapter(spec).total / 1e6, 1) == 146.7
    per_expert = count_adapter(spec, experts="per_expert")
    assert round((per_expert.mlp + per_expert.attn) / 1e6, 1) == 640.7


@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
def test_a_layout_is_as_large_as_its_count(form):
    small = KIMI | {"num_hidden_layers": 3, "n_routed_experts": 8}
    spec = spec_of(small, "small")
    assert LoraLayout(spec, LoraSpec(4, 0, experts=form)).size == count_adapter(spec, 4, form).total


@pytest.mark.timed
def test_the_command_counts_a_configuration_in_under_five_seconds(tmp_path):
    file = tmp_path / "kimi.json"
    file.write_text(json.dumps(KIMI))
    started = time.monotonic()
    command = [sys.executable, "-m", "loreloop.cli", "models", "count", str(file), "--rank", "8", "--json"]
    (row,) = json.loads(subprocess.check_output(command, text=True))
    assert time.monotonic() - started < 5
    assert (row["mlp"], row["attn"], row["unembed"]) == (8 * 144_583_680, 8 * 1_940_288, 8 * 171_008)
    assert row["family"] == "kimi_k2"


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    file = tmp_path / "list.json"
    file.write_text("[]")
    command = [sys.executable, "-m", "loreloop.cli", "models", "count", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "list.json holds no JSON object, but a list" in ended.stderr
