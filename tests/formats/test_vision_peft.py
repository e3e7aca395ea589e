"""Adapters of vision models leave home: peft finds the decoder's projections, and the tower stays as it is."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from loreloop.formats.export import export
from loreloop.formats.peft import read_adapter, read_lora_spec, write_adapter
from tests.engine.train_rig import Rig, train_pass
from tests.engine.vision_rig import VisionReference, image, text, vision_datum
from tests.tiny_vision import make_tiny_vision_model, picture


@pytest.mark.filterwarnings("ignore")  # peft does not know the section that we add
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_peft_loads_what_we_write(family, tmp_path):
    folder = make_tiny_vision_model(tmp_path / "base", family)
    rig = Rig(folder)
    state = rig.state(rank=4)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", state.weights, "base")
    chunks = (text(9, 10), image(picture()), text(11, 12))
    mine, theirs = VisionReference(folder, state), VisionReference(folder)
    theirs.model = PeftModel.from_pretrained(theirs.model, tmp_path / "adapter")
    assert not any("lora" in name and "visi" in name for name, _ in theirs.model.named_parameters())
    assert torch.equal(mine.logits(chunks), theirs.logits(chunks))
    assert read_lora_spec(tmp_path / "adapter") == state.layout.lora
    again = read_adapter(tmp_path / "adapter", rig.decoder.spec, torch.float32)
    assert np.array_equal(again.flat.numpy(), state.weights.flat.numpy())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "qwen3_vl_moe"])
def test_exported_folders_compute_what_we_compute(family, form, tmp_path):
    folder = make_tiny_vision_model(tmp_path / "base", family)
    rig = Rig(folder)
    state = rig.state(rank=4, unembed=family == "qwen3_vl", experts=form)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", state.weights, "base")
    chunks = (text(9, 10), image(picture()), text(11, 12))
    datum = vision_datum(chunks, len(rig.images.lay_out(chunks).tokens))
    own = rig.run((state, train_pass(datum, forward_only=True)))[0][0]
    export(folder, tmp_path / "adapter", tmp_path / "merged", "merged", "base")
    merged = VisionReference(tmp_path / "merged")
    assert (own - merged.logprobs(datum)).abs().max() <= 1e-4
    beside = VisionReference(folder)
    export(folder, tmp_path / "adapter", tmp_path / "peft", "peft", "base")
    beside.model = PeftModel.from_pretrained(beside.model, tmp_path / "peft")
    assert (own - beside.logprobs(datum)).abs().max() <= 1e-4
