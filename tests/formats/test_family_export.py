"""Adapters of every family leave home: peft and transformers compute with them what we compute."""

import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loreloop.formats.adopt import open_adapter
from loreloop.formats.configuration import read_spec
from loreloop.formats.export import export
from loreloop.formats.peft import read_adapter, write_adapter
from loreloop.model.lora import AdapterView, LoraBatch, LoraGroup, LoraLayout
from loreloop.protocol.training import LoraSpec
from tests.engine.test_families import CASES
from tests.model.plain import hidden, load, tokens
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.numbers
SEQUENCE = tokens(40)


def own_logprobs(base, view=None):
    decoder = load(base)
    lora = LoraBatch([LoraGroup(0, len(SEQUENCE), view)] if view else [])
    with torch.no_grad():
        return decoder.capped(decoder.head.forward(hidden(decoder, [SEQUENCE], lora))).log_softmax(-1)


def their_logprobs(model):
    with torch.no_grad():
        return model(torch.tensor([SEQUENCE])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_adapter_is_the_same_in_peft_merged_and_read_back(case, tmp_path):
    family, settings = CASES[case]
    base = make_tiny_model(tmp_path / "base", family, **settings)
    layout = LoraLayout(read_spec(base), LoraSpec(3, 7, train_unembed=False))
    view = AdapterView(layout, 0.05 * torch.randn(layout.size, generator=torch.Generator().manual_seed(7)))
    (tmp_path / "a").mkdir()
    write_adapter(tmp_path / "a", view, "some/base")
    expected = own_logprobs(base, view)
    assert (expected - own_logprobs(base)).abs().max() > 0.01
    for form in ("peft", "merged"):
        export(base, tmp_path / "a", tmp_path / form, form, "some/base")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    assert (expected - their_logprobs(whole)).abs().max() <= 1e-4
    assert (expected - own_logprobs(tmp_path / "merged")).abs().max() <= 1e-4
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        model = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    assert (expected - their_logprobs(model)).abs().max() <= 1e-4
    assert torch.equal(read_adapter(tmp_path / "a", layout.spec, torch.float32).flat, view.flat)
    adopted = open_adapter(tmp_path / "peft", base)
    assert (expected - own_logprobs(base, adopted)).abs().max() <= 1e-4
