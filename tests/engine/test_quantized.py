"""A model in 4 bits: training and sampling see the same packed values, which are those of a plain copy of them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.formats.load import load_decoder
from loreloop.model.linear import FastProducts, TiledProducts
from loreloop.model.packed_weights import PackedWeight
from loreloop.protocol.training import CreateModel, LoraSpec, SaveSampler
from tests.engine.sample_rig import Answer, folder_revision, sample_op
from tests.engine.train_rig import CPU, Rig, datum, train_pass
from tests.model.plain import logprobs, tokens
from tests.tiny import make_tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("m"), "qwen2", tie_word_embeddings=request.param, **SIZES)


@pytest.fixture(scope="module")
def rounded(folder, tmp_path_factory):
    """The same folder with every packed matrix replaced by the values it packs to."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            weight = PackedWeight.empty(tensor.shape, 8 if "embed" in name or "head" in name else 4, torch.bfloat16)
            weight.copy_(tensor)
            tensors[name] = weight.dense().float()
    copy = tmp_path_factory.mktemp("rounded")
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def packed(folder, dtype=torch.float32, products=None):
    return load_decoder(folder, dtype=dtype, device=CPU, products=products or FastProducts(), quantize=True)


def test_a_packed_model_is_the_model_of_its_values(folder, rounded):
    plain = load_decoder(rounded, dtype=torch.float32, device=CPU, products=FastProducts())
    decoder, sequence = packed(folder), tokens(30)
    assert isinstance(decoder.layers[0].attention.qkv.weight, PackedWeight)
    assert isinstance(decoder.embedding_VD, PackedWeight)
    torch.testing.assert_close(logprobs(decoder, [sequence]), logprobs(plain, [sequence]), rtol=0, atol=1e-5)


def test_adapters_get_the_gradients_of_its_values(folder, rounded):
    grads = []
    for source, quantize in ((folder, True), (rounded, False)):
        rig = Rig(source)
        rig.decoder = load_decoder(source, dtype=torch.float32, device=CPU, products=FastProducts(), quantize=quantize)
        rig.trainer.decoder = rig.trainer.head.decoder = rig.decoder
        grads.append(rig.grad(train_pass(datum(tokens(40)), datum(tokens(25, seed=1)))))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_what_is_sampled_is_what_is_trained_on(folder, tmp_path, deterministic):
    config = EngineConfig(device="cpu", quantize="int4", deterministic=deterministic, kv_cache_mib=8)
    engine = LocalEngine(config, "tiny", folder, tmp_path / "work")
    engine.create_model(CreateModel("m", 0, "r", LoraSpec(8, 0)))
    state = engine.bank.get("m")
    state.master.add_(torch.randn(state.master.shape, generator=torch.Generator().manual_seed(0)), alpha=0.02)
    state.refresh_weights()
    engine.save_sampler(SaveSampler("m", 1, "r", str(tmp_path / "v"), "v"))
    prompt, answer = tokens(20), Answer()
    assert engine.admit(sample_op(prompt, n=8, max_tokens=24, revision=folder_revision("v", tmp_path / "v")))
    while engine.sampling:
        for event in engine.sample_step():
            answer.add(event)
    data = [datum(prompt + answer.tokens[i]) for i in range(8)]
    outputs = engine.train([train_pass(*data, forward_only=True)], lambda: None)[0].outputs
    trained = torch.cat([torch.tensor(o["logprobs"].numpy()[19:-1]) for o in outputs])
    delta = trained - torch.cat([torch.tensor(answer.logprobs[i]) for i in range(8)])
    if deterministic:
        assert not delta.any()
    assert delta.abs().mean() <= 0.01


def test_tiled_products_read_packed_weights_too(folder):
    fast, tiled = packed(folder), packed(folder, products=TiledProducts())
    torch.testing.assert_close(logprobs(fast, [tokens(9)]), logprobs(tiled, [tokens(9)]), rtol=0, atol=1e-5)


def test_without_kernels_a_row_still_does_not_depend_on_its_neighbours_when_deterministic(folder):
    decoder = packed(folder, products=TiledProducts())  # fp32, which has no kernels
    qkv, x_TI = decoder.layers[0].attention.qkv, torch.randn(97, 64, generator=torch.Generator().manual_seed(0))
    together_TO = qkv.forward(x_TI)
    assert all(torch.equal(qkv.forward(x_TI[t : t + 1])[0], together_TO[t]) for t in range(97))
