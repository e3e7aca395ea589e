"""Folders that anybody may have made: settings nobody could compute and files that are not what they should be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loreloop.formats.catalog import Catalog
from loreloop.formats.configuration import spec_of
from loreloop.formats.load import load_decoder
from loreloop.formats.weight_files import BLOCKS_FILE as FILE
from loreloop.model.linear import FastProducts
from loreloop.protocol.errors import BadRequest
from tests.model.plain import CPU, load
from tests.tiny import make_tiny_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 512, "rope_theta": 1e4}
SETTINGS = {
    "llama": [
        {"rope_parameters": "yarn"},
        {"rope_parameters": YARN | {"original_max_position_embeddings": -5}},
        {"rope_parameters": YARN | {"rope_theta": 1.0}},
        {"rope_parameters": YARN | {"factor": float("nan")}},
        {"quantization_config": [1]},
        {"quantization_config": PACKED | {"config_groups": {"g": None}}},
        {"num_attention_heads": 0, "head_dim": None},
        {"num_attention_heads": "x"},
        {"num_attention_heads": 3},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"rms_norm_eps": "a"},
        {"eos_token_id": {"a": 1}},
        {"eos_token_id": ["a"]},
    ],
    "mixtral": [{"num_experts_per_tok": k} for k in (0, 5, "2", None)] + [{"num_local_experts": 40000}],
    "deepseek_v3": [
        {"n_group": 3},
        {"n_group": 8, "topk_group": 4},
        {"n_group": 4, "topk_group": 1},
        {"first_k_dense_replace": -3},
        {"moe_layer_freq": [1, 1]},
        {"n_shared_experts": -1},
        {"kv_lora_rank": 0},
    ],
    "qwen3_moe": [{"mlp_only_layers": 5}, {"num_experts": 0}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {family: make_tiny_model(tmp_path_factory.mktemp("model") / family, family) for family in SETTINGS}


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made["llama"], tmp_path / "tiny")


def rewrite(folder, **tensors):
    save_file(load_file(folder / WEIGHTS) | tensors, folder / WEIGHTS)


@pytest.mark.parametrize(("family", "change"), [(f, c) for f, changes in SETTINGS.items() for c in changes], ids=str)
def test_settings_that_nobody_could_compute_are_refused(made, family, change):
    config = json.loads((made[family] / "config.json").read_text())
    with pytest.raises(BadRequest):
        spec_of(config | change, "it")


def test_one_broken_folder_hides_no_other(folder, tmp_path):
    for name, text in {
        "a": "[" * 100_000,
        "b": '{"model_type": "llama", "quantization_config": [1]}',
        "c": "5",
    }.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text(text)
    shutil.copytree(folder, tmp_path / "models" / "good")
    assert [entry.name for entry in Catalog(tmp_path).list()] == ["good"]


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../x/model.safetensors"}}']
)
def test_an_index_names_files_beside_it(folder, index):
    shutil.copytree(folder, folder.parent / "x")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(index)
    with pytest.raises(BadRequest, match="index"):
        load(folder)


def test_a_text_model_has_no_tower(folder):
    rewrite(folder, **{"visual.blocks.0.weight": torch.zeros(3)})
    with pytest.raises(BadRequest, match=r"'visual\.blocks\.0\.weight'.*no place"):
        load(folder)


def test_integers_are_no_weights(folder):
    rewrite(folder, **{"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(BadRequest, match="int8"):
        load(folder)


def test_a_stacked_name_without_a_layer_is_refused(made, tmp_path):
    folder = shutil.copytree(made["qwen3_moe"], tmp_path / "tiny")
    rewrite(folder, **{"x.mlp.experts.gate_up_proj": torch.zeros(3, 3, 3)})
    with pytest.raises(BadRequest, match=r"x\.mlp\.experts"):
        load(folder)


def test_a_packed_router_is_refused(tmp_path):
    folder = make_tiny_model(tmp_path, "mixtral", num_local_experts=16)
    name, tensors = "model.layers.1.block_sparse_moe.gate.weight", load_file(folder / WEIGHTS)
    del tensors[name]
    tensors[f"{name}_packed"] = torch.zeros(16, 8, dtype=torch.int32)
    tensors[f"{name}_scale"] = torch.zeros(16, 2, dtype=torch.bfloat16)
    save_file(tensors | {f"{name}_shape": torch.tensor([16, 64])}, folder / WEIGHTS)
    with pytest.raises(BadRequest, match=r"gate\.weight is packed"):
        load(folder)


KEPT = "model.layers.0.mlp.down_proj.weight"
CODES, HALVES = torch.zeros(64, 64, dtype=torch.uint8), torch.zeros(64, 4, dtype=torch.float16)
BLOCKS = {
    "those of one weight": {f"{KEPT}.codes": CODES, f"{KEPT}.scales": HALVES, f"{KEPT}.offsets": HALVES},
    "no offsets": {f"{KEPT}.codes": CODES, f"{KEPT}.scales": HALVES},
    "eight bits": {f"{KEPT}.codes": torch.zeros(64, 128, dtype=torch.int8), f"{KEPT}.scales": HALVES},
    "other scales": {f"{KEPT}.codes": CODES, f"{KEPT}.scales": HALVES[:, :2], f"{KEPT}.offsets": HALVES[:, :2]},
    "NaN": {f"{KEPT}.codes": CODES, f"{KEPT}.scales": HALVES * torch.nan, f"{KEPT}.offsets": HALVES},
    "no scales": {f"{KEPT}.codes": CODES},
    "an unknown weight": {"x.codes": CODES, "x.scales": HALVES, "x.offsets": HALVES},
}


@pytest.mark.parametrize("blocks", BLOCKS)
def test_blocks_that_fit_no_place_are_refused(folder, blocks):
    (folder / FILE).parent.mkdir()
    save_file({name: tensor.clone() for name, tensor in BLOCKS[blocks].items()}, folder / FILE)
    with pytest.raises(BadRequest, match=r"again|fits no weight"):
        load_decoder(folder, dtype=torch.bfloat16, device=CPU, products=FastProducts(), quantize=True)
