"""GGUF files of families beyond llama: read back, or compared tensor by tensor with the merged model."""

import json

import gguf
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from loreloop.formats.configuration import read_spec
from loreloop.formats.export import export
from loreloop.formats.gguf import convert
from loreloop.formats.gguf_tokenizer import QWEN2
from loreloop.formats.peft import write_adapter
from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model


def exported(folder, family, **settings):
    """The merged model's folder and its GGUF file, of a model whose tokenizer splits as Qwen's."""
    base = make_tiny_model(folder / "base", family, **settings)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    words = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [words, plain]}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    layout = LoraLayout(read_spec(base), LoraSpec(3, 7, train_unembed=False))
    view = AdapterView(layout, 0.05 * torch.randn(layout.size, generator=torch.Generator().manual_seed(7)))
    (folder / "a").mkdir()
    write_adapter(folder / "a", view, "some/base")
    for form, name in (("merged", "merged"), ("gguf", "out.gguf")):
        export(base, folder / "a", folder / name, form, "some/base")
    return folder / "merged", folder / "out.gguf"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_a_file_is_read_back_as_the_merged_model(tmp_path, family):
    settings = {"sliding_window": None} if family == "mistral" else {}
    merged, file = exported(tmp_path, family, **settings)
    (tmp_path / "back").mkdir()
    convert(file, tmp_path / "back")
    sequence = tokens(40)
    assert (logprobs(load(merged), [sequence]) - logprobs(load(tmp_path / "back"), [sequence])).abs().mean() <= 0.05
    # It splits text as before.
    kept, back = (json.loads((folder / "tokenizer.json").read_text()) for folder in (merged, tmp_path / "back"))
    assert kept["pre_tokenizer"]["pretokenizers"][0]["pattern"] == back["pre_tokenizer"]["pretokenizers"][0]["pattern"]


@pytest.mark.parametrize(("family", "turned"), [("granite", True), ("olmo2", False), ("smollm3", True)])
def test_every_weight_is_in_the_file_under_the_name_that_readers_know(tmp_path, family, turned):
    settings = {"no_rope_layer_interval": 4} if family == "smollm3" else {}
    merged, file = exported(tmp_path, family, **settings)
    reader, weights = GGUFReader(str(file)), load_file(merged / "model.safetensors")
    held = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    arch = {"granite": gguf.MODEL_ARCH.GRANITE, "olmo2": gguf.MODEL_ARCH.OLMO2, "smollm3": gguf.MODEL_ARCH.SMOLLM3}
    known = gguf.get_tensor_name_map(arch[family], 4)
    assert len(held) == len(weights)
    for name, weight in weights.items():
        expected = weight.bfloat16().float() if weight.dim() > 1 else weight.float()
        if turned and (".q_proj." in name or ".k_proj." in name):
            n_heads = 4 if ".q_proj." in name else 2
            # Row 2i + j of a head is published row i + j · half.
            expected = torch.cat([torch.stack(head.chunk(2), 1).flatten(0, 1) for head in expected.chunk(n_heads)])
        assert torch.equal(held[known.get_name(name, (".weight", ".bias"))], expected), name


def test_the_factors_of_granite_are_told(tmp_path):
    _, file = exported(tmp_path, "granite")
    fields = GGUFReader(str(file)).fields
    told = {name: fields[f"granite.{name}"].contents() for name in ("embedding_scale", "residual_scale", "logit_scale")}
    assert told == pytest.approx({"embedding_scale": 6.0, "residual_scale": 0.4, "logit_scale": 2.0})
    assert fields["granite.attention.scale"].contents() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("mistral", {}, "has windows"),
        ("smollm3", {}, "layers without positions"),
        ("gemma2", {}, "GGUF files are written of"),
    ],
)
def test_what_a_reader_would_compute_otherwise_is_refused(tmp_path, family, settings, words):
    with pytest.raises(BadRequest, match=words):
        exported(tmp_path, family, **settings)
