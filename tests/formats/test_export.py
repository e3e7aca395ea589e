"""Adapters that leave home: what peft, transformers and GGUF readers compute with them is what we compute."""

import json
import warnings

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loreloop.cli.main import cli
from loreloop.formats.configuration import read_spec
from loreloop.formats.export import export, merge
from loreloop.formats.gguf import convert
from loreloop.formats.gguf_out import write_gguf
from loreloop.formats.peft import WEIGHTS_FILE, read_adapter, write_adapter
from loreloop.model.lora import UNEMBED, AdapterView, LoraBatch, LoraGroup, LoraLayout
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec
from tests.model.plain import hidden, load, logprobs, tokens
from tests.tiny import make_tiny_model

FAMILIES = ["llama", "qwen2", "mixtral", "qwen3_moe", "deepseek_v3"]
SEQUENCE = tokens(40)


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), request.param, tie_word_embeddings=False)


def adapter(base, folder, form="shared_outer", *, unembed=True, dtype=torch.float32, **parts):
    """A folder with a random adapter, and that adapter."""
    layout = LoraLayout(read_spec(base), LoraSpec(3, 7, train_unembed=unembed, experts=form, **parts))
    flat = 0.05 * torch.randn(layout.size, generator=torch.Generator().manual_seed(7))
    view = AdapterView(layout, flat.to(dtype))
    folder.mkdir()
    write_adapter(folder, view, "some/base")
    return view


def own_logprobs(base, view):
    decoder, lora = load(base), LoraBatch([LoraGroup(0, len(SEQUENCE), view)])
    with torch.no_grad():
        h_TD = hidden(decoder, [SEQUENCE], lora)
        return lora.linear(h_TD, decoder.head, decoder.spec.n_layers, UNEMBED).log_softmax(-1)


def their_logprobs(model):
    with torch.no_grad():
        return model(torch.tensor([SEQUENCE])).logits[0].log_softmax(-1)


@pytest.mark.numbers
@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
def test_peft_loads_what_is_exported_and_gives_the_same_log_probs(base, tmp_path, form):
    view = adapter(base, tmp_path / "a", form)
    export(base, tmp_path / "a", tmp_path / "out", "peft", "some/base")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").eval()
    assert (own_logprobs(base, view) - their_logprobs(model)).abs().max() <= 1e-4


@pytest.mark.numbers
@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
def test_the_merged_model_is_the_model_with_its_adapter(base, tmp_path, form):
    view = adapter(base, tmp_path / "a", form)
    export(base, tmp_path / "a", tmp_path / "out", "merged", "some/base")
    expected = own_logprobs(base, view)
    assert (expected - their_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))).abs().max() <= 1e-4
    assert (expected - logprobs(load(tmp_path / "out"), [SEQUENCE])).abs().max() <= 1e-4


def test_an_adapter_of_the_unembedding_unties_it(tmp_path):
    base = make_tiny_model(tmp_path / "tied", "mixtral")
    view = adapter(base, tmp_path / "a")
    (tmp_path / "out").mkdir()
    merge(base, tmp_path / "out", view, shard_bytes=200_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    merged = load(tmp_path / "out")
    assert not merged.spec.tie_embeddings
    assert (own_logprobs(base, view) - logprobs(merged, [SEQUENCE])).abs().max() <= 1e-4


@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
def test_our_own_folder_stacks_experts_in_w1_w2_w3_and_is_read_back(tmp_path, form):
    base = make_tiny_model(tmp_path / "base", "mixtral")
    view = adapter(base, tmp_path / "a", form)
    tensors = load_file(tmp_path / "a" / WEIGHTS_FILE)
    shapes = {part: [tuple(tensors[f"{EXPERTS}.{part}.lora_{m}.weight"].shape) for m in "AB"] for part in PARTS}
    outer = 1 if form == "shared_outer" else 4
    assert shapes["w1"] == shapes["w3"] == [(outer, 3, 64), (4, 48, 3)]
    assert shapes["w2"] == [(4, 3, 48), (outer, 64, 3)]
    read = read_adapter(tmp_path / "a", read_spec(base), torch.float32)
    assert read.layout.lora == view.layout.lora
    assert torch.equal(read.flat, view.flat)


EXPERTS, PARTS = "base_model.model.model.layers.1.mlp.experts", ("w1", "w2", "w3")


def test_a_gguf_file_of_a_llama_is_read_back(tmp_path):
    base = make_tiny_model(tmp_path / "base", vocab_size=512)
    view = adapter(base, tmp_path / "a", unembed=False)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    export(base, tmp_path / "a", tmp_path / "out.gguf", "gguf", "some/base")
    (tmp_path / "back").mkdir()
    convert(tmp_path / "out.gguf", tmp_path / "back")
    merged = load(tmp_path / "back")
    assert merged.spec.eos_token_ids == (2,)
    assert (own_logprobs(base, view) - logprobs(merged, [SEQUENCE])).abs().mean() <= 0.05  # it is in bf16


def test_a_gguf_file_of_a_mixtral_holds_its_experts_side_by_side(tmp_path):
    base = make_tiny_model(tmp_path / "base", "mixtral")
    adapter(base, tmp_path / "a", unembed=False)
    for form, name in [("gguf", "out.gguf"), ("merged", "merged")]:
        export(base, tmp_path / "a", tmp_path / name, form, "some/base")
    merged, reader = load_file(tmp_path / "merged" / "model.safetensors"), GGUFReader(str(tmp_path / "out.gguf"))
    held = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for own, theirs in [("ffn_gate_exps", "w1"), ("ffn_up_exps", "w3"), ("ffn_down_exps", "w2")]:
        prefix = "model.layers.1.block_sparse_moe.experts"
        stacked = np.stack([merged[f"{prefix}.{e}.{theirs}.weight"].bfloat16().float().numpy() for e in range(4)])
        assert np.array_equal(held[f"blk.1.{own}.weight"], stacked)
    assert np.array_equal(
        held["blk.0.ffn_gate_inp.weight"],
        merged["model.layers.0.block_sparse_moe.gate.weight"].bfloat16().float().numpy(),
    )
    assert reader.fields["llama.expert_count"].contents() == 4
    assert reader.fields["llama.expert_used_count"].contents() == 2


def test_the_command_exports_once(tmp_path):
    base = make_tiny_model(tmp_path / "base", "mixtral")
    adapter(base, tmp_path / "a")
    arguments = ["models", "export", str(base), str(tmp_path / "a"), str(tmp_path / "out")]
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    with pytest.raises(BadRequest, match="exists already"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


def think(base, **fields):
    """One more added token in a folder's tokenizer."""
    token = {"id": 511, "content": "<think>", "special": False, "normalized": False}
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    spare = {name: index for name, index in tokenizer["model"]["vocab"].items() if index != 511}
    tokenizer["model"]["vocab"] = spare
    tokenizer["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False} | fields)
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_added_tokens_go_into_gguf_by_their_kind(tmp_path):
    base = make_tiny_model(tmp_path)
    think(base)
    write_gguf(base, tmp_path / "x.gguf")
    fields = GGUFReader(str(tmp_path / "x.gguf")).fields
    assert fields["tokenizer.ggml.tokens"].contents()[511] == "<think>"
    assert fields["tokenizer.ggml.token_type"].contents()[511] == gguf.TokenType.USER_DEFINED
    assert fields["tokenizer.ggml.token_type"].contents()[0] == gguf.TokenType.CONTROL


def test_ids_that_the_model_lacks_and_folders_without_a_tokenizer_give_no_gguf(tmp_path):
    base = make_tiny_model(tmp_path)
    think(base, id=600)
    with pytest.raises(BadRequest, match="the id 600"):
        write_gguf(base, tmp_path / "x.gguf")
    (base / "tokenizer.json").unlink()
    with pytest.raises(BadRequest, match=r"tokenizer\.json cannot be read"):
        write_gguf(base, tmp_path / "x.gguf")


def test_a_merged_folder_holds_no_other_weights(tmp_path):
    base = make_tiny_model(tmp_path / "base")
    adapter(base, tmp_path / "a", unembed=False)
    for name in (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.gguf",
        "adapter_config.json",
        "merges.txt",
    ):
        (base / name).write_text("{}")
    export(base, tmp_path / "a", tmp_path / "out", "merged", "some/base")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    settings = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt"}
    assert names == settings | {"model.safetensors"}


def test_a_weight_that_the_base_lacks_cannot_be_changed(tmp_path):
    base = make_tiny_model(tmp_path / "base")
    view = adapter(base, tmp_path / "a", unembed=False)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, base / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadRequest, match=r"lacks 1 weights.*down_proj"):
        merge(base, tmp_path / "out", view)


def test_an_adapter_of_another_base_is_refused_and_leaves_nothing(tmp_path):
    base = make_tiny_model(tmp_path / "base", "mixtral")
    adapter(base, tmp_path / "a")
    other = make_tiny_model(tmp_path / "other", "mixtral", num_local_experts=6)
    with pytest.raises(BadRequest, match=r"another base.*\[4, .*\[6, "):
        export(other, tmp_path / "a", tmp_path / "out", "merged", "some/base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "other"]


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("stored", ["another head", "the head alone"])
def test_exports_of_a_base_that_stores_its_head_otherwise_than_it_says(tmp_path, stored, unembed):
    """They give what the base gives with the adapter, in a folder for transformers and in a GGUF file."""
    base = make_tiny_model(tmp_path / "base", "llama")
    tensors = load_file(base / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone()
    if stored == "another head":
        tensors["lm_head.weight"] = embedding.flip(0).contiguous()
    else:
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    view = adapter(base, tmp_path / "a", unembed=unembed)
    expected = own_logprobs(base, view) if unembed else logprobs_with(base, view)
    export(base, tmp_path / "a", tmp_path / "out", "merged", "some/base")
    assert (expected - their_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))).abs().max() <= 1e-4
    export(base, tmp_path / "a", tmp_path / "out.gguf", "gguf", "some/base")
    stored_names = {tensor.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert "token_embd.weight" in stored_names
    assert ("output.weight" in stored_names) == (unembed or stored == "another head")


def logprobs_with(base, view):
    decoder, lora = load(base), LoraBatch([LoraGroup(0, len(SEQUENCE), view)])
    with torch.no_grad():
        return (hidden(decoder, [SEQUENCE], lora) @ decoder.head.weight_OI.T).log_softmax(-1)
