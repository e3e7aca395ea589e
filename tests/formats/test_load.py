"""Loading published folders: every tensor in its place, and a folder that does not fit refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loreloop.formats.catalog import Catalog
from loreloop.formats.configuration import read_config, read_spec
from loreloop.formats.load import check_weights
from loreloop.protocol.errors import BadRequest
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", "qwen2")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "tiny")


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def configure(folder, file="config.json", **changes):
    path = folder / file
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | changes))


def test_fused_weights_and_biases_are_their_parts_one_under_another(folder):
    tensors, attention = load_file(folder / WEIGHTS), load(folder).layers[1].attention
    for kind, fused in [("weight", attention.qkv.weight_OI), ("bias", attention.qkv.bias_O)]:
        parts = [tensors[f"model.layers.1.self_attn.{p}_proj.{kind}"] for p in "qkv"]
        assert torch.equal(fused, torch.cat(parts))


def test_a_tied_head_is_the_embedding_itself_and_an_untied_one_is_not(folder, tmp_path):
    tied = load(folder)
    assert tied.head.weight_OI.data_ptr() == tied.embedding_VD.data_ptr()
    untied = load(make_tiny_model(tmp_path / "untied", tie_word_embeddings=False))
    assert not torch.equal(untied.head.weight_OI, untied.embedding_VD)


def test_shards_make_the_same_model(made, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(made)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sequence = tokens(20)
    assert torch.equal(logprobs(load(tmp_path), [sequence]), logprobs(load(made), [sequence]))


def test_weights_are_cast_to_the_compute_dtype(folder):
    decoder = load(folder, dtype=torch.bfloat16)
    assert torch.equal(decoder.embedding_VD, load(folder).embedding_VD.bfloat16())


def test_a_missing_tensor_is_refused_by_name(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadRequest, match=r"lacks 1 tensors.*layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_an_extra_tensor_is_refused_by_name(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.mlp.router.weight": torch.zeros(4, 64)}))
    with pytest.raises(BadRequest, match=r"mlp\.router\.weight"):
        load(folder)


def test_layers_beyond_the_configuration_are_refused(folder):
    configure(folder, num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(BadRequest, match=r"model\.layers\.1\."):
        load(folder)


def test_a_wrong_shape_is_refused_with_both_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(65)}))
    with pytest.raises(BadRequest, match=r"'model\.norm\.weight' has the shape \[65\].*\[64\]"):
        load(folder)


def test_stored_rotary_tables_and_copies_of_a_tied_head_are_let_pass(folder):
    sequence, before = tokens(10), logprobs(load(folder), [tokens(10)])
    head = load_file(folder / WEIGHTS)["model.embed_tokens.weight"].clone()
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8), "lm_head.weight": head}
    rewrite(folder, lambda tensors: tensors.update(extra))
    assert torch.equal(logprobs(load(folder), [sequence]), before)


@pytest.mark.parametrize("stored", ["both, differing", "the head alone"])
def test_a_configuration_that_ties_what_the_folder_stores_otherwise_is_not_believed(folder, stored):
    """transformers serves both where they differ, and takes either for both where only one is stored."""
    head = torch.randn(512, 64) / 8

    def change(tensors):
        tensors["lm_head.weight"] = head
        if stored == "the head alone":
            del tensors["model.embed_tokens.weight"]

    rewrite(folder, change)
    check_weights(folder)
    own = load(folder)
    assert own.spec.tie_embeddings == (stored == "the head alone")
    sequence = tokens(20)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
    assert (logprobs(own, [sequence]) - theirs).abs().max() <= 1e-4


def test_a_shard_that_is_not_there_is_named(folder, tmp_path):
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadRequest, match=r"lacks model-1\.safetensors"):
        load(folder)
    (tmp_path / "models").mkdir()
    shutil.copytree(folder, tmp_path / "models" / "broken")
    assert Catalog(tmp_path).list() == []


def test_code_in_a_folder_is_never_run(folder):
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    configure(folder, auto_map={"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"})
    assert load(folder).spec.family == "qwen2"


def test_pickled_weights_are_not_read(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(BadRequest, match=r"no \.safetensors"):
        load(folder)


def test_stop_ids_of_both_files_are_taken_once_each(folder):
    configure(folder, eos_token_id=2)
    configure(folder, "generation_config.json", eos_token_id=[7, 2])
    assert read_spec(folder).eos_token_ids == (2, 7)
    configure(folder, "generation_config.json", eos_token_id=7.0)  # which transformers takes
    assert read_spec(folder).eos_token_ids == (2, 7)
    configure(folder, "generation_config.json", eos_token_id=[7.5])
    with pytest.raises(BadRequest, match=r"eos_token_id = \[7\.5\]"):
        read_spec(folder)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model_type": "mamba"}, "mamba.*llama.*mixtral.*qwen2.*qwen3"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"sliding_window": 8, "layer_types": ["sliding_attention", "chunked_attention"]}, "chunked_attention"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused_by_name(folder, changes, names):
    configure(folder, **changes)
    with pytest.raises(BadRequest, match=names):
        read_spec(folder)


@pytest.mark.parametrize("content", [None, "{not json"])
def test_a_folder_without_a_readable_configuration_is_refused(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadRequest, match="not a model folder"):
        read_config(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(folder, value):
    name = "model.layers.1.mlp.down_proj.weight"

    def damage(tensors):
        tensors[name][3, 5] = value

    rewrite(folder, damage)
    with pytest.raises(BadRequest, match=rf"{name}.* 1 values that are not finite"):
        load(folder)


def test_large_weights_are_numbers(folder):
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].fill_(3e38))  # whose sum is beyond fp32
    load(folder)
