"""A Gemma 3 as it is published from 4B on: a text part beside a tower, of which the text part is served."""

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from loreloop.formats.configuration import read_spec
from loreloop.formats.export import export
from loreloop.formats.peft import write_adapter
from loreloop.formats.vision import load_vision
from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.protocol.training import LoraSpec
from tests.formats.test_family_export import SEQUENCE, own_logprobs
from tests.tiny import make_tokenizer

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "sliding_window": 9,
    "sliding_window_pattern": 2,
    "initializer_range": 0.2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}


def folder_of(folder):
    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION | {"patch_size": 14}, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    make_tokenizer(folder, 512)
    return folder


def theirs(folder):
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([SEQUENCE])).logits[0].log_softmax(-1)


@pytest.mark.numbers
def test_its_text_part_is_that_of_transformers_alone_and_merged(tmp_path):
    base = folder_of(tmp_path / "base")
    assert read_spec(base).module == "model.language_model"
    assert load_vision(base, dtype=torch.float32, device=torch.device("cpu")) is None
    assert (own_logprobs(base) - theirs(base)).abs().max() <= 1e-4
    layout = LoraLayout(read_spec(base), LoraSpec(3, 7, train_unembed=False))
    view = AdapterView(layout, 0.05 * torch.randn(layout.size, generator=torch.Generator().manual_seed(7)))
    (tmp_path / "a").mkdir()
    write_adapter(tmp_path / "a", view, "some/base")
    export(base, tmp_path / "a", tmp_path / "out", "merged", "some/base")
    expected = own_logprobs(base, view)
    assert (expected - own_logprobs(base)).abs().max() > 0.01
    assert (expected - theirs(tmp_path / "out")).abs().max() <= 1e-4
