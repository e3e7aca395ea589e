"""With fixed shapes, sequences with images are the same numbers in trainer and sampler, whatever shares a batch."""

import numpy as np
import pytest
import torch

from tests.engine.sample_rig import make_sampler, run
from tests.engine.train_rig import Rig, train_pass
from tests.engine.vision_rig import image, sample_of, text, vision_datum
from tests.tiny_vision import make_tiny_vision_model, picture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_trainer_equals_sampler_bit_for_bit(family, dtype, tmp_path):
    rig = Rig(make_tiny_vision_model(tmp_path, family), deterministic=True, dtype=dtype)
    state = rig.state()
    chunks = (text(10, 11), image(picture(70, 90)), text(12), image(picture(seed=3)), text(13, 14))
    other = (text(10, 11), image(picture(70, 90)), text(15))
    sampler = make_sampler(rig, page_tokens=4, prefill_tokens=5)
    answers = run(
        sampler,
        (sample_of(chunks, request="a", n=2), state.weights),
        (sample_of(other, request="b"), state.weights),
    )
    for prompt, request, index in ((chunks, "a", 0), (chunks, "a", 1), (other, "b", 0)):
        drawn, answer = answers[request].tokens[index], answers[request]
        n_prompt = len(rig.images.lay_out(prompt).tokens)
        targets = np.array([0] * (n_prompt - 1) + drawn + [0])
        data = vision_datum((*prompt, text(*drawn)), n_prompt + len(drawn), targets=targets)
        own = rig.run((state, train_pass(data, forward_only=True)))[0][0][n_prompt - 1 : -1]
        assert np.array_equal(own.numpy(), np.array(answer.logprobs[index], np.float32))
