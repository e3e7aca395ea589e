"""Experts published in MXFP4: as transformers unpacks them, kept packed, and merged."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from loreloop.formats.configuration import read_spec
from loreloop.formats.export import export
from loreloop.formats.load import load_decoder
from loreloop.formats.peft import write_adapter
from loreloop.model.linear import FastProducts
from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.packed_weights import PackedWeight
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec
from tests.engine.sample_rig import make_sampler, run, sample_op, trainer_logprobs
from tests.engine.train_rig import Rig, datum, random_tokens, train_pass
from tests.tiny import make_tiny_model

STACKS = ("gate_up_proj", "down_proj")


def packed_folder(folder, **changes):
    """A tiny gpt-oss whose experts are random codes, and the same model with those unpacked by transformers."""
    make_tiny_model(folder / "dense", "gpt_oss")
    make_tiny_model(folder / "packed", "gpt_oss")
    tensors = load_file(folder / "dense" / "model.safetensors")
    plain, packed = dict(tensors), dict(tensors)
    draw = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(STACKS)]:
        n_experts, d_in, d_out = tensors[name].shape
        blocks = torch.randint(0, 256, (n_experts, d_out, d_in // 32, 16), dtype=torch.uint8, generator=draw)
        scales = torch.randint(122, 125, (n_experts, d_out, d_in // 32), dtype=torch.uint8, generator=draw)
        del packed[name]
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales).float().contiguous()
    packed |= changes
    save_file(plain, folder / "dense" / "model.safetensors", {"format": "pt"})
    save_file(packed, folder / "packed" / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "packed" / "config.json").read_text())
    about = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "packed" / "config.json").write_text(json.dumps(config | {"quantization_config": about}))
    return folder / "packed", folder / "dense"


@pytest.mark.numbers
def test_packed_experts_give_the_numbers_of_unpacked_ones(tmp_path):
    packed, dense = packed_folder(tmp_path)
    data = [datum(random_tokens(40)), datum(random_tokens(30, 1))]
    rigs = Rig(packed), Rig(dense)
    states = [rig.state() for rig in rigs]
    logps = [rig.run((state, train_pass(*data)))[0] for rig, state in zip(rigs, states, strict=True)]
    for own, plain in zip(*logps, strict=True):
        assert (own - plain).abs().max() <= 1e-5
    assert (states[0].grad - states[1].grad).abs().max() <= 1e-4
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32, attn_implementation="eager")
    answer = run(make_sampler(rigs[0]), sample_op(random_tokens(20), temperature=0, max_tokens=6))["r"]
    with torch.no_grad():
        logits = model(torch.tensor([random_tokens(20) + answer.tokens[0]])).logits[0, 19:-1]
    assert answer.tokens[0] == logits.argmax(-1).tolist()


def test_the_setting_for_4_bits_leaves_their_values_as_they_are(tmp_path):
    packed, dense = packed_folder(tmp_path)
    cpu, products = torch.device("cpu"), FastProducts()
    decoder = load_decoder(packed, dtype=torch.bfloat16, device=cpu, products=products, quantize=True)
    own_OI = decoder.layers[0].feed_forward.experts[1].gate_up.weight_OI.float()
    assert torch.equal(own_OI, dense_gate_up(dense, 1))


def dense_gate_up(folder, expert):
    rows_OI = load_file(folder / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"][expert].T
    return torch.cat((rows_OI[::2], rows_OI[1::2]))


def test_they_stay_packed_in_memory(tmp_path):
    packed, _ = packed_folder(tmp_path)
    weight = Rig(packed).decoder.layers[0].feed_forward.experts[0].gate_up.weight
    assert isinstance(weight, PackedWeight)
    n_values = weight.shape[0] * weight.shape[1]
    assert weight.n_bytes == n_values // 2 + n_values // 32


def test_the_sampler_gives_the_trainers_bits(tmp_path):
    packed, _ = packed_folder(tmp_path)
    exact = Rig(packed, deterministic=True, dtype=torch.bfloat16)
    state, prompt = exact.state(rank=8), random_tokens(20)
    answer = run(make_sampler(exact), (sample_op(prompt, max_tokens=10), state.publish()))["r"]
    trained = trainer_logprobs(exact, prompt + answer.tokens[0], state)[len(prompt) - 1 :]
    assert torch.equal(torch.tensor(answer.logprobs[0]), trained)


@pytest.mark.numbers
def test_a_merged_model_is_dense_and_loads_everywhere(tmp_path):
    packed, _ = packed_folder(tmp_path)
    layout = LoraLayout(read_spec(packed), LoraSpec(3, 7))
    view = AdapterView(layout, 0.05 * torch.randn(layout.size, generator=torch.Generator().manual_seed(7)))
    (tmp_path / "a").mkdir()
    write_adapter(tmp_path / "a", view, "some/base")
    export(packed, tmp_path / "a", tmp_path / "out", "merged", "some/base")
    tokens = random_tokens(40)
    rig = Rig(packed)
    state = rig.state(rank=3, unembed=True)
    state.master.copy_(view.flat)
    state.refresh_weights()
    own = trainer_logprobs(rig, tokens, state)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = (
            model(torch.tensor([tokens])).logits[0].log_softmax(-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])
        )
    assert (own - theirs[:, 0]).abs().mean() <= 0.01  # what was merged was rounded to bf16


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("gate_up_proj_scales", torch.zeros(6, 64, 3, dtype=torch.uint8), "16 bytes of codes for each scale"),
        ("down_proj_scales", torch.full((6, 64, 1), 255, dtype=torch.uint8), "not numbers"),
    ],
)
def test_scales_that_do_not_fit_are_refused_by_name(tmp_path, name, tensor, words):
    packed, _ = packed_folder(tmp_path, **{f"model.layers.0.mlp.experts.{name}": tensor})
    with pytest.raises(BadRequest, match=words):
        Rig(packed)


def test_codes_without_scales_are_refused(tmp_path):
    packed, _ = packed_folder(tmp_path)
    tensors = load_file(packed / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        BadRequest, match=r"lacks the codes or the scales of 'model\.layers\.1\.mlp\.experts\.down_proj'"
    ):
        Rig(packed)
