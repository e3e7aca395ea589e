"""Images before routed experts: log-probs and gradients, those of experts' adapters too, against transformers."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import AutoModelForImageTextToText

from loreloop.protocol.sampling import PromptScores
from tests.engine.moe_reference import DeltaReference, named_gradients
from tests.engine.sample_rig import floats, make_sampler, one
from tests.engine.test_vision_reference import SEQUENCES
from tests.engine.train_rig import Rig, relative_error, train_pass
from tests.engine.vision_rig import VisionReference, sample_of, vision_datum
from tests.tiny_vision import make_tiny_vision_model

pytestmark = pytest.mark.numbers


class Reference(VisionReference, DeltaReference):
    """Sees as the one, and is adapted as the other."""

    auto = AutoModelForImageTextToText

    def __init__(self, folder, state) -> None:
        DeltaReference.__init__(self, folder, state)
        VisionReference.__init__(self, folder)

    def answer(self, inputs):
        return functional_call(self.model, self.weights(), (), inputs)

    def gradients(self, loss):
        return DeltaReference.gradients(self, loss)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_vision_model(tmp_path_factory.mktemp("model"), "qwen3_vl_moe")


@pytest.mark.parametrize("experts", ["shared_outer", "per_expert"])
@pytest.mark.parametrize("name", ["several images", "an image last", "text alone"])
def test_logprobs_and_gradients_equal_transformers(folder, name, experts):
    rig = Rig(folder)
    state = rig.state(rank=3, experts=experts)
    reference = Reference(folder, state)
    chunks = SEQUENCES[name]
    data = vision_datum(chunks, reference.n_tokens(chunks))
    own = rig.run((state, train_pass(data)))[0][0]
    expected = reference.logprobs(data)
    assert (own - expected).abs().max() <= 1e-4
    gradients = named_gradients(state)
    loss = -(torch.tensor(data.inputs["weights"].numpy()) * expected).sum()
    for adapter, theirs in reference.gradients(loss).items():
        assert relative_error(gradients[adapter], theirs) <= 1e-4, adapter


def test_the_sampler_agrees(folder):
    rig = Rig(folder)
    state = rig.state(rank=3)
    chunks = SEQUENCES["several images"]
    answer = one(make_sampler(rig), sample_of(chunks, scores=PromptScores(logprobs=True)), state.weights)
    tokens = torch.from_numpy(rig.images.lay_out(chunks).tokens)
    logp_NV = Reference(folder, state).logits(chunks).log_softmax(-1)
    expected = logp_NV[:-1].gather(1, tokens.clamp(min=0)[1:, None])[:, 0]
    seen = tokens[1:] >= 0
    assert (floats(answer.report.logprobs)[1:] - expected)[seen].abs().max() <= 1e-4


def test_experts_stacked_either_way_are_one_model(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    stacked = [name for name in tensors if "experts." in name]
    assert stacked
    assert all(tensors[name].dim() == 3 for name in stacked)
    expected = Rig(folder).decoder
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    turned = {name: t.transpose(1, 2).contiguous() if name in stacked else t for name, t in tensors.items()}
    save_file(turned, tmp_path / "model.safetensors")
    own = Rig(tmp_path).decoder
    some, other = (decoder.layers[0].feed_forward.experts[1].down.weight_OI for decoder in (own, expected))
    assert torch.equal(some, other)
