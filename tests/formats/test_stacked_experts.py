"""A layer's experts in one tensor: both ways to lay them, also where one tensor's sides are equally wide."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests import tiny_vision
from tests.model.plain import load, logprobs, tokens
from tests.tiny_vision import make_tiny_vision_model


@pytest.mark.numbers
@pytest.mark.parametrize("d_expert", [24, 32, 64])  # the hidden state is 64 wide: a gate and an up of 32 are as wide
def test_both_ways_to_lay_experts_are_one_model(monkeypatch, tmp_path, d_expert):
    monkeypatch.setitem(tiny_vision.MOE, "moe_intermediate_size", d_expert)
    folder, sequence = make_tiny_vision_model(tmp_path, "qwen3_vl_moe"), tokens(12)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    expected = theirs(torch.tensor([sequence])).logits[0].log_softmax(-1)
    own = logprobs(load(folder), [sequence])
    assert (own - expected).abs().max() <= 1e-4
    tensors = load_file(folder / "model.safetensors")
    turned = {n: t.transpose(1, 2).contiguous() if ".mlp.experts." in n else t for n, t in tensors.items()}
    save_file(turned, folder / "model.safetensors")
    assert torch.equal(logprobs(load(folder), [sequence]), own)
