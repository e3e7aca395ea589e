"""Checkpoints published in 4 bits: written by the compressed-tensors library, read by us, the same values."""

import json
import shutil

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loreloop.formats import quantization
from loreloop.formats.configuration import read_spec
from loreloop.formats.export import merge
from loreloop.formats.load import load_decoder
from loreloop.kernels import packed_products
from loreloop.model.linear import FastProducts
from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.packed_weights import PackedWeight
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec
from tests.engine.train_rig import CPU, Rig, datum, train_pass
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

ARGS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
SCHEME = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**ARGS))
WEIGHTS = "model.safetensors"
ABOUT = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": ARGS}},
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
}


def routed_expert(name):
    return ".mlp.experts." in name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a folder whose routed experts are packed, the folder of their values)."""
    values = make_tiny_model(tmp_path_factory.mktemp("values"), "deepseek_v3", moe_intermediate_size=64)
    packed = tmp_path_factory.mktemp("packed") / "tiny"
    shutil.copytree(values, packed)
    plain, compressed = load_file(values / WEIGHTS), {}
    for name, tensor in plain.items():
        if not routed_expert(name):
            compressed[name] = tensor
            continue
        scale = (tensor.unflatten(1, (-1, 32)).abs().amax(-1) / 7.5).bfloat16()
        parts = PackedQuantizationCompressor.compress({"weight": tensor.bfloat16(), "weight_scale": scale}, SCHEME)
        compressed |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        plain[name] = PackedQuantizationCompressor.decompress(parts, SCHEME)["weight"].float()
    save_file(compressed, packed / WEIGHTS, {"format": "pt"})
    save_file(plain, values / WEIGHTS, {"format": "pt"})
    for folder, about in ((packed, {"quantization_config": ABOUT}), (values, {})):
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "deepseek_v3"} | about
        (folder / "config.json").write_text(json.dumps(config))
    return packed, values


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "tiny")


def test_groups_are_as_large_as_those_of_the_products():
    assert quantization.GROUP == packed_products.GROUP


def test_the_packed_values_are_the_library_s(made):
    packed, values = made
    plain, decoder = load_file(values / WEIGHTS), load(packed)
    for layer in (1, 2):
        for number, expert in enumerate(decoder.layers[layer].feed_forward.experts):
            assert isinstance(expert.gate_up.weight, PackedWeight)
            parts = (plain[f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.weight"] for part in ("gate", "up"))
            assert torch.equal(expert.gate_up.weight_OI.float(), torch.cat(list(parts)))
            down = plain[f"model.layers.{layer}.mlp.experts.{number}.down_proj.weight"]
            assert torch.equal(expert.down.weight_OI.float(), down)
    assert not isinstance(decoder.layers[1].attention.parts.o.weight, PackedWeight)


def test_packed_experts_take_less_than_a_third_of_bf16(made):
    expert = load(made[0]).layers[1].feed_forward.experts[0]
    for base in (expert.gate_up, expert.down):
        assert base.weight.n_bytes <= 0.30 * 2 * base.d_in * base.d_out


@pytest.mark.numbers
def test_log_probs_are_transformers_on_the_unpacked_model(made):
    packed, values = made
    sequence = tokens(40)
    theirs = AutoModelForCausalLM.from_pretrained(values, dtype=torch.float32)
    expected = theirs(torch.tensor([sequence])).logits[0].log_softmax(-1)
    assert (logprobs(load(packed), [sequence]) - expected).abs().max() <= 1e-4


def test_adapters_get_exact_gradients_through_the_packed_values(made):
    grads = [Rig(folder).grad(train_pass(datum(tokens(40)), datum(tokens(25, seed=1)))) for folder in made]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_in_bf16_packed_and_unpacked_agree_to_rounding(made):
    packed, values = (
        logprobs(load_decoder(folder, dtype=torch.bfloat16, device=CPU, products=FastProducts()), [tokens(20)])
        for folder in made
    )
    assert (packed - values).abs().mean() <= 0.05


def test_an_adapter_is_merged_into_the_unpacked_values(made, tmp_path):
    layout = LoraLayout(read_spec(made[0]), LoraSpec(3, 7, train_unembed=False))
    view = AdapterView(layout, 0.05 * torch.randn(layout.size, generator=torch.Generator().manual_seed(7)))
    merged = []
    for name, folder in zip(("packed", "values"), made, strict=True):
        (tmp_path / name).mkdir()
        merge(folder, tmp_path / name, view)
        merged.append({n: t.bfloat16() for n, t in load_file(tmp_path / name / WEIGHTS).items()})
        assert "quantization_config" not in json.loads((tmp_path / name / "config.json").read_text())
    assert merged[0].keys() == merged[1].keys()
    for name, tensor in merged[0].items():
        assert torch.equal(tensor, merged[1][name]), name
    load(tmp_path / "packed")


def test_shards_may_tear_a_weight_s_parts_apart(made, tmp_path):
    packed, _ = made
    folder = shutil.copytree(packed, tmp_path / "torn")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    scales = {name for name in tensors if name.endswith("_scale")}
    save_file({n: t for n, t in tensors.items() if n in scales}, folder / "model-2.safetensors")
    save_file({n: t for n, t in tensors.items() if n not in scales}, folder / "model-1.safetensors")
    assert torch.equal(logprobs(load(folder), [tokens(9)]), logprobs(load(packed), [tokens(9)]))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS)


PART = "model.layers.1.mlp.experts.0.gate_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{PART}_scale"), rf"lacks {PART}_scale"),
        (lambda t: t.pop(f"{PART}_packed"), rf"{PART}"),
        (lambda t: t.update({f"{PART}_scale": t[f"{PART}_scale"][:, :1]}), "packed codes are"),
        (lambda t: t.update({f"{PART}_scale": t[f"{PART}_scale"].float()}), "bfloat16 is read"),
        (lambda t: t.update({f"{PART}_shape": torch.tensor([64, 32])}), "packed codes are"),
        (lambda t: t.update({f"{PART}_shape": torch.tensor(5)}), "packed codes are"),
        (lambda t: t.update({f"{PART}_scale": t[f"{PART}_scale"] * torch.nan}), "not finite"),
        (
            lambda t: [t.update({n.replace("experts.0", "experts.9"): t[n]}) for n in list(t) if PART in n],
            "fits no weight",
        ),
    ],
)
def test_damaged_parts_are_refused_by_name(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(BadRequest, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"quant_method": "fp8"}, "'fp8'"),
        ({"format": "naive-quantized"}, "naive-quantized"),
        ({"config_groups": {"g": {"weights": ARGS | {"num_bits": 8}}}}, r"num_bits.*8"),
        ({"config_groups": {"g": {"weights": ARGS | {"group_size": 128}}}}, "group_size"),
        ({"config_groups": {"g": {"weights": ARGS | {"symmetric": False}}}}, "symmetric"),
        ({"config_groups": {"g": {"weights": ARGS, "input_activations": {"num_bits": 8}}}}, "activations"),
    ],
)
def test_other_quantisations_are_refused_before_anything_is_read(folder, about, message):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = ABOUT | about
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadRequest, match=message):
        read_spec(folder)
