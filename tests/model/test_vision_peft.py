"""Adapters of vision models as PEFT folders: peft finds the decoder's projections and leaves the tower alone."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from loreloop.model.peft import read_adapter, read_lora_spec, write_adapter
from tests.engine.train_rig import Rig
from tests.engine.vision_rig import VisionReference, image, text
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
